//! One run from its first request to its file.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use tokio_util::sync::CancellationToken;

use super::config::{Config, SseClient};
use super::control::{Control, Gate};
use super::liker::{Channel, Liked, LikerOptions, Likers};
use super::live::{Exporter, Live};
use super::progress::Display;
use super::recorder::{self, Recorder, Shared};
use super::target::Target;
use super::viewer::{Behind, ViewerOptions, Viewers, visits};
use super::{api, limits, pacer, pods};
use crate::affinity;
use crate::bearer;
use crate::domain::{Arm, PostId, Transport};
use crate::result::summary::Account;
use crate::result::{self, FORMAT, GeneratorHealth, Header, RunResult, file, ledger};

/// The exit code that says: the ledger found a violation.
const VIOLATION: u8 = 3;
/// A step of the real-time clock that spoils latencies, in µs.
const CLOCK_STEP_US: i64 = 500;

/// Runs it until done or `shutdown`.
///
/// # Errors
/// A message for the user.
pub(super) async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    config.validate()?;
    let control = match config.control {
        Some(address) => Some(Control::listen(address, config.out.clone()).await?),
        None => None,
    };
    let (run, exporter) = tokio::select! {
        run = measure(&config, control.as_ref()) => run?,
        () = shutdown.cancelled() => bail!("interrupted: no run file was written"),
    };
    let (out, part) = (config.out.clone(), config.part);
    let account = tokio::task::spawn_blocking(move || {
        file::write(&out, &run)?;
        // A part alone knows neither the others' likes nor their viewers.
        anyhow::Ok(if part.is_whole() { ledger::account(&run) } else { Account::default() })
    });
    let account = account.await??;
    if let Some(control) = &control {
        tokio::select! {
            passed = control.pass(Gate::Saved) => { passed?; }
            () = shutdown.cancelled() => {}
        }
    }
    for violation in &account.violations {
        eprintln!("load: VIOLATION {violation}");
    }
    if exporter.is_some() {
        drop(tokio::time::timeout(config.metrics_linger, shutdown.cancelled()).await);
    }
    Ok(if account.closes() { ExitCode::SUCCESS } else { ExitCode::from(VIOLATION) })
}

/// Stops the pacer when the run ends in any way.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

async fn measure(config: &Config, control: Option<&Control>) -> anyhow::Result<(RunResult, Option<Exporter>)> {
    let streams = if config.stream_url.is_empty() { &config.base_url } else { &config.stream_url };
    let bearer = config.bearer.read()?;
    let stream_targets = Target::parse_all(streams, bearer.as_ref())?;
    let like_targets = Target::parse_all(&config.base_url, bearer.as_ref())?;
    let mut plan = visits(
        config.viewers,
        config.slow_readers,
        config.to_run_config().population.as_ref(),
        config.length(),
        config.seed,
    );
    // Every viewer keeps its number: what it watches and where it connects to is as in the whole.
    plan.retain(|visit| config.part.takes(visit.viewer as usize));
    // Populations come and go: at most a few times their mean are there at once.
    let at_once =
        (u64::from(config.viewers) * if config.population_mean.is_some() { 3 } else { 1 }).min(plan.len() as u64);
    limits::allow_files(at_once + u64::from(config.slow_readers) + u64::from(config.likers) + 100)?;
    affinity::pin_process(&config.cpus).context("--cpus")?;
    let awake = limits::Awake::start(&config.cpus);

    let timeout = Duration::from_secs(10);
    let client = bearer::client(bearer.as_ref()).timeout(timeout).build()?;
    // The admin ports ask for no token, and so they are shown none.
    let admin = bearer::client(None).timeout(timeout).build()?;
    let base = &config.base_url[0];
    let posts = match &config.post_ids[..] {
        [] => api::create_posts(&client, base, config.posts).await?,
        given => given.to_vec(),
    };
    let initial = api::states(&client, base, &posts).await?;
    let before = pods::scrape_all(&admin, &config.admin_url).await;

    let due = pacer::schedule(config.schedule, config.rate, config.post_count(), config.length(), config.seed);
    let due: Vec<_> = due.into_iter().enumerate().filter(|(i, _)| config.part.takes(*i)).map(|(_, due)| due).collect();
    let live = config.metrics_listen.map(|_| Live::new(config.arm.transport(), &initial, &due));
    let shared = Arc::new(Shared { live, ..Shared::new() });
    let exporter = match config.metrics_listen {
        Some(address) => Some(Exporter::start(address, Arc::clone(&shared)).await?),
        None => None,
    };
    let first_viewers = plan.iter().filter(|visit| visit.arrives_us.is_none()).count();
    let threads = config.cpus.len().clamp(1, plan.len().max(1));
    let viewers = Viewers::start(
        &viewer_options(config, stream_targets, posts.clone()),
        std::mem::take(&mut plan),
        &initial,
        threads,
        &shared,
    )?;
    let likers = Likers::start(liker_options(config, like_targets, posts.clone(), &shared), &due, &shared)?;
    let display = Display::new(config.progress, config.length().as_secs());
    wait_until_connected(config, first_viewers, &shared, &viewers, &likers, &display).await?;

    // Everything is up: the run begins, a little later so that the first likes are not late; all its parts at once.
    let soon = shared.clock.now() + 50_000;
    let told = pass(control, Gate::Connected).await?;
    let start = told.map_or(soon, |unix_us| shared.clock.relative(unix_us));
    let too_late = told.is_some() && start < shared.clock.now();
    let at = |duration: Duration| start + u32::try_from(duration.as_micros()).unwrap_or(u32::MAX / 2);
    let ends = [at(config.warmup), at(config.warmup + config.measure), at(config.length())];
    shared.window[0].store(ends[0], Ordering::Relaxed);
    shared.window[1].store(ends[1], Ordering::Relaxed);
    likers.begin(start);
    viewers.begin(start);
    let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
    let pacing = std::thread::Builder::new().name("pacer".into()).spawn({
        let (clock, stop, submit) = (shared.clock, Arc::clone(&stop.0), likers.submitter());
        move || {
            limits::prompt(limits::Rank::Pacer);
            pacer::run(&clock, start, &due, &stop, submit);
        }
    });
    let pacing = pacing.context("cannot start the pacer's thread")?;

    let mut health = phases(start, ends, &shared, (&viewers, &likers), &awake, &display).await?;
    viewers.settle();
    pacing.join().ok().context("the pacer panicked")?;
    let patience = if config.idempotent { config.converge.max(config.like_timeout) } else { config.like_timeout };
    drain_likes(patience + Duration::from_millis(500), &likers, &shared).await;
    let liked = likers.stop()?;
    // No part may ask for the final values before the last like of all has its outcome, or leave before all have seen them.
    pass(control, Gate::Liked).await?;
    let (finals, converged) = converge(config, &client, &posts, &viewers).await?;
    pass(control, Gate::Converged).await?;
    let after = pods::scrape_all(&admin, &config.admin_url).await;
    let step = shared.clock.step_us();
    let recorders = viewers.stop()?;
    display.phase("done");

    if step.abs() > CLOCK_STEP_US {
        health.problems.push(format!("the clock was stepped by {step} µs during the run"));
    }
    if too_late {
        health.problems.push("it was told to begin at a time that had passed".into());
    }
    fill_health(&mut health, config, &liked, &recorders);
    let (sessions, events, arrivals) = recorder::merge(recorders);
    let header = Header {
        format: FORMAT,
        pushlab: env!("CARGO_PKG_VERSION").into(),
        cell: None,
        config: config.to_run_config(),
        origin_us: shared.clock.origin_us,
        warmup_end_us: ends[0].into(),
        measure_end_us: ends[1].into(),
        cooldown_end_us: ends[2].into(),
        posts,
        sessions,
        finals,
        initial,
        converged,
        generator: health,
        pods: pods::differences(&config.admin_url, &before, after),
        observed: None,
    };
    Ok((RunResult { header, likes: liked.likes, events, arrivals }, exporter))
}

/// Waits at a gate, if there are any; when to go on, in Unix µs, where that was said.
async fn pass(control: Option<&Control>, gate: Gate) -> anyhow::Result<Option<u64>> {
    match control {
        Some(control) => control.pass(gate).await,
        None => Ok(None),
    }
}

fn viewer_options(config: &Config, targets: Vec<Target>, posts: Vec<PostId>) -> ViewerOptions {
    ViewerOptions {
        transport: config.arm.transport(),
        targets,
        posts,
        heartbeat: config.heartbeat,
        connect_rate: config.connect_rate.div_ceil(config.part.of),
        gzip: config.accept_gzip && config.arm.transport() == Transport::Sse,
        client: if config.arm.transport() == Transport::Sse { config.sse_client } else { SseClient::Fetch },
        seed: config.seed.wrapping_add(1_000 * u64::from(config.part.number - 1)),
    }
}

fn liker_options(config: &Config, targets: Vec<Target>, posts: Vec<PostId>, shared: &Shared) -> LikerOptions {
    LikerOptions {
        channel: if config.arm == Arm::StompSend { Channel::Send } else { Channel::Post },
        targets,
        posts,
        likers: if config.rate > 0.0 { config.part.share(config.likers).max(1) } else { 0 },
        timeout: config.like_timeout,
        keys: config
            .idempotent
            .then(|| format!("{:x}-{:x}-{}", shared.clock.origin_us, std::process::id(), config.part.number)),
        heartbeat: config.heartbeat,
        connect_rate: config.connect_rate.div_ceil(config.part.of),
        seed: config.seed.wrapping_add(1_000 * u64::from(config.part.number - 1)),
    }
}

async fn tick() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

fn check_threads(viewers: &Viewers, likers: &Likers) -> anyhow::Result<()> {
    ensure!(!viewers.failed(), "a viewer thread ended before its time");
    ensure!(!likers.failed(), "the likers' thread ended before its time");
    Ok(())
}

/// All viewers have their snapshot and all likers are ready; or nearly all, after long enough.
async fn wait_until_connected(
    config: &Config,
    wanted: usize,
    shared: &Shared,
    viewers: &Viewers,
    likers: &Likers,
    display: &Display,
) -> anyhow::Result<()> {
    let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
    let wanted_likers = if config.rate > 0.0 { config.part.share(config.likers).max(1) } else { 0 };
    let connecting = u64::from(wanted.max(wanted_likers)) / u64::from(config.connect_rate);
    let deadline = Instant::now() + Duration::from_secs(20 + 2 * connecting);
    let mut show_at = Instant::now() + Duration::from_secs(1);
    loop {
        let (joined, ready) = (shared.joined.load(Ordering::Relaxed), shared.likers.load(Ordering::Relaxed));
        if joined >= wanted && ready >= wanted_likers {
            break;
        }
        if Instant::now() >= deadline {
            ensure!(joined > 0 || wanted == 0, "no viewer got a snapshot from {:?}", config.stream_url);
            ensure!(ready > 0 || wanted_likers == 0, "no liking user could connect to {:?}", config.base_url);
            eprintln!(
                "load: only {joined} of {wanted} viewers and {ready} of {wanted_likers} likers are connected; going on"
            );
            break;
        }
        check_threads(viewers, likers)?;
        if Instant::now() >= show_at {
            show_at += Duration::from_secs(1);
            display.show(0, shared);
        }
        tick().await;
    }
    display.phase("connected");
    Ok(())
}

/// Sleeps through the phases, announcing them, and looks at the generator itself meanwhile.
async fn phases(
    start: u32,
    ends: [u32; 3],
    shared: &Shared,
    (viewers, likers): (&Viewers, &Likers),
    awake: &limits::Awake,
    display: &Display,
) -> anyhow::Result<GeneratorHealth> {
    let mut health = GeneratorHealth::default();
    let middle = u32::midpoint(ends[0], ends[1]);
    let (mut cpu, mut shown) = (0.0, u32::MAX);
    let mut steps =
        [(start, "warmup"), (ends[0], "measure"), (middle, ""), (ends[1], "cooldown"), (ends[2], "")].into_iter();
    let mut next = steps.next();
    while let Some((at, phase)) = next {
        let now = shared.clock.now();
        if now < at {
            let second = now.saturating_sub(start) / 1_000_000;
            if second != shown {
                shown = second;
                display.show(second.into(), shared);
                check_threads(viewers, likers)?;
            }
            let wait = (at - now).min(200_000);
            tokio::time::sleep(Duration::from_micros(wait.into())).await;
            continue;
        }
        match phase {
            "measure" => {
                (cpu, health.awake_s) = (limits::cpu_seconds(), awake.seconds());
                health.stolen_s = limits::stolen_seconds();
            }
            "cooldown" => {
                health.stolen_s = limits::stolen_seconds() - health.stolen_s;
                health.awake_s = awake.seconds() - health.awake_s;
                health.cpu_s = (limits::cpu_seconds() - cpu - health.awake_s).max(0.0);
            }
            "" if at == middle => {
                health.viewer_connections = shared.open.load(Ordering::Relaxed);
                health.liker_connections = shared.likers.load(Ordering::Relaxed);
                health.fds = limits::open_files();
            }
            _ => {}
        }
        if !phase.is_empty() {
            display.phase(phase);
        }
        next = steps.next();
    }
    health.window_s = f64::from(ends[1] - ends[0]) / 1e6;
    Ok(health)
}

/// Waits until every like has its outcome, or `patience` is over.
async fn drain_likes(patience: Duration, likers: &Likers, shared: &Shared) {
    let deadline = Instant::now() + patience;
    while likers.open() > 0 && Instant::now() < deadline && !likers.failed() {
        tick().await;
    }
    tracing::debug!(answered = shared.answered.load(Ordering::Relaxed), open = likers.open(), "likes are done");
}

/// Asks for the final values and waits until every viewer has them.
async fn converge(
    config: &Config,
    client: &reqwest::Client,
    posts: &[PostId],
    viewers: &Viewers,
) -> anyhow::Result<(Vec<(u64, u64)>, bool)> {
    let deadline = Instant::now() + config.converge;
    let mut asked: Option<Vec<(u64, u64)>> = None;
    loop {
        let late = Instant::now() >= deadline;
        // A like of unknown outcome may still be committed: the states count when two readings agree.
        match api::states(client, &config.base_url[0], posts).await {
            Ok(states) if asked.as_ref() == Some(&states) => {
                let versions: Vec<_> = states.iter().map(|(_, version)| *version).collect();
                let Behind { behind, beyond } = tokio::task::block_in_place(|| viewers.behind(&versions));
                if behind == 0 || late {
                    tracing::debug!(behind, beyond, "viewers against the final values");
                    return Ok((states, behind == 0));
                }
            }
            Ok(states) => asked = Some(states),
            Err(error) if late => return Err(error.context("the final values could not be had")),
            Err(_) => {}
        }
        if late && Instant::now() >= deadline + Duration::from_secs(5) {
            bail!("the posts' states do not come to rest: does somebody else like them?");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn quantiles(histogram: &Histogram<u64>) -> [f64; 3] {
    if histogram.is_empty() { [0.0; 3] } else { [0.5, 0.99, 0.999].map(|q| histogram.value_at_quantile(q) as f64) }
}

fn fill_health(health: &mut GeneratorHealth, config: &Config, liked: &Liked, recorders: &[Recorder]) {
    health.schedule_lag_us = quantiles(&liked.lag);
    health.p90_us[0] = liked.lag.value_at_quantile(0.9) as f64;
    let mut stamp_to_read: Option<Histogram<u64>> = None;
    for recorder in recorders {
        match &mut stamp_to_read {
            None => stamp_to_read = Some(recorder.stamp_to_read.clone()),
            // Equal bounds: it cannot fail.
            Some(sum) => sum.add(&recorder.stamp_to_read).expect("histograms of equal bounds"),
        }
    }
    health.stamp_to_read_us = stamp_to_read.as_ref().map_or([0.0; 3], quantiles);
    health.p90_us[1] = stamp_to_read.map_or(0.0, |all| all.value_at_quantile(0.9) as f64);
    health.cores = config.cpus.len().max(1) as f64;
    health.retried = liked.retried;
    health.received_bytes = recorders.iter().map(|recorder| recorder.received_bytes).sum();
    health.kernel_stamps = recorders.iter().all(|recorder| recorder.unstamped == 0);
    let unreadable: u64 = recorders.iter().map(|recorder| recorder.unreadable).sum();
    if unreadable > 0 {
        health.problems.push(format!("{unreadable} updates could not be read"));
    }
    let unsent = liked.likes.outcome.iter().filter(|outcome| **outcome == result::Outcome::Unsent as u8).count();
    if unsent > 0 {
        eprintln!("load: {unsent} likes were never sent: no user was free in time");
    }
}
