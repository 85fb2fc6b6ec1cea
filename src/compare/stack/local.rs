//! The local stack's pods: one `pushlab serve` child each, beside a real broker and a real database.

use anyhow::bail;

use super::guardian::Spawn;
use super::processes::Process;
use super::{Deployment, Pod, Stack};
use crate::compare::plan::{Accel, Broken, FaultKind, Planned, Scenario, Switch};

/// What every pod of a cell is told, whatever the stack.
#[must_use]
pub fn serve_args(planned: &Planned) -> Vec<String> {
    let accel = if planned.accel == Accel::No { "no" } else { "unset" };
    let max_age = format!("{}ms", planned.max_age.as_millis());
    let mut args = vec!["serve"];
    args.extend(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let heartbeat = format!("{}ms", planned.heartbeat.as_millis());
    args.extend(["--heartbeat", &heartbeat, "--accel-buffering", accel, "--max-age", &max_age]);
    if planned.anti_entropy == Switch::Off {
        args.extend(["--anti-entropy", "off"]);
    }
    if planned.fault == Some(FaultKind::PodTerm) {
        args.extend(["--drain", "3s", "--drain-grace", "1s"]); // within the cell's window
    }
    if planned.scenario == Scenario::Buffering {
        args.extend(["--drain", "0s", "--drain-grace", "0s"]); // its streams end at the first word
    }
    args.extend(planned.pod_flags.split_whitespace());
    args.into_iter().map(String::from).collect()
}

pub(super) async fn deploy(stack: &Stack, planned: &Planned) -> anyhow::Result<Deployment> {
    let names: Vec<_> = (1..=planned.pods).map(|number| format!("pod-{number}")).collect();
    let started = futures_util::future::try_join_all(names.iter().map(|name| pod(stack, planned, name))).await?;
    let (pods, processes) = started.into_iter().unzip();
    Ok(Deployment { pods, processes, ..Deployment::default() })
}

/// Starts one pod and waits until it serves.
pub(super) async fn pod(stack: &Stack, planned: &Planned, name: &str) -> anyhow::Result<(Pod, Process)> {
    let (Some(nats), Some(database)) = (&stack.nats, &stack.database) else { bail!("broker and database are not up") };
    let mut args = serve_args(planned);
    let more = ["--database-url", &database.url, "--nats-url", &nats.url, "--pod-name", name];
    args.extend(more.map(String::from));
    if name == "pod-1" && planned.broken != Broken::None {
        args.extend(["--break".to_owned(), planned.broken.name().to_owned()]);
    }
    let (mut pods, process) = serve(stack, args, name, 1).await?;
    Ok((pods.remove(0), process))
}

/// Starts `pushlab serve` and waits for the announcements of its pods.
pub(super) async fn serve(
    stack: &Stack,
    args: Vec<String>,
    name: &str,
    pods: usize,
) -> anyhow::Result<(Vec<Pod>, Process)> {
    let log = stack.guardian.folder().join(format!("{name}.log"));
    let _ = std::fs::remove_file(&log);
    let program = stack.pushlab.clone();
    let spawn = Spawn { program, args, log, lines: true, cpus: stack.cpus.stack.clone(), ..Spawn::default() };
    let mut process = stack.guardian.spawn(spawn).await?;
    let mut up = Vec::new();
    while up.len() < pods {
        let said = process.announced(name).await?;
        up.push(Pod { name: said.pod, listen: said.listen, admin: said.admin, pid: Some(process.pid) });
    }
    Ok((up, process))
}
