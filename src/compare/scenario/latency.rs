//! Q1, and what most cells do: the generator runs, the stack is watched, faults come at their moments.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::compare::calibrate::create_posts;
use crate::compare::conduct::{Conducted, Moment};
use crate::compare::faults::{Fault, Step, Target};
use crate::compare::observe::prometheus::Observer;
use crate::compare::observe::{Gauges, Window, counters};
use crate::compare::plan::{FaultKind, Planned, Scenario, Schedule};
use crate::compare::stack::guardian::Spawn;
use crate::compare::stack::kubernetes::{Cluster, Generator, Placed, Used};
use crate::compare::stack::processes::Process;
use crate::compare::stack::{Cpus, Deployment, Stack};
use crate::domain::unix_micros;
use crate::load::{Scrape, differences, scrape_all};
use crate::result::{Marker, Observed, PodCounters, ProcessUse, RunResult, file};

/// A phase the generator has reached.
#[derive(Debug, Deserialize)]
struct Phase {
    phase: String,
}

/// The generator, as a child process or as Jobs of a cluster.
enum Load {
    Child(Process, PathBuf),
    Jobs(Box<Generator>),
}

/// What the generator tells.
enum News {
    Measure,
    Cooldown,
    /// Counters are to be read before anybody leaves; then it is to be told.
    Converged(oneshot::Sender<()>),
    Nothing,
    Over,
}

/// What it leaves behind.
struct Left {
    run: RunResult,
    /// Its clock − ours, in µs.
    skew_us: i64,
    /// What it used, where that is not seen from outside.
    used: Option<ProcessUse>,
}

impl Load {
    async fn start(stack: &Stack, deployment: &Deployment, planned: &Planned) -> anyhow::Result<Self> {
        let (base, streams) = ways(deployment, planned);
        if let Some(cluster) = &stack.cluster {
            let pod = deployment.pods.first().context("a release without pods")?;
            let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
            // All parts like the same posts, and only the lab reads counters.
            let posts = create_posts(&client, &format!("http://{}", pod.listen), planned.posts as usize).await?;
            let mut args = load_args(&base, &streams, &[], &Cpus::default(), planned, Path::new("/tmp/load.run.gz"));
            let posts: Vec<_> = posts.iter().map(ToString::to_string).collect();
            args.extend(["--post-ids".into(), posts.join(",")]);
            return Ok(Self::Jobs(Box::new(cluster.generate(planned, &args).await?)));
        }
        let folder = stack.guardian.folder().to_owned();
        let (out, log) = (folder.join("load.run.gz"), folder.join("load.log"));
        let _ = (std::fs::remove_file(&out), std::fs::remove_file(&log));
        let mut args = load_args(&base, &streams, &deployment.admin_urls(), &stack.cpus, planned, &out);
        if let Some(address) = &deployment.load_metrics {
            args.extend(["--metrics-listen".to_owned(), address.clone()]);
        }
        let spawn = Spawn { program: stack.pushlab.clone(), args, log, lines: true, ..Spawn::default() };
        Ok(Self::Child(stack.guardian.spawn(spawn).await?, out))
    }

    async fn news(&mut self) -> anyhow::Result<News> {
        match self {
            Self::Child(load, _) => {
                let Some(line) = load.lines.recv().await else { return Ok(News::Over) };
                let phase: Phase =
                    serde_json::from_str(&line).with_context(|| format!("the generator said {line:?}"))?;
                Ok(match phase.phase.as_str() {
                    "measure" => News::Measure,
                    "cooldown" => News::Cooldown,
                    _ => News::Nothing,
                })
            }
            Self::Jobs(jobs) => Ok(match jobs.moment().await {
                Some(Moment::Measure) => News::Measure,
                Some(Moment::Cooldown) => News::Cooldown,
                Some(Moment::Converged(read)) => News::Converged(read),
                None => News::Over,
            }),
        }
    }

    async fn cancel(self, stack: &Stack) {
        match self {
            Self::Child(load, _) => {
                let _ = stack.guardian.signal(load.pid, Signal::SIGKILL).await;
            }
            Self::Jobs(jobs) => jobs.cancel().await,
        }
    }

    async fn finish(self) -> anyhow::Result<Left> {
        match self {
            Self::Child(mut load, out) => {
                let ended = load.wait().await;
                // 3: the ledger found something with what the generator knows; it is asked again with all counters.
                if !matches!(ended.code, Some(0 | 3)) {
                    bail!("the generator ended with {}; {}", ended.how, load.log_tail());
                }
                Ok(Left { run: file::read(&out)?, skew_us: 0, used: None })
            }
            Self::Jobs(jobs) => {
                let Conducted { run, skew_us, rss_bytes } = jobs.finish().await?;
                let health = &run.header.generator;
                let used = ProcessUse {
                    name: "generator".into(),
                    user_s: health.cpu_s,
                    rss_bytes,
                    fds: health.fds,
                    ..ProcessUse::default()
                };
                Ok(Left { skew_us, used: Some(used), run })
            }
        }
    }
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
    let before = deployment.pods.clone();
    let mut cluster = match &stack.cluster {
        Some(cluster) => Some(Looks::begin(cluster.clone(), deployment).await?),
        None => None,
    };
    let gauges = Gauges::start(before.clone());
    let mut load = Load::start(stack, deployment, planned).await?;
    let (mut observed, mut steps) = (Observed::default(), VecDeque::from(steps));
    let (mut window, mut begun) = (None, None::<Instant>);
    let (mut last_words, mut in_vain): (Vec<PodCounters>, Vec<String>) = Default::default();
    let mut look = tokio::time::interval(Duration::from_secs(1));
    // Inputs: the generator's news, the next step's moment, in a cluster pods that come, shutdown.
    loop {
        let next = begun.and_then(|begun| Some(begun + steps.front()?.at));
        tokio::select! {
            news = load.news() => match (news?, &mut cluster) {
                (News::Over, _) => break,
                (News::Measure, Some(looks)) => {
                    begun = Some(Instant::now());
                    looks.used = Used::open(&deployment.pods).await;
                }
                (News::Cooldown, Some(looks)) => observed.processes = looks.used.close(&deployment.pods).await,
                (News::Measure, None) => {
                    begun = Some(Instant::now());
                    window = Some(Window::open(&watched(stack, deployment, &load)));
                }
                (News::Cooldown, None) => if let Some(window) = &window {
                    observed.processes = window.close(&watched(stack, deployment, &load));
                },
                (News::Converged(read), looks) => {
                    if let Some(looks) = looks {
                        looks.end(deployment).await?;
                    }
                    let _ = read.send(());
                }
                (News::Nothing, _) => {}
            },
            _ = look.tick(), if cluster.is_some() && planned.fault.is_some() => {
                if let Some(looks) = &cluster {
                    // A look that fails is done again a second later.
                    for pod in looks.cluster.refresh(deployment).await.unwrap_or_default() {
                        gauges.add(pod);
                    }
                }
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let Some(step) = steps.pop_front() else { continue };
                if let Fault::Kill(Target::Pod(name)) | Fault::Terminate(Target::Pod(name)) = &step.fault {
                    for pod in deployment.pods.iter().filter(|pod| pod.name == *name) {
                        last_words.push(counters(&pod.admin).await);
                    }
                }
                let (at_us, known) = (unix_micros(), deployment.pods.len());
                let done = step.fault.inject(stack, deployment, planned).await.context("the fault could not be done")?;
                for pod in &deployment.pods[known..] {
                    gauges.add(pod.clone());
                }
                // A kill takes hold at once; a pod that is added is there once the edge knows it.
                let at_us = if step.fault.counts_from_its_end() { unix_micros() } else { at_us };
                observed.markers.push(Marker { at_us, label: done.label, recovery: step.fault.is_recovery() });
                in_vain.extend(done.in_vain);
            }
            () = shutdown.cancelled() => {
                load.cancel(stack).await;
                bail!("interrupted");
            }
        }
    }
    let Left { mut run, skew_us, used } = load.finish().await?;
    match cluster {
        Some(looks) => run.header.pods = looks.counters,
        None => {
            for pod in deployment.pods.iter().filter(|pod| !before.contains(pod)) {
                run.header.pods.push(counters(&pod.admin).await);
            }
        }
    }
    // What a killed pod last said is kept for reading; the ledger knows that it is not all.
    for last in last_words {
        if let Some(pod) = run.header.pods.iter_mut().find(|pod| !pod.complete && pod.admin_url == last.admin_url) {
            pod.other = last.other;
        }
    }
    // Markers and gauges were stamped by this machine's clock.
    let origin = run.header.origin_us.saturating_add_signed(-skew_us);
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
    observed.processes.extend(used);
    run.header.observed = Some(observed);
    if let Some(placed) = &deployment.cluster {
        name_as_in_reports(&mut run, deployment, placed);
    }
    Ok(run)
}

/// What the lab reads of a cluster's pods itself: several generators would each count them.
struct Looks {
    cluster: Cluster,
    client: reqwest::Client,
    admin: Vec<String>,
    before: Vec<Scrape>,
    used: Used,
    counters: Vec<PodCounters>,
}

impl Looks {
    async fn begin(cluster: Cluster, deployment: &Deployment) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build()?;
        let admin = deployment.admin_urls();
        let before = scrape_all(&client, &admin).await;
        Ok(Self { cluster, client, admin, before, used: Used::default(), counters: Vec::new() })
    }

    /// Everybody has everything and nobody has left.
    async fn end(&mut self, deployment: &mut Deployment) -> anyhow::Result<()> {
        self.cluster.refresh(deployment).await?;
        let after = scrape_all(&self.client, &self.admin).await;
        self.counters = differences(&self.admin, &self.before, after);
        for pod in deployment.pods.iter().skip(self.admin.len()) {
            self.counters.push(counters(&pod.admin).await);
        }
        Ok(())
    }
}

/// A cluster's pods as `pod-1`, …, as everywhere else in reports; their own names stay in their admin URLs.
fn name_as_in_reports(run: &mut RunResult, deployment: &Deployment, placed: &Placed) {
    for pod in run.header.sessions.iter_mut().filter_map(|session| session.pod.as_mut()) {
        if let Some(alias) = placed.alias(pod) {
            *pod = alias.to_owned();
        }
    }
    for counters in &mut run.header.pods {
        let pod = deployment.pods.iter().find(|pod| counters.admin_url.ends_with(&pod.admin));
        if let Some(own) = pod.and_then(|pod| placed.name(&pod.name).ok()) {
            counters.admin_url = format!("http://{own}:9090");
        }
    }
}

fn watched(stack: &Stack, deployment: &Deployment, load: &Load) -> Vec<(String, i32)> {
    let mut watched = deployment.watched();
    watched.extend(stack.nats.iter().map(|nats| ("nats".to_owned(), nats.process.pid)));
    watched.extend(stack.database.iter().map(|database| ("mariadb".to_owned(), database.process.pid)));
    watched.extend(stack.observer.iter().flat_map(Observer::watched));
    if let Load::Child(process, _) = load {
        watched.push(("generator".into(), process.pid));
    }
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
