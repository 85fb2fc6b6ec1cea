//! The stacks a plan runs on: what is started, where, and how it is reached.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use super::edges::RunningEdge;
use super::environment::cores;
use super::observe::prometheus::Observer;
use super::plan::{CpuSets, Planned};
use processes::{Guardian, Process};
use services::Running;

/// One child process with its pods, broker and database.
mod embedded;
/// Ends every descendant when the lab goes away.
pub mod guardian;
/// An installed release of the chart.
pub mod kubernetes;
/// Real servers, one child process per pod.
mod local;
pub use local::serve_args;
/// The lab's side of the guardian.
pub mod processes;
/// Something that runs already.
pub mod remote;
/// Real servers on private ports.
pub mod services;

/// Which stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Nothing installed: pods, an in-process broker and SQLite in one child process
    Embedded,
    /// Real nats-server, mariadbd, nginx (and haproxy) on private ports
    Local,
    /// URLs of something that runs already
    Remote,
    /// An installed release of the chart in a Kubernetes cluster: helm install lab helm/pushlab
    Kubernetes,
}

impl Kind {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// CPU sets in force; empty: not pinned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpus {
    /// The generator's.
    pub generator: Vec<usize>,
    /// Everybody else's.
    pub stack: Vec<usize>,
}

impl Cpus {
    /// The plan's, or: the last core for the generator, the others for everything else.
    ///
    /// # Errors
    /// When the plan names a core this machine does not have.
    pub fn from_plan(plan: &CpuSets) -> anyhow::Result<Self> {
        let cores = cores();
        let auto = if cores > 1 { (vec![cores - 1], (0..cores - 1).collect()) } else { (Vec::new(), Vec::new()) };
        let cpus =
            Self { generator: plan.generator.clone().unwrap_or(auto.0), stack: plan.stack.clone().unwrap_or(auto.1) };
        match cpus.generator.iter().chain(&cpus.stack).find(|cpu| **cpu >= cores) {
            Some(cpu) => bail!("[cpus] names CPU {cpu}, and this machine has 0 to {}", cores - 1),
            None => Ok(cpus),
        }
    }
}

/// What is up for the whole plan.
#[derive(Debug)]
pub struct Stack {
    /// Which.
    pub kind: Kind,
    /// Keeps all processes.
    pub guardian: Guardian,
    /// This program.
    pub pushlab: PathBuf,
    /// CPU sets.
    pub cpus: Cpus,
    /// The broker (`local`).
    pub nats: Option<Running>,
    /// The database (`local`).
    pub database: Option<Running>,
    /// Where everything is (`remote`).
    pub remote: remote::Urls,
    /// Watches everything (`--observe`).
    pub observer: Option<Observer>,
    /// Who holds the lock of a row, while that is the fault.
    pub row_holder: Option<sqlx::MySqlConnection>,
    /// The release (`kubernetes`).
    pub cluster: Option<kubernetes::Cluster>,
}

/// A pod that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name: `pod-1`.
    pub name: String,
    /// `127.0.0.1:port` of its public port.
    pub listen: String,
    /// The same of its admin port.
    pub admin: String,
    /// Its process; the embedded stack's pods share one, a remote pod's is not known.
    pub pid: Option<i32>,
}

/// Pods and edge of one cell.
#[derive(Debug, Default)]
pub struct Deployment {
    /// The pods.
    pub pods: Vec<Pod>,
    /// Their processes.
    pub processes: Vec<Process>,
    /// What stands before them; none: direct.
    pub edge: Option<RunningEdge>,
    /// Base URLs when they are not the pods' own (`remote`).
    pub remote: remote::Urls,
    /// Where the generator is to offer its metrics (`--observe`).
    pub load_metrics: Option<String>,
    /// The same of a cluster; its pods are above, by ports forwarded to this machine.
    pub cluster: Option<kubernetes::Placed>,
}

impl Stack {
    /// Brings up what lasts for the whole plan.
    ///
    /// # Errors
    /// When a server is missing or does not serve.
    pub async fn start(kind: Kind, cpus: Cpus, remote: remote::Urls) -> anyhow::Result<Self> {
        let pushlab = std::env::current_exe().context("cannot find this program")?;
        let guardian = Guardian::start(&pushlab).await?;
        let mut stack = Self {
            kind,
            guardian,
            pushlab,
            cpus,
            nats: None,
            database: None,
            remote,
            observer: None,
            cluster: None,
            row_holder: None,
        };
        if kind == Kind::Local {
            let (nats, database) = tokio::join!(
                services::nats(&stack.guardian, &stack.cpus.stack),
                services::mariadb(&stack.guardian, &stack.cpus.stack)
            );
            (stack.nats, stack.database) = (Some(nats?), Some(database?));
        }
        Ok(stack)
    }

    /// Brings up pods and edge of one cell: fresh processes, so that a run owes nothing to the one before.
    ///
    /// # Errors
    /// When they do not serve.
    pub async fn deploy(&self, planned: &Planned) -> anyhow::Result<Deployment> {
        let mut deployment = match self.kind {
            Kind::Embedded => embedded::deploy(self, planned).await?,
            Kind::Local => local::deploy(self, planned).await?,
            Kind::Kubernetes => return self.cluster.as_ref().context("there is no cluster")?.deploy(planned).await,
            Kind::Remote => return Ok(Deployment { remote: self.remote.clone(), ..Deployment::default() }),
        };
        let pods = deployment.addresses();
        let status = self.observer.as_ref().map(Observer::status_port);
        deployment.edge = RunningEdge::start(&self.guardian, &planned.edge, &pods, status, &self.cpus.stack).await?;
        if let Some(observer) = &self.observer {
            let load = format!("127.0.0.1:{}", services::free_port()?);
            observer.watch(&deployment, &load).await?;
            deployment.load_metrics = Some(load);
        }
        Ok(deployment)
    }

    /// Adds a pod to a running deployment and tells the edge. Returns its name and what was done to the edge.
    ///
    /// # Errors
    /// When the stack cannot add pods, or it does not serve.
    pub async fn add_pod(
        &self,
        deployment: &mut Deployment,
        planned: &Planned,
    ) -> anyhow::Result<(String, &'static str)> {
        if self.kind != Kind::Local {
            bail!("only the local stack can add a pod");
        }
        let name = format!("pod-{}", deployment.pods.len() + 1);
        let (pod, process) = local::pod(self, planned, &name).await?;
        deployment.pods.push(pod);
        deployment.processes.push(process);
        let edge = deployment.edge.as_ref().context("without an edge nobody would go to the new pod")?;
        let how = edge.set_pods(&self.guardian, &deployment.addresses()).await?;
        if let (Some(observer), Some(load)) = (&self.observer, &deployment.load_metrics) {
            observer.aim(deployment, load)?;
        }
        Ok((name, how))
    }

    /// Ends pods and edge of a cell and waits for their ends.
    pub async fn end(&self, deployment: Deployment) {
        if let Some(observer) = &self.observer {
            let _ = observer.rest(); // its targets would be seen as down until the next cell's are there
        }
        if let Some(edge) = deployment.edge {
            edge.stop(&self.guardian).await;
        }
        for mut process in deployment.processes {
            // The run is over and everything is counted: nothing is gained by draining.
            let _ = self.guardian.signal(process.pid, Signal::SIGKILL).await;
            let _ = tokio::time::timeout(Duration::from_secs(5), process.wait()).await;
        }
    }
}

impl Deployment {
    /// (name, public address) of every pod.
    #[must_use]
    pub fn addresses(&self) -> Vec<(String, String)> {
        self.pods.iter().map(|pod| (pod.name.clone(), pod.listen.clone())).collect()
    }

    /// Where the generator goes: the edge, else every pod.
    #[must_use]
    pub fn base_urls(&self) -> Vec<String> {
        if let Some(placed) = &self.cluster {
            return placed.base.clone();
        }
        match &self.edge {
            _ if !self.remote.base.is_empty() => self.remote.base.clone(),
            Some(edge) => vec![edge.server.url.clone()],
            None => self.pods.iter().map(|pod| format!("http://{}", pod.listen)).collect(),
        }
    }

    /// Admin URLs of every pod.
    #[must_use]
    pub fn admin_urls(&self) -> Vec<String> {
        if self.pods.is_empty() {
            return self.remote.admin.clone();
        }
        self.pods.iter().map(|pod| format!("http://{}", pod.admin)).collect()
    }

    /// (name, process) of everything that belongs to this cell.
    #[must_use]
    pub fn watched(&self) -> Vec<(String, i32)> {
        let shared = self.pods.len() > 1 && self.pods.iter().all(|pod| pod.pid == self.pods[0].pid);
        let pods = self.pods.iter().filter_map(|pod| Some((pod.name.clone(), pod.pid?)));
        let mut watched: Vec<_> =
            if shared { pods.take(1).map(|(_, pid)| ("pods".into(), pid)).collect() } else { pods.collect() };
        watched.extend(self.edge.iter().map(|edge| (edge.program().to_owned(), edge.server.process.pid)));
        watched
    }
}
