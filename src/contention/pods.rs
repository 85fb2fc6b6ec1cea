//! Through whole pods, each a process of its own: clients that like one post over HTTP or STOMP.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use sqlx::{Connection, MySqlConnection};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::clients::{Answer, Client};
use super::direct::{commits, own_pid};
use super::figures::{Run, check, quantiles};
use super::{Config, Door, Lab};
use crate::compare::observe::{self, Window};
use crate::compare::stack::guardian::Spawn;
use crate::compare::stack::processes::Process;
use crate::domain::PostId;
use crate::store::{LikeStore, StoreOptions, WriteStrategy};

/// This process, in the figures.
const OWN: &str = "clients";

/// A pod and its process.
struct Pod {
    listen: String,
    admin: String,
    process: Process,
}

/// What a caller has seen.
#[derive(Debug, Default)]
struct Seen {
    versions: Vec<u64>,
    pending: u64,
    answer_us: Vec<u32>,
    refused: u64,
}

/// One run on a post and with pods of its own.
pub(super) async fn run(lab: &Lab, write: WriteStrategy, config: &Config, door: Door) -> anyhow::Result<Run> {
    let url = &lab.database.url;
    let store = LikeStore::connect(url, StoreOptions::default()).await?;
    let mut watcher = MySqlConnection::connect(url).await?;
    let mut pods = Vec::new();
    for number in 1..=config.pods {
        pods.push(start(lab, write, number).await?);
    }
    let (post, warm) = (store.create_post("contention").await?.id, store.create_post("warm-up").await?.id);
    let clients = connect(&pods, config.callers, door, warm).await?;

    let before = commits(&mut watcher).await?;
    let mut watched: Vec<(String, i32)> =
        pods.iter().enumerate().map(|(at, pod)| (format!("pod-{}", at + 1), pod.process.pid)).collect();
    watched.extend([
        (OWN.to_owned(), own_pid()),
        ("database".to_owned(), lab.database.process.pid),
        ("nats".to_owned(), lab.nats.process.pid),
    ]);
    let (cpu, started) = (Window::open(&watched), Instant::now());
    let mut seen = all(clients, post, started + Duration::from_secs_f64(config.seconds)).await?;
    let later = write == WriteStrategy::Event;
    let likes = if later { seen.pending } else { seen.versions.len() as u64 };
    let state = settled(&store, post, likes).await?;
    let seconds = started.elapsed().as_secs_f64();
    let uses = cpu.close(&watched);
    check(seen.versions, state.0, state.1)?;
    let mut run = Run {
        likes,
        seconds,
        commits: commits(&mut watcher).await? - before,
        refused: seen.refused,
        lock_wait_ms: from_pods(&pods, "pushlab_lock_wait_seconds", !later).await,
        answer_ms: quantiles(&mut seen.answer_us),
        counted_after_ms: if later { Some(from_pods(&pods, "pushlab_pending_seconds", true).await) } else { None },
        ..Run::default()
    };
    run.set_cpu(&uses, OWN);
    for pod in &mut pods {
        let _ = lab.guardian.signal(pod.process.pid, nix::sys::signal::Signal::SIGKILL).await;
        pod.process.wait().await;
    }
    store.close(Duration::from_secs(2)).await;
    Ok(run)
}

async fn start(lab: &Lab, write: WriteStrategy, number: u32) -> anyhow::Result<Pod> {
    let name = format!("pod-{number}");
    let args = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--pod-name", &name, "--write"];
    let more = [write.name(), "--database-url", &lab.database.url, "--nats-url", &lab.nats.url];
    let args = args.into_iter().chain(more).map(String::from).collect();
    let program = std::env::current_exe().context("cannot find this program")?;
    let log = lab.guardian.folder().join(format!("{name}.log"));
    let mut process = lab.guardian.spawn(Spawn { program, args, log, lines: true, ..Spawn::default() }).await?;
    let said = process.announced(&name).await?;
    Ok(Pod { listen: said.listen, admin: said.admin, process })
}

/// Opens everybody's connection and sends a like on another post over it.
async fn connect(pods: &[Pod], callers: u32, door: Door, warm: PostId) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    let mut connecting = JoinSet::new();
    for number in 0..callers {
        let address = pods[number as usize % pods.len()].listen.clone();
        connecting.spawn(async move {
            let mut client = Client::connect(door, &address).await?;
            client.like(warm).await?;
            anyhow::Ok(client)
        });
        // Not more at once than a pod's queue of connections takes.
        if connecting.len() >= 100 {
            clients.extend(connecting.join_next().await.transpose()?.transpose()?);
        }
    }
    while let Some(client) = connecting.join_next().await {
        clients.push(client??);
    }
    Ok(clients)
}

async fn all(clients: Vec<Client>, post: PostId, stop: Instant) -> anyhow::Result<Seen> {
    let start = Arc::new(Barrier::new(clients.len()));
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn(caller(client, post, stop, Arc::clone(&start)));
    }
    let mut all = Seen::default();
    while let Some(seen) = tasks.join_next().await {
        let seen = seen??;
        all.versions.extend(seen.versions);
        all.answer_us.extend(seen.answer_us);
        all.pending += seen.pending;
        all.refused += seen.refused;
    }
    Ok(all)
}

async fn caller(mut client: Client, post: PostId, stop: Instant, start: Arc<Barrier>) -> anyhow::Result<Seen> {
    start.wait().await;
    let mut seen = Seen::default();
    loop {
        let began = Instant::now();
        match client.like(post).await? {
            Answer::Refused => {
                seen.refused += 1;
                sleep(Duration::from_millis(rand::random_range(10..50))).await;
            }
            answer => {
                seen.answer_us.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
                match answer {
                    Answer::Counted(version) => seen.versions.push(version),
                    _ => seen.pending += 1,
                }
            }
        }
        if Instant::now() >= stop {
            return Ok(seen);
        }
    }
}

/// (likes, version) once everything that was answered is counted.
async fn settled(store: &LikeStore, post: PostId, likes: u64) -> anyhow::Result<(u64, u64)> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let state = store.read(&[post]).await?.first().context("the post is gone")?.state;
        if state.version.0 == likes {
            return Ok((state.likes, state.version.0));
        }
        ensure!(
            state.version.0 < likes && Instant::now() < deadline,
            "{likes} answers, and the post is at version {}",
            state.version
        );
        sleep(Duration::from_millis(5)).await;
    }
}

/// p50 and p99 in ms of a histogram of all pods: the upper bounds of their buckets.
async fn from_pods(pods: &[Pod], name: &str, wanted: bool) -> (f64, f64) {
    let mut texts = String::new();
    for pod in pods {
        texts += &observe::scrape(&pod.admin).await.unwrap_or_default();
    }
    let all = observe::sum(&texts, &format!("{name}_count"));
    let at = |q: f64| {
        let bounds = crate::telemetry::metrics::SECONDS.into_iter();
        let mut below = bounds.map(|bound| (bound, observe::sum(&texts, &format!("{name}_bucket{{le=\"{bound}\"}}"))));
        below.find(|(_, count)| *count >= all * q).map_or(f64::INFINITY, |(bound, _)| bound * 1e3)
    };
    if wanted && all > 0.0 { (at(0.5), at(0.99)) } else { (f64::NAN, f64::NAN) }
}
