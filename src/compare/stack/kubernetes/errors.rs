//! What the API server says, in sentences that tell what to do.

use anyhow::anyhow;

/// What `compare` does in the namespace; all of it is namespaced.
pub(super) const NEEDS: &str = "get and list deployments, pods, services and configmaps, get pods/log, create pods/portforward and \
    pods/exec, create and delete jobs, delete pods, patch deployments and deployments/scale";

/// An error of the API, with a hint.
pub(super) fn explain(error: kube::Error, doing: &str) -> anyhow::Error {
    match &error {
        kube::Error::Api(status) if status.code == 403 => anyhow!(
            "{doing}: the cluster forbids it: {}. In this namespace compare needs to: {NEEDS}",
            status.message.trim_end_matches('.')
        ),
        kube::Error::Api(status) if status.code == 401 => {
            anyhow!("{doing}: the cluster does not know you ({}); log in, or give another --context", status.message)
        }
        kube::Error::Api(status) => anyhow!("{doing}: {}", status.message),
        kube::Error::Service(_) | kube::Error::HyperError(_) => {
            let cause = format!("{:#}", anyhow::Error::from(error));
            anyhow!("{doing}: the API server cannot be reached ({cause}); is the cluster up? kubectl cluster-info")
        }
        _ => anyhow::Error::from(error).context(doing.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_is_needed() {
        let status = |code, message: &str| {
            let status =
                serde_json::json!({ "status": "Failure", "code": code, "message": message, "reason": "Forbidden" });
            kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
        };
        let said = explain(
            status(403, "jobs.batch is forbidden: User \"eve\" cannot create resource \"jobs\""),
            "the generator's job",
        );
        let said = format!("{said:#}");
        assert!(said.contains("eve") && said.contains("create and delete jobs"), "{said}");
        assert!(format!("{:#}", explain(status(401, "Unauthorized"), "x")).contains("--context"));
        assert!(format!("{:#}", explain(status(409, "conflict"), "x")).contains("x: conflict"));
    }
}
