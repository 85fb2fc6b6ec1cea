//! Q1, and what most cells do: the generator runs, the stack is watched, faults come at their moments.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::compare::faults::{Fault, Step, Target};
use crate::compare::observe::prometheus::Observer;
use crate::compare::observe::{Gauges, Window, counters};
use crate::compare::plan::{FaultKind, Planned, Scenario, Schedule};
use crate::compare::stack::guardian::Spawn;
use crate::compare::stack::{Cpus, Deployment, Stack};
use crate::domain::unix_micros;
use crate::result::{Marker, Observed, PodCounters, RunResult, file};

/// A phase the generator has reached.
#[derive(Debug, Deserialize)]
struct Phase {
    phase: String,
}

/// Runs the generator against a deployment and does the steps at their moments. The result holds what was observed,
/// not yet its place in the plan.
///
/// # Errors
/// When the generator could not run, or `shutdown`.
pub async fn run(
    stack: &mut Stack,
    deployment: &mut Deployment,
    planned: &Planned,
    steps: Vec<Step>,
    shutdown: &CancellationToken,
) -> anyhow::Result<RunResult> {
    let folder = stack.guardian.folder().to_owned();
    let (out, log) = (folder.join("load.run.gz"), folder.join("load.log"));
    let _ = (std::fs::remove_file(&out), std::fs::remove_file(&log));
    let (base, streams) = ways(deployment, planned);
    let mut args = load_args(&base, &streams, &deployment.admin_urls(), &stack.cpus, planned, &out);
    if let Some(address) = deployment.load_metrics.as_ref().filter(|_| exports()) {
        args.extend(["--metrics-listen".to_owned(), address.clone()]);
    }
    let spawn = Spawn { program: stack.pushlab.clone(), args, log, lines: true, ..Spawn::default() };
    let before = deployment.pods.clone();
    let gauges = Gauges::start(before.clone());
    let mut load = stack.guardian.spawn(spawn).await?;
    let (mut observed, mut steps) = (Observed::default(), VecDeque::from(steps));
    let (mut window, mut begun) = (None, None::<Instant>);
    let (mut last_words, mut in_vain): (Vec<PodCounters>, Vec<String>) = Default::default();
    // Inputs: the generator's phase lines, the next step's moment, shutdown.
    loop {
        let next = begun.and_then(|begun| Some(begun + steps.front()?.at));
        tokio::select! {
            line = load.lines.recv() => {
                let Some(line) = line else { break };
                let phase: Phase = serde_json::from_str(&line).with_context(|| format!("the generator said {line:?}"))?;
                match phase.phase.as_str() {
                    "measure" => {
                        begun = Some(Instant::now());
                        window = Some(Window::open(&watched(stack, deployment, load.pid)));
                    }
                    "cooldown" => if let Some(window) = &window {
                        observed.processes = window.close(&watched(stack, deployment, load.pid));
                    },
                    _ => {}
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let Some(step) = steps.pop_front() else { continue };
                if let Fault::Kill(Target::Pod(name)) | Fault::Terminate(Target::Pod(name)) = &step.fault {
                    for pod in deployment.pods.iter().filter(|pod| pod.name == *name) {
                        last_words.push(counters(&pod.admin).await);
                    }
                }
                let at_us = unix_micros();
                let done = step.fault.inject(stack, deployment, planned).await.context("the fault could not be done")?;
                if let (Fault::AddPod, Some(pod)) = (&step.fault, deployment.pods.last()) {
                    gauges.add(pod.clone());
                }
                // A kill takes hold at once; a pod that is added is there once the edge knows it.
                let at_us = if step.fault.counts_from_its_end() { unix_micros() } else { at_us };
                observed.markers.push(Marker { at_us, label: done.label, recovery: step.fault.is_recovery() });
                in_vain.extend(done.in_vain);
            }
            () = shutdown.cancelled() => {
                let _ = stack.guardian.signal(load.pid, Signal::SIGKILL).await;
                bail!("interrupted");
            }
        }
    }
    let ended = load.wait().await;
    // 3: the ledger found something with what the generator knows; it is asked again with all counters.
    if !matches!(ended.code, Some(0 | 3)) {
        bail!("the generator ended with {}; {}", ended.how, load.log_tail());
    }
    let mut run = file::read(&out)?;
    for pod in deployment.pods.iter().filter(|pod| !before.contains(pod)) {
        run.header.pods.push(counters(&pod.admin).await);
    }
    // What a killed pod last said is kept for reading; the ledger knows that it is not all.
    for last in last_words {
        if let Some(pod) = run.header.pods.iter_mut().find(|pod| !pod.complete && pod.admin_url == last.admin_url) {
            pod.other = last.other;
        }
    }
    let origin = run.header.origin_us;
    observed.connections = gauges.stop(origin);
    for marker in &mut observed.markers {
        marker.at_us = marker.at_us.saturating_sub(origin);
    }
    if !steps.is_empty() {
        run.header.generator.problems.push("the fault did not fire: the window ended before".into());
    }
    run.header.generator.problems.extend(in_vain.into_iter().map(|why| format!("the fault did not fire: {why}")));
    if let Some(generator) = observed.processes.iter_mut().find(|process| process.name == "generator") {
        // Keeping its core awake is no work.
        generator.user_s = (generator.user_s - run.header.generator.awake_s).max(0.0);
    }
    run.header.observed = Some(observed);
    Ok(run)
}

/// Whether this generator can offer metrics (`load --metrics-listen`).
fn exports() -> bool {
    use clap::Args;
    let command = crate::load::Config::augment_args(clap::Command::new("load"));
    command.get_arguments().any(|argument| argument.get_long() == Some("metrics-listen"))
}

fn watched(stack: &Stack, deployment: &Deployment, generator: i32) -> Vec<(String, i32)> {
    let mut watched = deployment.watched();
    watched.extend(stack.nats.iter().map(|nats| ("nats".to_owned(), nats.process.pid)));
    watched.extend(stack.database.iter().map(|database| ("mariadb".to_owned(), database.process.pid)));
    watched.extend(stack.observer.iter().flat_map(Observer::watched));
    watched.push(("generator".into(), generator));
    watched
}

/// Where likes go, and where streams go if elsewhere: while the path between viewers and edge is black, likes go straight
/// to the pods, so that there is something to miss.
fn ways(deployment: &Deployment, planned: &Planned) -> (Vec<String>, Vec<String>) {
    let base = deployment.base_urls();
    match planned.fault {
        Some(FaultKind::BlackholeViewerEdge) => {
            (deployment.pods.iter().map(|pod| format!("http://{}", pod.listen)).collect(), base)
        }
        _ => (base, Vec::new()),
    }
}

/// The generator's command line. The lines of two arms differ in `--arm` alone; a test holds it to that.
pub(in crate::compare) fn load_args(
    base: &[String],
    streams: &[String],
    admin: &[String],
    cpus: &Cpus,
    planned: &Planned,
    out: &Path,
) -> Vec<String> {
    let mut args = vec!["load".to_owned()];
    let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
    flag("base-url", base.join(","));
    if !streams.is_empty() {
        flag("stream-url", streams.join(","));
    }
    if !admin.is_empty() {
        flag("admin-url", admin.join(","));
    }
    flag("arm", planned.arm.name().into());
    flag("viewers", planned.viewers.to_string());
    flag("likers", planned.likers.to_string());
    flag("rate", planned.rate.to_string());
    flag("posts", planned.posts.to_string());
    flag("schedule", if planned.schedule == Schedule::Poisson { "poisson" } else { "uniform" }.into());
    flag("warmup", ms(planned.phases.warmup));
    flag("measure", ms(planned.phases.measure));
    flag("cooldown", ms(planned.phases.cooldown));
    flag("seed", planned.seed.to_string());
    flag("heartbeat", ms(planned.heartbeat));
    flag("sse-client", planned.sse_client.name().into());
    flag("progress", "none".into());
    if !cpus.generator.is_empty() {
        flag("cpus", cpus.generator.iter().map(usize::to_string).collect::<Vec<_>>().join(","));
    }
    if let Some((mean, sigma)) = planned.population {
        flag("population-mean", ms(mean));
        flag("population-sigma", sigma.to_string());
    }
    if planned.slow_readers > 0 {
        flag("slow-readers", planned.slow_readers.to_string());
    }
    flag("out", out.display().to_string());
    if planned.scenario == Scenario::Faults {
        args.push("--idempotent".into());
    }
    args
}

fn ms(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
