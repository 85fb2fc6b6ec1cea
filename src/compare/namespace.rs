//! A network of one's own: paths are black-holed by packet filters, and those must not be the machine's.
//!
//! The lab starts itself again in a new network namespace (`unshare --net`, which needs root) before it brings the stack
//! up; lab, servers, pods and generator then share a loopback that nobody else is on. Filters end with the namespace.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::stack::Deployment;

/// Says that this process is in a network namespace that the lab made.
const INSIDE: &str = "PUSHLAB_NETWORK_NAMESPACE";

/// A path that can be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// Between the edge and the pod of that name: everything from and to its public port.
    EdgeToPod(String),
    /// Between viewers and the edge: everything from and to the edge's port.
    ViewersToEdge,
}

impl Path {
    /// In words.
    #[must_use]
    pub fn title(&self) -> String {
        match self {
            Self::EdgeToPod(pod) => format!("the path between the edge and {pod}"),
            Self::ViewersToEdge => "the path between viewers and the edge".into(),
        }
    }

    /// The port whose packets are meant.
    pub(super) fn port(&self, deployment: &Deployment) -> anyhow::Result<String> {
        let address = match self {
            Self::EdgeToPod(name) => deployment.pods.iter().find(|pod| pod.name == *name).map(|pod| pod.listen.clone()),
            Self::ViewersToEdge => deployment.edge.as_ref().map(|edge| format!("127.0.0.1:{}", edge.server.port)),
        };
        let port = address.as_deref().and_then(|address| address.rsplit_once(':')).map(|(_, port)| port.to_owned());
        port.with_context(|| format!("there is no such path: {}", self.title()))
    }
}

/// Whether this process is where packets may be dropped.
#[must_use]
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Why there can be no namespace here; none: there can.
#[must_use]
pub fn why_not() -> Option<String> {
    if inside() {
        return None;
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    let tried = "ip link set lo up && iptables -w -A INPUT -i lo -p tcp --dport 9 -j DROP";
    let tried = Command::new("unshare").args(["--net", "sh", "-c", tried]).stdin(Stdio::null()).output();
    match tried {
        Ok(out) if out.status.success() => None,
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            Some(format!(
                "a network namespace with packet filters cannot be had: {}",
                said.lines().next().unwrap_or("")
            ))
        }
        Err(error) => Some(format!("unshare (util-linux) cannot be started: {error}")),
    }
}

/// Becomes this same command line in a new network namespace.
///
/// # Errors
/// When that is not possible; else it does not return.
pub fn enter() -> anyhow::Result<std::convert::Infallible> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]).arg(program);
    let error = command.args(std::env::args_os().skip(1)).env(INSIDE, "1").exec();
    bail!("cannot enter a network namespace: {error}")
}

/// Drops every packet from and to a port of the loopback.
pub(super) fn drop_packets(port: &str) -> anyhow::Result<()> {
    for side in ["--dport", "--sport"] {
        iptables(&["-A", "INPUT", "-i", "lo", "-p", "tcp", side, port, "-j", "DROP"])?;
    }
    Ok(())
}

/// Lets them pass again; how many were dropped.
pub(super) fn pass_packets(port: &str) -> anyhow::Result<u64> {
    let listed = iptables(&["-L", "INPUT", "-v", "-n", "-x"])?;
    let ours = listed.lines().filter(|line| line.contains(&format!("pt:{port}")));
    let dropped = ours.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum();
    for side in ["--dport", "--sport"] {
        iptables(&["-D", "INPUT", "-i", "lo", "-p", "tcp", side, port, "-j", "DROP"])?;
    }
    Ok(dropped)
}

/// Removes what is left of filters.
pub(super) fn pass_all() -> anyhow::Result<()> {
    if inside() {
        iptables(&["-F", "INPUT"])?;
    }
    Ok(())
}

/// Never outside of the lab's own namespace.
fn iptables(args: &[&str]) -> anyhow::Result<String> {
    if !inside() {
        bail!("packets are dropped only in a network namespace of the lab's own");
    }
    let out = Command::new("iptables").arg("-w").args(args).stdin(Stdio::null()).output().context("iptables")?;
    if !out.status.success() {
        bail!("iptables {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}
