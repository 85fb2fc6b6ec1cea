//! The main job: bring a stack up, run a plan, write the report.

/// What this machine can do at most.
pub mod calibrate;
/// Holds the parts of one run together.
pub mod conduct;
/// A proxy of ours that holds events for a known time.
pub mod delay_proxy;
/// nginx and HAProxy before the pods.
pub mod edges;
/// The machine and what is installed on it.
pub mod environment;
/// What is done to a running stack.
pub mod faults;
/// A network of the lab's own, in which paths can be cut.
pub mod namespace;
/// What is seen from outside.
pub mod observe;
/// What is equal between the arms.
pub mod parity;
/// What is run, as data.
pub mod plan;
/// One cell after the other.
pub mod runner;
/// One file per question.
pub mod scenario;
/// Does the instrument find what was put there?
pub mod selftest;
/// The stacks a plan runs on.
pub mod stack;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use crate::domain::unix_micros;
use crate::report;
use crate::result::Environment;
use calibrate::Capacity;
use observe::prometheus::Observer;
use plan::{Plan, Planned, estimate};
use runner::{Folder, fit, people};
use stack::kubernetes::{Cluster, Options};
use stack::remote::Urls;
use stack::services::Service;
use stack::{Cpus, Kind, Stack};

/// What must be said where SSE clients are not our own.
const EMULATED: &str = "EventSource and pages around it are emulated by the generator by their documented rules (no browser ran): \
    a native one gives up on any answer but a 200 stream and never notices silence; a watchdog waits for two heartbeats without an event.";

/// What must be said where a Prometheus watched.
const OBSERVED: &str = "A Prometheus and its exporters watched once per second from the stack's own CPUs: what they cost is in these figures \
    (processes: prometheus and the exporters).";

/// Options.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Plans: quick (a minute), seed (the original notes' matrix, 38 min), full (eight pairs per claim, \
    two hours and a half), faults (everything that can fail here, 20 min), incidents (three of them, for --observe, 3 min), \
    kind (for --stack kubernetes on a small cluster, 12 min), or a file that ends in .toml. A run that was interrupted goes on with the same --out."
)]
pub struct Config {
    /// What to run on; by default `local` when its servers are installed, else `embedded`
    #[arg(long, value_enum)]
    pub stack: Option<Kind>,
    /// quick, seed, full, faults, writes, incidents, kind, or FILE.toml
    #[arg(long, default_value = "quick", value_name = "PLAN")]
    pub plan: String,
    /// Only the cells of this question: Q1, Q2, Q4, Q12, Q13
    #[arg(long, value_name = "Qn")]
    pub question: Option<String>,
    /// Result folder; finished cells in it are kept [default: results/PLAN-TIME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Base URLs of the service (`--stack remote`)
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub base_url: Vec<String>,
    /// Admin URLs of all its pods (`--stack remote`); without them the ledger cannot compare counters
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub admin_url: Vec<String>,
    /// Watch everything with a Prometheus and keep the dashboards' key panels in the report (`--stack local`)
    #[arg(long)]
    pub observe: bool,
    /// Print the cells in their order and the estimated duration, run nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The cluster
    #[command(flatten)]
    pub kubernetes: Options,
}

/// Runs it until done or `shutdown`.
///
/// # Errors
/// A message for the user.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    let (plan, text) = Plan::load(&config.plan)?;
    let (mut kind, mut why) = choose(&config);
    let runnable = |kind| !fit(kind, None, plan.expand(config.question.as_deref())).0.is_empty();
    if config.dry_run && config.stack.is_none() && kind == Kind::Embedded && !runnable(kind) {
        (kind, why) = (Kind::Local, format!("the plan's cells need it; here {why}"));
    }
    if config.observe {
        if kind != Kind::Local {
            bail!(
                "--observe watches the local stack, and this is {}; leave it out, or see `pushlab doctor`",
                kind.name()
            );
        }
        Service::Prometheus.require()?;
    }
    let cluster = match kind {
        Kind::Kubernetes => Some(Cluster::connect(&config.kubernetes).await?),
        _ => None,
    };
    let (cells, mut notes) = cells(&plan, kind, cluster.as_ref(), config.question.as_deref())?;
    let why = cluster.as_ref().map_or(why, Cluster::place);
    let cuts_paths = cells.iter().any(|cell| cell.fault.is_some_and(plan::FaultKind::needs_namespace));
    if cuts_paths && !config.dry_run && !namespace::inside() {
        namespace::enter()?;
    }
    println!("stack {}: {why}", kind.name());
    for note in &notes {
        println!("{note}");
    }
    if cells.iter().any(|cell| cell.sse_client != plan::SseClient::Fetch) {
        notes.push(EMULATED.into());
    }
    if cuts_paths {
        notes.push("All of it ran in a network namespace of its own, in which packets can be dropped.".into());
    }
    notes.insert(0, format!("Stack {}: {why}.", kind.name()));
    notes.extend(cluster.iter().flat_map(Cluster::notes));
    let cpus = if cluster.is_some() { Cpus::default() } else { Cpus::from_plan(&plan.cpus)? };
    println!("plan {}: {} cells, about {}", plan.name, cells.len(), people(estimate(&cells)));
    if config.dry_run {
        for cell in &cells {
            println!("{:>4} {:>4} s  {}", cell.cell.index + 1, cell.duration().as_secs(), cell.cell.id);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let path = config.out.clone().unwrap_or_else(|| default_folder(&plan.name));
    let folder = Folder::open(&path, &text)?;
    let _limit = environment::raise_open_files();
    let remote = Urls { base: config.base_url.clone(), admin: config.admin_url.clone() };
    if kind == Kind::Remote {
        remote.check().await?;
    }
    let mut stack = Stack::start(kind, cpus, remote).await.context("the stack does not come up")?;
    stack.cluster = cluster;
    let done = async {
        if config.observe {
            let observer =
                Observer::start(&stack, &observe::RULES).await.context("what is to watch does not come up")?;
            println!("prometheus: {}", observer.server.url);
            for missing in &observer.missing {
                println!("{missing}");
            }
            notes.push(OBSERVED.into());
            stack.observer = Some(observer);
        }
        measure(&config, &plan, &mut stack, &cells, notes, &folder, &shutdown).await
    };
    let done = done.await;
    if let Some(cluster) = &stack.cluster
        && let Err(error) = cluster.close().await
    {
        eprintln!("the release could not be left as it was found: {error:#}");
    }
    stack.guardian.end().await;
    let outcome = done?;
    if shutdown.is_cancelled() {
        let saved = outcome.ran + outcome.kept;
        bail!(
            "interrupted with {saved} of {} cells saved; go on with: {} --out {}",
            cells.len(),
            command(&config, kind),
            path.display()
        );
    }
    finish(&folder.0, kind, &outcome)
}

/// The stack asked for, or the best one that is possible here, and why.
fn choose(config: &Config) -> (Kind, String) {
    let missing: Vec<_> = Service::ALL.into_iter().filter(|s| s.required() && s.find().is_none()).collect();
    let names: Vec<_> = missing.iter().map(|service| service.programs()[0]).collect();
    match config.stack {
        Some(kind) => (kind, "asked for by --stack".into()),
        None if !config.base_url.is_empty() => (Kind::Remote, "because of --base-url".into()),
        None if missing.is_empty() => (Kind::Local, "nats-server, a database server and nginx are installed".into()),
        None => {
            let limits = "no proxy, no broker between processes, no row lock";
            (Kind::Embedded, format!("{} not installed; {limits}: no latency ranking of transports", names.join(", ")))
        }
    }
}

/// The plan's cells that this stack can run.
fn cells(
    plan: &Plan,
    kind: Kind,
    cluster: Option<&Cluster>,
    question: Option<&str>,
) -> anyhow::Result<(Vec<Planned>, Vec<String>)> {
    let all = plan.expand(question);
    if all.is_empty() {
        let questions: std::collections::BTreeSet<_> = plan.cells.iter().map(|grid| grid.question.as_str()).collect();
        let questions = Vec::from_iter(questions).join(", ");
        bail!("the plan {} has no cell for {}; it has {questions}", plan.name, question.unwrap_or("any question"));
    }
    let (cells, notes) = fit(kind, cluster, all);
    if let (true, Some(_)) = (cells.is_empty(), cluster) {
        bail!("no cell of the plan {} can be run on this release: {}", plan.name, notes.join(" "));
    }
    if cells.is_empty() {
        bail!("no cell of the plan {} can be run on the {} stack; see `pushlab doctor`", plan.name, kind.name());
    }
    Ok((cells, notes))
}

/// Calibrates, writes down the circumstances, runs the cells.
async fn measure(
    config: &Config,
    plan: &Plan,
    stack: &mut Stack,
    cells: &[Planned],
    notes: Vec<String>,
    folder: &Folder,
    shutdown: &CancellationToken,
) -> anyhow::Result<runner::Outcome> {
    let kept = folder.0.join("environment.json");
    let before: Option<Environment> = std::fs::read(&kept).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut capacity = None;
    if !matches!(stack.kind, Kind::Remote | Kind::Kubernetes) {
        let first =
            cells.iter().find(|cell| cell.broken == plan::Broken::None).context("no sound cell to calibrate")?;
        let deployment = stack.deploy(first).await?;
        let measured = Capacity::measure(&deployment, &stack.cpus).await;
        stack.end(deployment).await;
        let measured = measured.context("the calibration failed")?;
        let of = measured.named();
        println!(
            "capacity here: {} likes/s on one post, {} over a hundred, {} raw writes/s by one thread",
            of["likes_per_s_one_post"], of["likes_per_s_hundred_posts"], of["raw_writes_per_s_one_thread"]
        );
        capacity = Some(measured);
    }
    let mut facts = environment::facts();
    if let Some(cluster) = &stack.cluster {
        // This machine only holds the threads.
        facts.retain(|name, _| ["pushlab", "build"].contains(&name.as_str()));
        facts.extend(cluster.facts());
    }
    for (name, cpus) in [("cpus of the generator", &stack.cpus.generator), ("cpus of the stack", &stack.cpus.stack)] {
        facts.insert(name.into(), if cpus.is_empty() { "not pinned".into() } else { format!("{cpus:?}") });
    }
    for edge in edges::Edge::ALL.into_iter().filter(|edge| cells.iter().any(|cell| cell.edge.edge == *edge)) {
        facts.insert(format!("{edge} counts"), edge.counts().into());
    }
    let environment = Environment {
        stack: stack.kind.name().into(),
        notes,
        plan: plan.name.clone(),
        command: command(config, stack.kind),
        started: before.map_or_else(|| unix_micros() / 1_000_000, |environment| environment.started),
        facts,
        parity: parity::rows(stack.kind, &stack.cpus, cells),
        calibration: capacity.as_ref().map_or_else(BTreeMap::new, Capacity::named),
    };
    std::fs::write(&kept, serde_json::to_vec_pretty(&environment)?)?;
    runner::run(stack, cells, folder, capacity, shutdown).await
}

/// Writes the report and says what was found. Exit 3 for a ledger violation, 1 for cells that could not be run.
fn finish(path: &Path, kind: Kind, outcome: &runner::Outcome) -> anyhow::Result<ExitCode> {
    let written = report::write(path).context("the report could not be written; try again: pushlab report DIR")?;
    println!();
    for answer in &written.answers {
        println!("{answer}");
    }
    let wrong = written.violations.len();
    match wrong {
        0 => println!("ledger: every version is accounted for in all {} runs", written.runs),
        _ => println!("ledger: {wrong} violations in {} runs", written.runs),
    }
    for violation in &written.violations {
        println!("  {violation}");
    }
    if outcome.kept > 0 {
        println!("{} cells were there from before", outcome.kept);
    }
    println!("report: {}", written.index.display());
    let lines = environment::install_lines(|service| !service.observes());
    if kind == Kind::Embedded && !lines.is_empty() {
        println!("for a real broker, database and proxy (--stack local) install them:");
        for line in lines {
            println!("  {line}");
        }
    }
    if wrong == 0 && !outcome.failed.is_empty() {
        bail!(
            "{} cells could not be run; the first: {}: {}",
            outcome.failed.len(),
            outcome.failed[0].0,
            outcome.failed[0].1
        );
    }
    Ok(written.exit_code())
}

/// The command that repeats this.
fn command(config: &Config, kind: Kind) -> String {
    let mut words =
        vec!["pushlab compare".to_owned(), format!("--stack {}", kind.name()), format!("--plan {}", config.plan)];
    if kind == Kind::Kubernetes {
        let Options { context, namespace, release, parallelism, load_nodes } = &config.kubernetes;
        for (flag, value) in [("context", context), ("namespace", namespace), ("release", release)] {
            words.extend(value.iter().map(|value| format!("--{flag} {value}")));
        }
        words.push(format!("--parallelism {parallelism} --load-nodes {}={}", load_nodes.0, load_nodes.1));
    }
    words.extend(config.question.iter().map(|question| format!("--question {question}")));
    words.extend(config.observe.then(|| "--observe".to_owned()));
    for (flag, urls) in [("--base-url", &config.base_url), ("--admin-url", &config.admin_url)] {
        if !urls.is_empty() {
            words.push(format!("{flag} {}", urls.join(",")));
        }
    }
    words.join(" ")
}

/// `results/quick-2026-11-23T05-29-21Z`.
fn default_folder(plan: &str) -> PathBuf {
    let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(':', "-");
    Path::new("results").join(format!("{plan}-{time}"))
}
