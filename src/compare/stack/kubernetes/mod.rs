//! An installed release of the chart: its pods are scaled and watched, the generator runs beside them as Jobs, and this
//! process only holds the threads: through the API server, with the rights of whoever runs it, in one namespace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::Deployment as Workload;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;

use super::{Deployment, Pod};
use crate::compare::edges::Edge;
use crate::compare::plan::{FaultKind, Planned, Scenario};
use errors::explain;
use forward::Forward;
use job::Template;

/// Which edges a release has.
mod edges;
/// What the API server says, in sentences.
mod errors;
/// Faults of a cluster.
mod faults;
/// Ports of pods on 127.0.0.1.
mod forward;
/// The Jobs while they run.
mod generator;
/// The generator's Jobs.
mod job;
/// Finding the release.
mod release;

pub use generator::{Generator, Used};
use release::Release;

/// Who changes objects, in their managed fields.
const MANAGER: &str = "pushlab-compare";
/// Pods must be as many as asked for within this time: an image may have to be pulled, a drain may have to end.
const PODS_WITHIN: Duration = Duration::from_secs(180);
/// Public and admin port of a pod.
const PORTS: [u16; 2] = [8080, 9090];

/// Where the release is.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Context of the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME", help_heading = "With --stack kubernetes")]
    pub context: Option<String>,
    /// Namespace of the release [default: the context's]
    #[arg(long, value_name = "NAME", help_heading = "With --stack kubernetes")]
    pub namespace: Option<String>,
    /// Helm release of the chart `pushlab` [default: the only one in the namespace]
    #[arg(long, value_name = "NAME", help_heading = "With --stack kubernetes")]
    pub release: Option<String>,
    /// Generators in the cluster, each a Job; together they make the load of one, and their run files are merged exactly
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), help_heading = "With --stack kubernetes")]
    pub parallelism: u32,
    /// Label of the nodes that generators prefer
    #[arg(long, value_name = "KEY=VALUE", default_value = "lab/role=load", value_parser = label, help_heading = "With --stack kubernetes")]
    pub load_nodes: (String, String),
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE, for example lab/role=load")?;
    Ok((key.into(), value.into()))
}

/// A release, and how it is reached.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    context: String,
    parallelism: u32,
    release: Release,
    template: Template,
    /// Runs so far.
    runs: Arc<AtomicU32>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({} in {})", self.release.instance, self.namespace)
    }
}

/// A pod of the release, and the name it has in reports.
#[derive(Debug, Clone)]
struct Known {
    name: String,
    uid: String,
    alias: String,
    ip: String,
}

/// What a cell has in the cluster.
#[derive(Debug, Default)]
pub struct Placed {
    /// Where the generator goes, from within the cluster.
    pub base: Vec<String>,
    /// The edge's configuration: file name and text.
    pub edge: Option<(String, String)>,
    known: Vec<Known>,
    forwards: Vec<Forward>,
}

impl Placed {
    /// The name in reports of the pod that calls itself this.
    #[must_use]
    pub fn alias(&self, name: &str) -> Option<&str> {
        self.known.iter().find(|pod| pod.name == name).map(|pod| pod.alias.as_str())
    }

    /// The pod's own name by the name in reports.
    pub(in crate::compare) fn name(&self, alias: &str) -> anyhow::Result<&str> {
        let pod = self.known.iter().find(|pod| pod.alias == alias);
        pod.map(|pod| pod.name.as_str()).with_context(|| format!("there is no {alias}"))
    }
}

impl Cluster {
    /// Finds the release.
    ///
    /// # Errors
    /// No kubeconfig, no such context, no answer, no rights, no release; each with what to do.
    pub async fn connect(options: &Options) -> anyhow::Result<Self> {
        let (client, context) = release::client(options).await?;
        let namespace = options.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        let release = Release::find(&client, &namespace, &context, options.release.as_deref()).await?;
        let template = Template {
            base: release.base.clone(),
            instance: release.instance.clone(),
            session: format!("{:06x}", rand::random::<u32>() & 0xff_ffff),
            image: release.image.clone(),
            pull_policy: release.pull_policy.clone(),
            pull_secrets: release.pull_secrets.clone(),
            prefers: options.load_nodes.clone(),
        };
        Ok(Self {
            client,
            namespace,
            context,
            parallelism: options.parallelism,
            release,
            template,
            runs: Arc::default(),
        })
    }

    /// Where it is, in words.
    #[must_use]
    pub fn place(&self) -> String {
        format!("release {} in namespace {} of context {}", self.release.instance, self.namespace, self.context)
    }

    /// What is known of the cluster: versions, nodes, images.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<String, String> {
        self.release.facts.clone()
    }

    /// What this stack does otherwise than the local one, in sentences for the report.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let parts = match self.parallelism {
            1 => "one Job".to_owned(),
            n => format!("{n} Jobs whose run files are merged (quantiles of their own lateness are the worst part's)"),
        };
        vec![
            format!("The generator ran in the cluster as {parts}; nothing is pinned to CPUs, the scheduler placed everything, and no capacity was calibrated."),
            "Pods outlive cells: only their number changes between them; counters are differences over a run, memory is what a pod had by then.".into(),
            "commit → arrival spans the clocks of a pod's and a generator's node; where these are machines, it is as good as their time synchronisation.".into(),
            "CPU and memory are the pods' own and the generator's; of edge, broker and database nothing is seen from outside.".into(),
            "The posts' final values were read by the service's own GET; nobody looked into the database.".into(),
        ]
    }

    /// Why this stack cannot run a cell; none: it can.
    #[must_use]
    pub fn why_not(&self, planned: &Planned) -> Option<String> {
        let fault = |fault: FaultKind| match fault {
            FaultKind::PodKill | FaultKind::PodTerm | FaultKind::ProxyReload | FaultKind::RolloutRestart => None,
            _ => Some("a process is stopped, a server is held down, or packets are dropped"),
        };
        if let Some(why) = planned.fault.and_then(fault) {
            return Some(format!("{why}, which the API server has no word for"));
        }
        if !matches!(
            planned.scenario,
            Scenario::Latency | Scenario::Balance | Scenario::Faults | Scenario::SlowConsumer
        ) {
            return Some(format!("the scenario {} needs processes of this machine", planned.scenario.name()));
        }
        if planned.edge.edge != Edge::Direct && self.release.way(&planned.edge).is_none() {
            let buffering = if planned.edge.edge.buffers() && planned.edge.buffering { ", buffering" } else { "" };
            return Some(format!("the release has no edge {}{buffering} with these settings", planned.edge.edge));
        }
        self.release.other_settings(planned)
    }

    /// Scales to what the cell needs, waits until exactly these pods are there, and opens their ports here.
    ///
    /// # Errors
    /// When they do not become ready in three minutes, with the reason.
    pub(super) async fn deploy(&self, planned: &Planned) -> anyhow::Result<Deployment> {
        self.scale(planned.pods).await?;
        let (pods, changed) = self.until_pods(planned.pods as usize).await?;
        let mut deployment = Deployment { cluster: Some(Placed::default()), ..Deployment::default() };
        self.take_up(&mut deployment, pods).await?;
        let placed = deployment.cluster.get_or_insert_default();
        if planned.edge.edge == Edge::Direct {
            placed.base = placed.known.iter().map(|pod| format!("http://{}:{}", pod.ip, PORTS[0])).collect();
        } else {
            let way = self.release.way(&planned.edge).context("the release has no such edge")?;
            placed.base = vec![format!("http://{}", way.service)];
            placed.edge = self.release.evidence(&planned.edge);
            if changed {
                // Edges follow the pods by DNS.
                tokio::time::sleep(self.release.dns + Duration::from_secs(1)).await;
            }
        }
        Ok(deployment)
    }

    /// Makes pods known that are new: a name in reports, ports here. Returns how many.
    async fn take_up(&self, deployment: &mut Deployment, pods: Vec<KubePod>) -> anyhow::Result<usize> {
        let before = deployment.pods.len();
        let placed = deployment.cluster.get_or_insert_default();
        for pod in pods {
            let (name, uid) = (pod.metadata.name.unwrap_or_default(), pod.metadata.uid.unwrap_or_default());
            if placed.known.iter().any(|known| known.uid == uid) {
                continue;
            }
            let mut ports = Vec::new();
            for port in PORTS {
                let forward = Forward::open(self.pods(), &name, port).await?;
                ports.push(forward.address.to_string());
                placed.forwards.push(forward);
            }
            let alias = format!("pod-{}", placed.known.len() + 1);
            let ip = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
            placed.known.push(Known { name, uid, alias: alias.clone(), ip });
            let (admin, listen) = (ports.pop().unwrap_or_default(), ports.pop().unwrap_or_default());
            deployment.pods.push(Pod { name: alias, listen, admin, pid: None });
        }
        Ok(deployment.pods.len() - before)
    }

    /// Looks for pods that are ready and not known yet (a roll-out's, or those that replace deleted ones). Returns them.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn refresh(&self, deployment: &mut Deployment) -> anyhow::Result<Vec<Pod>> {
        let pods = self.list_pods().await?.into_iter().filter(is_ready).collect();
        let new = self.take_up(deployment, pods).await?;
        Ok(deployment.pods[deployment.pods.len() - new..].to_vec())
    }

    /// Adds pods to a running deployment. Returns their names and what was done, in words.
    ///
    /// # Errors
    /// When they do not become ready.
    pub(super) async fn add_pods(&self, deployment: &mut Deployment, count: u32) -> anyhow::Result<String> {
        let all = u32::try_from(deployment.pods.len())? + count;
        self.scale(all).await?;
        let (pods, _) = self.until_pods(all as usize).await?;
        let new = self.take_up(deployment, pods).await?;
        let names: Vec<_> = deployment.pods.iter().rev().take(new).rev().map(|pod| pod.name.as_str()).collect();
        Ok(format!(
            "{} added by scaling to {all}, edges follow DNS within {} s",
            names.join(" and "),
            self.release.dns.as_secs()
        ))
    }

    async fn scale(&self, replicas: u32) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let scaled = self.workloads().patch_scale(&self.release.workload, &params, &patch).await;
        scaled.map_err(|error| explain(error, &format!("scaling {} to {replicas}", self.release.workload)))?;
        Ok(())
    }

    /// Waits until so many pods are ready and no other one is left; also whether it had to wait.
    async fn until_pods(&self, count: usize) -> anyhow::Result<(Vec<KubePod>, bool)> {
        let (begun, mut waited) = (Instant::now(), false);
        loop {
            let mut pods = self.list_pods().await?;
            if pods.len() == count && pods.iter().all(is_ready) {
                // The oldest first, so that a name in reports stays with its pod while pods come.
                pods.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone()));
                return Ok((pods, waited));
            }
            waited = true;
            let late = begun.elapsed() > PODS_WITHIN;
            let stuck = pods.iter().find_map(|pod| Some((pod, job::cannot_start(pod)?)));
            if let Some((pod, why)) = stuck.filter(|_| late || begun.elapsed() > Duration::from_secs(20)) {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                bail!("pod {name} does not start: {why}; {}", job::log_tail(&self.pods(), name).await);
            }
            if late {
                let ready = pods.iter().filter(|pod| is_ready(pod)).count();
                bail!(
                    "{} has {ready} ready pods of {} after {} s, and {count} are needed; does an autoscaler change their number? kubectl -n {} describe deployment {}",
                    self.release.workload,
                    pods.len(),
                    PODS_WITHIN.as_secs(),
                    self.namespace,
                    self.release.workload
                );
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    async fn list_pods(&self) -> anyhow::Result<Vec<KubePod>> {
        let pods = self.pods().list(&ListParams::default().labels(&self.release.selector)).await;
        Ok(pods.map_err(|error| explain(error, "listing the release's pods"))?.items)
    }

    /// Leaves the release as it was found: as many pods, no Job of ours.
    ///
    /// # Errors
    /// When it cannot be left so.
    pub async fn close(&self) -> anyhow::Result<()> {
        let jobs: Api<Job> = Api::namespaced(self.client.clone(), &self.namespace);
        let ours = ListParams::default().labels(&format!("{}={}", job::SESSION, self.template.session));
        let deleted = jobs.delete_collection(&DeleteParams::background().grace_period(0), &ours).await;
        if let Err(error) = deleted {
            // Not everybody who may delete a Job may delete a list of them; each was deleted after its run.
            tracing::debug!(%error, "deleting jobs that are left");
        }
        self.scale(self.release.replicas).await?;
        // Helm applies on the server's side: whom a field belongs to decides whether its next upgrade may change it.
        let found = self.workloads().get_metadata(&self.release.workload).await;
        let found = found.map_err(|error| explain(error, "reading the deployment"))?;
        let fields = found.metadata.managed_fields.into_iter().flatten();
        let kept: Vec<_> = fields.filter(|entry| entry.manager.as_deref() != Some(MANAGER)).collect();
        let patch = Patch::Merge(json!({ "metadata": { "managedFields": kept } }));
        let patched = self.workloads().patch(&self.release.workload, &PatchParams::default(), &patch).await;
        patched.map_err(|error| explain(error, "giving fields back to Helm"))?;
        Ok(())
    }

    fn pods(&self) -> Api<KubePod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn workloads(&self) -> Api<Workload> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

/// Whether a pod takes traffic, and is not about to go.
fn is_ready(pod: &KubePod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
