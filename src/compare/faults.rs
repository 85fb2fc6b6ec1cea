//! What is done to a running stack at a moment of the window: a pod killed, held, replaced or added, an edge reloaded.

use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;

use super::plan::Planned;
use super::stack::{Deployment, Stack};

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// kill -9.
    Kill(String),
    /// SIGSTOP: the pod hangs, its sockets stay open.
    Hold(String),
    /// SIGCONT.
    Release(String),
    /// kill -9, and a pod of the same name in its place, at once.
    Restart(String),
    /// The edge reads its configuration again, unchanged.
    ReloadEdge,
    /// One pod more.
    AddPod,
}

/// A fault and its moment after the measured window began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

impl Fault {
    /// Does it; returns what was done, in words for the report's time line.
    ///
    /// # Errors
    /// When the stack cannot do it.
    pub async fn inject(
        &self,
        stack: &Stack,
        deployment: &mut Deployment,
        planned: &Planned,
    ) -> anyhow::Result<String> {
        match self {
            Self::Kill(pod) => {
                stack.guardian.signal(pid(deployment, pod)?, Signal::SIGKILL).await?;
                Ok(format!("{pod} killed"))
            }
            Self::Hold(pod) => {
                stack.guardian.signal(pid(deployment, pod)?, Signal::SIGSTOP).await?;
                Ok(format!("{pod} held"))
            }
            Self::Release(pod) => {
                stack.guardian.signal(pid(deployment, pod)?, Signal::SIGCONT).await?;
                Ok(format!("{pod} released"))
            }
            Self::Restart(pod) => {
                stack.guardian.signal(pid(deployment, pod)?, Signal::SIGKILL).await?;
                stack.replace_pod(deployment, planned, pod).await?;
                Ok(format!("{pod} restarted"))
            }
            Self::ReloadEdge => {
                let edge = deployment.edge.as_ref().context("there is no edge to reload")?;
                edge.set_pods(&stack.guardian, &deployment.addresses()).await.map(String::from)
            }
            Self::AddPod => {
                let (pod, how) = stack.add_pod(deployment, planned).await?;
                Ok(format!("{pod} added, {how}"))
            }
        }
    }
}

fn pid(deployment: &Deployment, name: &str) -> anyhow::Result<i32> {
    let pod = deployment.pods.iter().find(|pod| pod.name == name);
    pod.and_then(|pod| pod.pid).with_context(|| format!("there is no process of {name}"))
}
