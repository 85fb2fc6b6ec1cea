//! The generator in the cluster: one Job per part, and what its pod says when it cannot start or has failed.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use serde_json::{Value, json};

use super::errors::explain;

/// Port of the generator's gates.
pub(super) const CONTROL_PORT: u16 = 9095;
/// Port of its metrics, which the release's NetworkPolicy opens to Prometheus.
pub(super) const METRICS_PORT: u16 = 9091;
/// Label of everything one `compare` makes: its value is the session's.
pub(super) const SESSION: &str = "pushlab/compare";
/// A generator nobody takes care of any more ends after this, in seconds: the longest run and what is around it.
const DEADLINE_S: u32 = 45 * 60;
/// Lines of a failed pod's log that are shown.
const LINES: i64 = 12;

/// What the Jobs of one run have in common.
#[derive(Debug, Clone)]
pub(super) struct Template {
    /// The chart's base name.
    pub(super) base: String,
    /// The Helm release.
    pub(super) instance: String,
    /// This `compare`'s own label.
    pub(super) session: String,
    /// The pods' image, and how it is pulled.
    pub(super) image: String,
    /// See `image`.
    pub(super) pull_policy: Option<String>,
    /// See `image`.
    pub(super) pull_secrets: Vec<String>,
    /// Label of nodes that generators prefer, and its value.
    pub(super) prefers: (String, String),
}

impl Template {
    /// The Job of a part, which passes Pod Security "restricted" and writes nothing but its own `/tmp`.
    pub(super) fn job(&self, name: &str, args: &[String]) -> anyhow::Result<Job> {
        serde_json::from_value(self.manifest(name, args)).context("the generator's job")
    }

    fn manifest(&self, name: &str, args: &[String]) -> Value {
        let labels = BTreeMap::from([
            ("app.kubernetes.io/name", "pushlab"),
            ("app.kubernetes.io/instance", &self.instance),
            ("app.kubernetes.io/component", "load"),
            (SESSION, &self.session),
        ]);
        let secrets: Vec<Value> = self.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        let affinity = json!({
            "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 100,
                "preference": { "matchExpressions": [{ "key": self.prefers.0, "operator": "In", "values": [self.prefers.1] }] },
            }] },
            // Parts spread over what nodes there are.
            "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 10,
                "podAffinityTerm": { "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { SESSION: self.session } } },
            }] },
        });
        let container = json!({
            "name": "load",
            "image": self.image,
            "imagePullPolicy": self.pull_policy,
            "args": args,
            "ports": [
                { "name": "control", "containerPort": CONTROL_PORT },
                { "name": "metrics", "containerPort": METRICS_PORT },
            ],
            "resources": { "requests": { "cpu": "200m", "memory": "128Mi" }, "limits": { "memory": "2Gi" } },
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": [{ "name": "tmp", "mountPath": "/tmp" }],
        });
        let pod = json!({
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "imagePullSecrets": secrets,
            "affinity": affinity,
            "tolerations": [{ "key": self.prefers.0, "operator": "Equal", "value": self.prefers.1, "effect": "NoSchedule" }],
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": { "type": "RuntimeDefault" },
                "sysctls": [{ "name": "net.ipv4.ip_local_port_range", "value": "1024 65535" }],
            },
            "containers": [container],
            "volumes": [{ "name": "tmp", "emptyDir": { "sizeLimit": "2Gi" } }],
        });
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": { "name": name, "labels": labels },
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": DEADLINE_S,
                "ttlSecondsAfterFinished": 600,
                "template": { "metadata": { "labels": labels }, "spec": pod },
            },
        })
    }

    /// Its name: at most 63 characters, as a pod's own name is made from it.
    pub(super) fn name(&self, run: u32, part: u32) -> String {
        format!("{:.36}-compare-{}-{run}-{part}", self.base, self.session)
    }
}

/// Why a pod cannot start, if it is known by now that it cannot.
pub(super) fn cannot_start(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    for container in status.container_statuses.iter().flatten() {
        let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else { continue };
        let (reason, message) = (waiting.reason.as_deref()?, waiting.message.as_deref().unwrap_or_default());
        if ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"].contains(&reason) {
            return Some(format!(
                "its image {} cannot be pulled ({reason}): push it where the cluster can pull it, or, in kind: kind load docker-image {}. {message}",
                container.image, container.image
            ));
        }
        if ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"].contains(&reason) {
            return Some(format!("its container cannot be made ({reason}): {message}"));
        }
        if reason == "CrashLoopBackOff" {
            return Some(format!("it ends again and again ({reason}): {message}"));
        }
    }
    let unschedulable =
        status.conditions.iter().flatten().find(|condition| condition.reason.as_deref() == Some("Unschedulable"));
    unschedulable.map(|condition| {
        format!("no node takes it: {}", condition.message.as_deref().unwrap_or("kubectl describe pod tells why"))
    })
}

/// The phase Kubernetes gives a pod.
pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown")
}

/// The end of a pod's log, indented.
pub(super) async fn log_tail(pods: &Api<Pod>, name: &str) -> String {
    let params = LogParams { tail_lines: Some(LINES), ..LogParams::default() };
    match pods.logs(name, &params).await {
        Ok(text) if text.trim().is_empty() => "its log is empty".into(),
        Ok(text) => format!("its log ends:\n    {}", text.trim_end().replace('\n', "\n    ")),
        Err(error) => format!("its log cannot be had: {:#}", explain(error, "kubectl logs")),
    }
}

/// Errors when a generator's pod has failed, with its last lines.
pub(super) async fn ensure_alive(pods: &Api<Pod>, name: &str) -> anyhow::Result<()> {
    let pod = pods.get_opt(name).await.map_err(|error| explain(error, "looking for the generator"))?;
    let Some(pod) = pod else { bail!("the generator's pod {name} is gone: was it deleted, or its node drained?") };
    if phase(&pod) != "Failed" {
        return Ok(());
    }
    let status = pod.status.unwrap_or_default();
    let ended = status.container_statuses.into_iter().flatten().find_map(|container| container.state?.terminated);
    let how = ended.map(|ended| format!("exit {}, {}", ended.exit_code, ended.reason.unwrap_or_default()));
    let how = how.or(status.reason).unwrap_or_else(|| "it does not say how".into());
    bail!("the generator's pod {name} has failed ({how}); {}", log_tail(pods, name).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Template {
        Template {
            base: "lab".into(),
            instance: "lab".into(),
            session: "k3x9".into(),
            image: "registry.example/pushlab:1".into(),
            pull_policy: Some("IfNotPresent".into()),
            pull_secrets: vec!["mine".into()],
            prefers: ("lab/role".into(), "load".into()),
        }
    }

    #[test]
    fn the_job_is_restricted_and_runs_once() {
        let args = ["load", "--part", "1/2"].map(String::from);
        let job = template().job(&template().name(3, 1), &args).unwrap();
        let text = serde_json::to_value(&job).unwrap();
        assert_eq!(text["metadata"]["name"], "lab-compare-k3x9-3-1");
        assert_eq!(text["spec"]["backoffLimit"], 0);
        let pod = &text["spec"]["template"]["spec"];
        assert_eq!(pod["restartPolicy"], "Never");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let container = &pod["containers"][0];
        assert_eq!(container["args"], json!(args));
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(pod["imagePullSecrets"], json!([{ "name": "mine" }]));
        // What the API's type does not know it leaves out: nothing may be.
        assert_eq!(text, template().manifest(&template().name(3, 1), &args));
        assert!(Template { base: "x".repeat(80), ..template() }.name(999, 64).len() <= 63);
    }

    #[test]
    fn a_pod_that_cannot_start_says_why() {
        let pod = |status: Value| {
            serde_json::from_value::<Pod>(json!({ "metadata": { "name": "x" }, "status": status })).unwrap()
        };
        let waiting = |reason: &str| {
            let container = json!({ "name": "load", "image": "pushlab:dev", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": reason, "message": "not found" } } });
            pod(json!({ "phase": "Pending", "containerStatuses": [container] }))
        };
        let said = cannot_start(&waiting("ImagePullBackOff")).unwrap();
        assert!(said.contains("kind load docker-image pushlab:dev"), "{said}");
        assert!(cannot_start(&waiting("ContainerCreating")).is_none());
        let condition =
            json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes" });
        let said = cannot_start(&pod(json!({ "phase": "Pending", "conditions": [condition] }))).unwrap();
        assert!(said.contains("0/4 nodes"), "{said}");
        assert!(cannot_start(&pod(json!({ "phase": "Running" }))).is_none());
    }
}
