//! Join and repair: which posts this pod watches, their newest state, and how what was missed is found again.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, BrokerError, BrokerOptions, BrokerTarget};
use crate::domain::{LikesChanged, LikesState, PostId, Update};
use crate::hub::topic::Accepted;
use crate::store::{Lane, LikeStore, StoreError};
use posts::{Entered, Generation, Posts, Why};

/// What is watched and what is due.
mod posts;

/// Posts read at once.
const BATCH: usize = 256;

/// Pause before a failed read is repeated (± 50 %).
const RETRY: Duration = Duration::from_secs(1);

/// Where accepted updates go: the hub. Both are called under a lock, in order: they must not block.
pub struct Sink {
    /// An update and its gap: versions skipped before it that were not known to be missing yet (0 for snapshots).
    pub publish: Box<dyn Fn(Update, u64) + Send + Sync>,
    /// The post is watched no longer.
    pub forget: Box<dyn Fn(PostId) + Send + Sync>,
}

/// Times of join and repair.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Whether quiet posts are read again.
    pub anti_entropy: bool,
    /// A post without an event for this long (± 50 %) is read again.
    pub quiet: Duration,
    /// A newly watched post is read once more after this: interest spreads through a NATS cluster later.
    pub settle: Duration,
    /// A gap still open after this is repaired; a state found by reading is given this long to arrive as an event.
    pub gap: Duration,
    /// A post's gaps are repaired at most once in this time.
    pub gap_pause: Duration,
    /// After the last viewer has gone the post stays watched for this long: coming back is cheap.
    pub linger: Duration,
    /// After a reconnect the watched posts are read again, spread over this.
    pub spread: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            anti_entropy: true,
            quiet: Duration::from_secs(5),
            settle: Duration::from_secs(1),
            gap: Duration::from_millis(100),
            gap_pause: Duration::from_secs(1),
            linger: Duration::from_secs(5),
            spread: Duration::from_secs(1),
        }
    }
}

/// What has happened so far. All only grow.
#[derive(Debug, Default)]
pub struct WatchCounters {
    /// Events that arrived after a newer one: delivered to nobody.
    pub superseded_events: AtomicU64,
    /// Events that arrived twice.
    pub duplicate_events: AtomicU64,
    /// Gaps seen: an event did not follow the one before.
    pub gaps: AtomicU64,
    /// Gaps that were still open after [`WatchOptions::gap`] and led to a read.
    pub gap_reads: AtomicU64,
    /// Rows read by anti-entropy.
    pub anti_entropy_rows: AtomicU64,
    /// Posts on which anti-entropy found a newer state than events had brought.
    pub anti_entropy_healed: AtomicU64,
    /// Posts on which another read (newly watched, gap, reconnect) found one.
    pub reread_healed: AtomicU64,
    /// Reads that failed and were put off.
    pub failed_reads: AtomicU64,
}

/// Why a post cannot be watched now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// No such post.
    #[error("no such post")]
    UnknownPost,
    /// The broker did not confirm the subscription: another pod may be able to.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The snapshot could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The posts this pod watches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watch {
    inner: Arc<Inner>,
}

struct Inner {
    store: LikeStore,
    /// Set once, right after the broker was told where its events go.
    broker: OnceLock<Broker>,
    sink: Sink,
    options: WatchOptions,
    counters: WatchCounters,
    posts: Mutex<Posts>,
    /// Something is due earlier than the keeper thinks.
    wake: Notify,
    stop: CancellationToken,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("options", &self.options)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// Keeps a post watched; dropped when its viewer goes, on any thread.
#[derive(Debug)]
pub struct WatchGuard {
    inner: Arc<Inner>,
    post: PostId,
    generation: Generation,
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let linger = self.inner.options.linger;
        if self.inner.posts().leave(self.post, self.generation, Instant::now(), linger) {
            self.inner.wake.notify_one();
        }
    }
}

impl Watch {
    /// Connects to the broker and starts the repairs.
    ///
    /// # Errors
    /// [`BrokerError::Connect`].
    pub async fn start(
        store: LikeStore,
        target: &BrokerTarget,
        broker: BrokerOptions,
        sink: Sink,
        options: WatchOptions,
    ) -> Result<(Self, Broker), BrokerError> {
        let inner = Arc::new(Inner {
            store,
            broker: OnceLock::new(),
            sink,
            options,
            counters: WatchCounters::default(),
            posts: Mutex::default(),
            wake: Notify::new(),
            stop: CancellationToken::new(),
        });
        let weak = Arc::downgrade(&inner);
        let on_event = Arc::new(move |event| {
            if let Some(inner) = weak.upgrade() {
                inner.on_event(event);
            }
        });
        let broker = Broker::connect(target, broker, on_event).await?;
        let _ = inner.broker.set(broker.clone());
        tokio::spawn(keep(inner.clone(), broker.clone()));
        Ok((Self { inner }, broker))
    }

    /// One more viewer of `post`: the newest known state, and what keeps the post watched. Whatever is committed after
    /// that state reaches the sink (as an event, or by repair when an event is lost).
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn join(&self, post: PostId) -> Result<(LikesState, WatchGuard), JoinError> {
        let (guard, mut done) = {
            let mut posts = self.inner.posts();
            let guard = |generation| WatchGuard { inner: self.inner.clone(), post, generation };
            match posts.enter(post) {
                Some((generation, Entered::Known(state))) => return Ok((state, guard(generation))),
                Some((generation, Entered::Wait(done))) => (guard(generation), done),
                None => {
                    let (tell, done) = watch::channel(None);
                    let generation = posts.begin(post, done.clone());
                    // A task of its own: the first viewer may go while others wait for the same snapshot.
                    tokio::spawn(begin(self.inner.clone(), post, tell));
                    (guard(generation), done)
                }
            }
        };
        // The end of the task without a word can only be a panic in it.
        let outcome = done.wait_for(Option::is_some).await.ok().and_then(|outcome| (*outcome).clone());
        outcome.unwrap_or_else(|| Err(JoinError::Store(StoreError::Unavailable { cause: "joining failed".into() })))?;
        match self.inner.posts().state(post, guard.generation) {
            Some(state) => Ok((state, guard)),
            None => Err(JoinError::Store(StoreError::Unavailable { cause: "the pod stopped watching".into() })),
        }
    }

    /// Posts watched now, those nobody views any more but not yet left included.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.inner.posts().len()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> &WatchCounters {
        &self.inner.counters
    }

    /// Ends the repairs.
    pub fn stop(&self) {
        self.inner.stop.cancel();
    }
}

impl Inner {
    /// Never held across an await; nobody panics half way through a change.
    fn posts(&self) -> MutexGuard<'_, Posts> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_event(&self, event: LikesChanged) {
        let mut posts = self.posts();
        let Some((accepted, look)) = posts.event(&event, Instant::now(), &self.options) else { return };
        match accepted {
            Accepted::New { gap } => {
                if gap > 0 {
                    count(&self.counters.gaps, 1);
                }
                (self.sink.publish)(Update::Changed(event), gap);
            }
            Accepted::Superseded => count(&self.counters.superseded_events, 1),
            Accepted::Duplicate => count(&self.counters.duplicate_events, 1),
        }
        if look {
            self.wake.notify_one();
        }
    }
}

/// Subscribes, then reads the snapshot, then lets those in who wait.
async fn begin(inner: Arc<Inner>, post: PostId, tell: watch::Sender<Option<Result<(), JoinError>>>) {
    let Some(broker) = inner.broker.get() else { return };
    let joined = async {
        broker.subscribe(post).await?;
        let read = inner.store.read(&[post]).await?;
        read.first().map(|read| read.state).ok_or(JoinError::UnknownPost)
    };
    let joined = joined.await;
    let mut posts = inner.posts();
    let outcome = match joined {
        Ok(snapshot) => {
            posts.live(snapshot, Instant::now(), &inner.options);
            inner.wake.notify_one();
            Ok(())
        }
        Err(e) => {
            posts.fail(post);
            broker.unsubscribe(post);
            Err(e)
        }
    };
    tell.send_replace(Some(outcome));
}

/// Reads what is due and leaves what nobody views. Inputs: the next due time, a wake-up, the broker's reconnects, the end.
async fn keep(inner: Arc<Inner>, broker: Broker) {
    let mut state = broker.state();
    let mut missed = state.borrow().missed;
    loop {
        let due = {
            let mut posts = inner.posts();
            let due = posts.take_due(Instant::now(), BATCH, &inner.options);
            // Under the lock: a newcomer subscribes anew only after this.
            for post in &due.left {
                broker.unsubscribe(*post);
                (inner.sink.forget)(*post);
            }
            due
        };
        if !due.read.is_empty() {
            reread(&inner, due.read).await;
            continue;
        }
        let next = inner.posts().next().unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
        tokio::select! {
            () = sleep_until(next) => {}
            () = inner.wake.notified() => {}
            changed = state.changed() => {
                let now = state.borrow_and_update().missed;
                if now != missed {
                    missed = now;
                    inner.posts().reread_all(Instant::now(), inner.options.spread);
                }
                if changed.is_err() {
                    return;
                }
            }
            () = inner.stop.cancelled() => return,
        }
    }
}

/// One batch over the repair connection.
async fn reread(inner: &Arc<Inner>, due: Vec<(PostId, Why)>) {
    let ids: Vec<PostId> = due.iter().map(|(post, _)| *post).collect();
    let read = match inner.store.read_on(Lane::Repair, &ids).await {
        Ok(read) => read,
        Err(e) => {
            count(&inner.counters.failed_reads, 1);
            tracing::warn!(error = %e, posts = due.len(), "a re-read failed; it will be repeated");
            inner.posts().put_off(&due, Instant::now(), RETRY);
            return;
        }
    };
    let of = |wanted| due.iter().filter(|(_, why)| *why == wanted).count() as u64;
    count(&inner.counters.anti_entropy_rows, of(Why::Quiet));
    count(&inner.counters.gap_reads, of(Why::Gap));
    let why: HashMap<PostId, Why> = due.into_iter().collect();
    let news: Vec<LikesState> = {
        let mut posts = inner.posts();
        let states = read.iter().map(|read| read.state);
        // What is no news still answers for the versions that were missing.
        states.filter(|state| posts.is_news(state) || posts.read(*state)).collect()
    };
    if news.is_empty() {
        return;
    }
    // The event of what was just committed may be on its way: it is delivered as a change, not as a repair.
    let inner = inner.clone();
    tokio::spawn(async move {
        sleep(inner.options.gap).await;
        let mut posts = inner.posts();
        for state in news {
            if !posts.read(state) {
                continue;
            }
            match why.get(&state.post_id) {
                Some(Why::Quiet) => count(&inner.counters.anti_entropy_healed, 1),
                _ => count(&inner.counters.reread_healed, 1),
            }
            (inner.sink.publish)(Update::Snapshot(state), 0);
        }
    });
}

fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
