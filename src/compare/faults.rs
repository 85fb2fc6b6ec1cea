//! What is done to a running stack at a moment of the window: a server killed, held, started again, a pod added, an edge
//! reloaded, a row locked, a path black-holed. Each one is seen to have happened, or says that it did not.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use sqlx::{Connection, Executor};

use super::namespace::{self, Path};
use super::plan::Planned;
use super::stack::guardian::descendants;
use super::stack::{Deployment, Stack, services};

/// A process of the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The pod of that name.
    Pod(String),
    /// The NATS server.
    Broker,
    /// The database server.
    Database,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// kill -9.
    Kill(Target),
    /// SIGTERM: a pod drains.
    Terminate(Target),
    /// SIGSTOP: it hangs, its sockets stay open.
    Hold(Target),
    /// SIGCONT.
    Release(Target),
    /// A server that was killed, on the same port and data.
    Start(Target),
    /// The edge reads its configuration again, unchanged.
    ReloadEdge,
    /// So many pods more.
    AddPods(u32),
    /// Another transaction takes the lock of the newest post's row.
    LockRow,
    /// It lets go.
    FreeRow,
    /// Every pod is replaced by a new one, as many at a time as the Deployment allows.
    Restart,
    /// Every packet of the path is dropped, in both directions, without an answer.
    Blackhole(Path),
    /// Packets pass again.
    Open(Path),
}

/// A fault and its moment after the measured window began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// What was done.
#[derive(Debug)]
pub struct Done {
    /// In words, for the report's time line.
    pub label: String,
    /// Why it was no fault after all; makes the run INVALID.
    pub in_vain: Option<String>,
}

impl Fault {
    /// Whether it ends another one.
    #[must_use]
    pub const fn is_recovery(&self) -> bool {
        matches!(self, Self::Release(_) | Self::Start(_) | Self::FreeRow | Self::Open(_))
    }

    /// Whether it has taken hold only once it was done (and not as soon as it began).
    #[must_use]
    pub const fn counts_from_its_end(&self) -> bool {
        matches!(self, Self::AddPods(_) | Self::Start(_) | Self::LockRow)
    }

    /// Does it.
    ///
    /// # Errors
    /// When the stack cannot do it.
    pub async fn inject(
        &self,
        stack: &mut Stack,
        deployment: &mut Deployment,
        planned: &Planned,
    ) -> anyhow::Result<Done> {
        if let Some(cluster) = stack.cluster.clone() {
            return cluster.inject(self, deployment).await;
        }
        let done = |label: String| Done { label, in_vain: None };
        let label = match self {
            Self::Kill(target) => {
                stack.guardian.signal(target.pid(stack, deployment)?, Signal::SIGKILL).await?;
                target.until_ended(stack, deployment).await?;
                format!("{} killed", target.name())
            }
            Self::Terminate(target) => {
                stack.guardian.signal(target.pid(stack, deployment)?, Signal::SIGTERM).await?;
                format!("{} told to end", target.name())
            }
            Self::Hold(target) => {
                let pid = target.pid(stack, deployment)?;
                stack.guardian.signal(pid, Signal::SIGSTOP).await?;
                let held = until(|| state(pid) == Some('T')).await;
                let in_vain = (!held).then(|| format!("{} did not stop", target.name()));
                return Ok(Done { label: format!("{} held", target.name()), in_vain });
            }
            Self::Release(target) => {
                stack.guardian.signal(target.pid(stack, deployment)?, Signal::SIGCONT).await?;
                format!("{} released", target.name())
            }
            Self::Start(target) => {
                target.start(stack).await?;
                format!("{} started again", target.name())
            }
            Self::ReloadEdge => {
                let edge = deployment.edge.as_ref().context("there is no edge to reload")?;
                let pid = edge.server.process.pid;
                let before: HashSet<i32> = descendants(pid).into_iter().collect();
                let label = edge.set_pods(&stack.guardian, &deployment.addresses()).await?;
                let renewed = until(|| descendants(pid).iter().any(|pid| !before.contains(pid))).await;
                let in_vain = (!renewed).then(|| "the edge has no new worker after its reload".into());
                return Ok(Done { label: label.into(), in_vain });
            }
            Self::AddPods(count) => {
                let mut label = String::new();
                for _ in 0..*count {
                    let (pod, how) = stack.add_pod(deployment, planned).await?;
                    label = format!("{pod} added, {how}");
                }
                label
            }
            Self::LockRow => {
                let database = stack.database.as_ref().context("there is no database whose rows could be locked")?;
                let mut holder = sqlx::MySqlConnection::connect(&database.url).await?;
                for statement in ["start transaction", "select id from posts order by id desc limit 1 for update"] {
                    holder.execute(statement).await?;
                }
                stack.row_holder = Some(holder);
                "the post's row locked".into()
            }
            Self::FreeRow => {
                let holder = stack.row_holder.take().context("nobody holds a row")?;
                holder.close().await?;
                "the row free again".into()
            }
            Self::Restart => bail!("only a cluster replaces pods by itself"),
            Self::Blackhole(path) => {
                namespace::drop_packets(&path.port(deployment)?)?;
                format!("{} black-holed", path.title())
            }
            Self::Open(path) => {
                let dropped = namespace::pass_packets(&path.port(deployment)?)?;
                let in_vain = (dropped == 0).then(|| "no packet was dropped".into());
                return Ok(Done { label: format!("{} open again", path.title()), in_vain });
            }
        };
        Ok(done(label))
    }
}

/// Undoes what a cell that failed left behind: broker and database run, packets pass.
///
/// # Errors
/// When a server does not come back.
pub async fn restore(stack: &mut Stack) -> anyhow::Result<()> {
    namespace::pass_all()?;
    stack.row_holder = None; // its connection ends, and its lock
    for target in [Target::Broker, Target::Database] {
        let Some(running) = target.server(stack) else { continue };
        if running.process.has_ended().is_some() {
            target.start(stack).await?;
        } else if state(running.process.pid) == Some('T') {
            stack.guardian.signal(running.process.pid, Signal::SIGCONT).await?;
        }
    }
    Ok(())
}

impl Target {
    fn name(&self) -> &str {
        match self {
            Self::Pod(name) => name,
            Self::Broker => "NATS",
            Self::Database => "the database",
        }
    }

    fn server<'a>(&self, stack: &'a Stack) -> Option<&'a services::Running> {
        match self {
            Self::Pod(_) => None,
            Self::Broker => stack.nats.as_ref(),
            Self::Database => stack.database.as_ref(),
        }
    }

    fn pid(&self, stack: &Stack, deployment: &Deployment) -> anyhow::Result<i32> {
        let pid = match self {
            Self::Pod(name) => deployment.pods.iter().find(|pod| pod.name == *name).and_then(|pod| pod.pid),
            server => server.server(stack).map(|running| running.process.pid),
        };
        pid.with_context(|| format!("there is no process of {}", self.name()))
    }

    async fn until_ended(&self, stack: &Stack, deployment: &Deployment) -> anyhow::Result<()> {
        let pid = self.pid(stack, deployment)?;
        let process = deployment.processes.iter().find(|process| process.pid == pid);
        let process = process.or(self.server(stack).map(|running| &running.process));
        let process = process.with_context(|| format!("there is no process of {}", self.name()))?;
        match until(|| process.has_ended().is_some()).await {
            true => Ok(()),
            false => bail!("{} lives on after SIGKILL", self.name()),
        }
    }

    async fn start(&self, stack: &mut Stack) -> anyhow::Result<()> {
        let server = self.server(stack).with_context(|| format!("{} cannot be started", self.name()))?;
        let (port, status) = (server.port, server.status_port);
        let (guardian, cpus) = (&stack.guardian, &stack.cpus.stack);
        match self {
            Self::Broker => {
                let monitor = status.map_or_else(services::free_port, Ok)?;
                stack.nats = Some(services::nats_at(guardian, port, monitor, cpus).await?);
            }
            _ => {
                let data = guardian.folder().join(services::DATABASE_FOLDER);
                stack.database = Some(services::mariadb_at(guardian, &data, port, cpus).await?);
            }
        }
        Ok(())
    }
}

/// A process' state letter, from /proc.
fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// Waits until it is so, at most 5 s.
async fn until(so: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !so() {
        if begun.elapsed() > Duration::from_secs(5) {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}
