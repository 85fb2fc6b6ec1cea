//! At the store's boundary: callers that do nothing but like, each its next one after the answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use sqlx::{Connection, MySqlConnection, Row};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::figures::{Run, check, quantiles};
use crate::compare::observe::Window;
use crate::compare::stack::services::Running;
use crate::domain::PostId;
use crate::store::{LikeRequest, LikeStore, StoreError, StoreOptions, WriteStrategy};

/// Likes before the clock starts: connections are made, statements prepared.
const WARM_UP: u32 = 200;

/// This process, in the figures.
const OWN: &str = "callers and store";

/// What a caller has seen.
#[derive(Debug, Default)]
struct Seen {
    versions: Vec<u64>,
    pending: u64,
    lock_us: Vec<u32>,
    answer_us: Vec<u32>,
    refused: u64,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.versions.extend(other.versions);
        self.lock_us.extend(other.lock_us);
        self.answer_us.extend(other.answer_us);
        self.pending += other.pending;
        self.refused += other.refused;
    }
}

/// One run on a post of its own.
pub(super) async fn run(
    database: &Running,
    write: WriteStrategy,
    callers: u32,
    length: Duration,
) -> anyhow::Result<Run> {
    let url = &database.url;
    let store = LikeStore::connect(url, StoreOptions { write, ..StoreOptions::default() }).await?;
    let mut watcher = MySqlConnection::connect(url).await?;
    let warm = store.create_post("warm-up").await?.id;
    all(&store, warm, WARM_UP, None).await?;
    count_all(&store, warm).await?;

    let post = store.create_post("contention").await?.id;
    let before = commits(&mut watcher).await?;
    let watched = [(OWN.to_owned(), own_pid()), ("database".to_owned(), database.process.pid)];
    let (cpu, started) = (Window::open(&watched), Instant::now());
    let over = Arc::new(AtomicBool::new(false));
    let counting = tokio::spawn(count(store.clone(), post, write, Arc::clone(&over)));
    let mut seen = all(&store, post, callers, Some(started + length)).await?;
    over.store(true, Ordering::Release);
    let mut counted_after = counting.await??;
    let seconds = started.elapsed().as_secs_f64();
    let uses = cpu.close(&watched);

    let state = store.read(&[post]).await?.first().context("the post is gone")?.state;
    let likes = if write == WriteStrategy::Event { seen.pending } else { seen.versions.len() as u64 };
    anyhow::ensure!(state.version.0 == likes, "{likes} answers, and the post is at version {}", state.version);
    check(seen.versions, state.likes, state.version.0)?;
    let later = write == WriteStrategy::Event;
    let mut run = Run {
        likes,
        seconds,
        commits: commits(&mut watcher).await? - before,
        refused: seen.refused,
        lock_wait_ms: if later { (f64::NAN, f64::NAN) } else { quantiles(&mut seen.lock_us) },
        answer_ms: quantiles(&mut seen.answer_us),
        counted_after_ms: later.then(|| quantiles(&mut counted_after)),
        ..Run::default()
    };
    run.set_cpu(&uses, OWN);
    store.close(Duration::from_secs(2)).await;
    Ok(run)
}

/// Everybody likes, once or until `stop`.
async fn all(store: &LikeStore, post: PostId, callers: u32, stop: Option<Instant>) -> anyhow::Result<Seen> {
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        tasks.spawn(caller(store.clone(), post, stop));
    }
    let mut all = Seen::default();
    while let Some(seen) = tasks.join_next().await {
        all.add(seen??);
    }
    Ok(all)
}

async fn caller(store: LikeStore, post: PostId, stop: Option<Instant>) -> anyhow::Result<Seen> {
    let (mut seen, request) = (Seen::default(), LikeRequest::anonymous_like(post));
    loop {
        let began = Instant::now();
        match store.apply(&request).await {
            Ok(outcome) => {
                seen.answer_us.push(micros(began));
                seen.lock_us.push(u32::try_from(outcome.stages.lock_us).unwrap_or(u32::MAX));
                if outcome.pending {
                    seen.pending += 1
                } else {
                    seen.versions.push(outcome.state.version.0)
                }
                if stop.is_none() {
                    return Ok(seen);
                }
            }
            // Whether it was counted, nobody knows: there is nothing to hold the count against.
            Err(StoreError::OutcomeUnknown { cause }) => bail!("a COMMIT was not answered: {cause}"),
            Err(_) => {
                seen.refused += 1;
                // As Retry-After asks, only sooner.
                sleep(Duration::from_millis(rand::random_range(10..50))).await;
            }
        }
        if stop.is_some_and(|stop| Instant::now() >= stop) {
            return Ok(seen);
        }
    }
}

/// As a pod's applier would: counts what is pending until nothing is and nobody adds to it. Waits from answer to count, µs.
async fn count(
    store: LikeStore,
    post: PostId,
    write: WriteStrategy,
    over: Arc<AtomicBool>,
) -> anyhow::Result<Vec<u32>> {
    let mut waits = Vec::new();
    if write != WriteStrategy::Event {
        return Ok(waits);
    }
    loop {
        let last = over.load(Ordering::Acquire);
        match store.count_pending(post).await? {
            Some(counted) => waits.extend(counted.accepted_at.iter().map(|accepted_at| {
                u32::try_from(counted.committed_at.saturating_sub(*accepted_at)).unwrap_or(u32::MAX)
            })),
            None if last => return Ok(waits),
            None => sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn count_all(store: &LikeStore, post: PostId) -> anyhow::Result<()> {
    while store.count_pending(post).await?.is_some() {}
    Ok(())
}

/// COMMITs of the server since its start.
pub(super) async fn commits(watcher: &mut MySqlConnection) -> anyhow::Result<u64> {
    let row = sqlx::raw_sql("show global status like 'Com_commit'").fetch_one(watcher).await?;
    Ok(row.get::<String, _>(1).parse()?)
}

pub(super) fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

fn micros(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX)
}
