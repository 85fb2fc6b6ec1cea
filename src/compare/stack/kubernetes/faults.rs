//! Faults of a cluster, by the same words as a local stack's: a pod deleted, told to end, all of them replaced, an edge
//! that reads its configuration again.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::api::{AttachParams, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::io::AsyncReadExt;

use super::errors::explain;
use super::{Cluster, MANAGER};
use crate::compare::faults::{Done, Fault, Target};
use crate::compare::stack::Deployment;

impl Cluster {
    /// Does it.
    ///
    /// # Errors
    /// When the cluster cannot do it.
    pub(in crate::compare) async fn inject(&self, fault: &Fault, deployment: &mut Deployment) -> anyhow::Result<Done> {
        let placed = deployment.cluster.as_ref().context("no pods of a cluster")?;
        let label = match fault {
            Fault::Kill(Target::Pod(alias)) => {
                self.delete(placed.name(alias)?, &DeleteParams::default().grace_period(0)).await?;
                format!("{alias} deleted without grace")
            }
            Fault::Terminate(Target::Pod(alias)) => {
                self.delete(placed.name(alias)?, &DeleteParams::default()).await?;
                format!("{alias} deleted, drains")
            }
            Fault::Restart => {
                let at = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
                let annotations = json!({ "kubectl.kubernetes.io/restartedAt": at });
                let patch = json!({ "spec": { "template": { "metadata": { "annotations": annotations } } } });
                let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
                let done = self.workloads().patch(&self.release.workload, &params, &Patch::Merge(patch)).await;
                done.map_err(|error| explain(error, "rollout restart"))?;
                "rollout restart begun".into()
            }
            Fault::ReloadEdge => self.reload_edges().await?,
            Fault::AddPods(count) => self.add_pods(deployment, *count).await?,
            other => bail!("a cluster cannot do {other:?}"),
        };
        Ok(Done { label, in_vain: None })
    }

    async fn delete(&self, pod: &str, how: &DeleteParams) -> anyhow::Result<()> {
        self.pods().delete(pod, how).await.map_err(|error| explain(error, &format!("deleting pod {pod}")))?;
        Ok(())
    }

    /// `nginx -s reload` in every pod of the nginx edge, by the command it was started with.
    async fn reload_edges(&self) -> anyhow::Result<String> {
        let labels =
            format!("app.kubernetes.io/instance={},app.kubernetes.io/component=edge-nginx", self.release.instance);
        let edges = self.pods().list(&ListParams::default().labels(&labels)).await;
        let edges = edges.map_err(|error| explain(error, "listing the edge's pods"))?.items;
        let mut reloaded = 0;
        for edge in edges.iter().filter(|edge| super::is_ready(edge)) {
            let name = edge.metadata.name.as_deref().unwrap_or_default();
            self.exec(name, reload_command(edge)).await.with_context(|| format!("reloading {name}"))?;
            reloaded += 1;
        }
        match reloaded {
            0 => bail!("there is no nginx edge to reload"),
            1 => Ok("edge reloaded".into()),
            n => Ok(format!("{n} edges reloaded")),
        }
    }

    /// Runs a command in a pod's container of nginx; anything but success is an error with what it said.
    async fn exec(&self, pod: &str, command: Vec<String>) -> anyhow::Result<()> {
        let params = AttachParams::default().stdin(false).stdout(false).stderr(true).container("nginx");
        let mut process =
            self.pods().exec(pod, command, &params).await.map_err(|error| explain(error, "kubectl exec"))?;
        let status = process.take_status().context("exec gives no status")?;
        let mut said = String::new();
        if let Some(mut stderr) = process.stderr() {
            stderr.read_to_string(&mut said).await?;
        }
        let status = status.await.context("exec ended without a status")?;
        if status.status.as_deref() == Some("Success") {
            return Ok(());
        }
        bail!("{} {}", status.message.unwrap_or_default(), said.trim())
    }
}

/// The container's own command and `-s reload`.
fn reload_command(edge: &KubePod) -> Vec<String> {
    let containers = edge.spec.iter().flat_map(|spec| &spec.containers);
    let container = containers.into_iter().find(|container| container.name == "nginx");
    let own = container.and_then(|container| container.command.clone()).filter(|command| !command.is_empty());
    let mut command = own.unwrap_or_else(|| vec!["nginx".into()]);
    command.extend(["-s", "reload"].map(String::from));
    command
}
