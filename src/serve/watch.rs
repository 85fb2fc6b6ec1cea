//! Join and repair: which posts this pod watches, their newest state, and how what was missed is found again.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, BrokerError, BrokerOptions, BrokerTarget};
use crate::domain::{Epoch, LikesChanged, PostId, Update, unix_micros};
use crate::hub::topic::Accepted;
use crate::store::{Lane, LikeStore, StoreError, StoredState};
use crate::telemetry::metrics::Timings;
use crate::telemetry::{FanOut, Trace};
use posts::{Entered, Generation, Posts, Start};

/// What is watched and what is due.
mod posts;
/// Rings of recent events.
mod recent;
/// Reads what is due.
mod repair;
/// What a viewer had, and what it is given.
mod resume;

pub use resume::{Joined, Position, Resumed};

/// How often a join looks: for a viewer that is ahead of this pod, and while the epoch changes.
const LOOKS: usize = 4;

/// Where accepted updates go: the hub. All are called under a lock, in order: they must not block.
pub struct Sink {
    /// An update and its gap: versions skipped before it that were not known to be missing yet (0 for snapshots).
    /// With the span of its fan-out, if it is traced.
    pub publish: Box<dyn Fn(Update, u64, FanOut) + Send + Sync>,
    /// The post is watched no longer.
    pub forget: Box<dyn Fn(PostId) + Send + Sync>,
    /// The database has another epoch: whoever has a version of the one before is to come back.
    pub renew: Box<dyn Fn(Epoch) + Send + Sync>,
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
    /// Rows that anti-entropy reads per second at most; beyond it posts are read less often.
    pub rows_per_second: u32,
    /// Recent events kept per post for viewers that come back; 0: they get the state (`--resume snapshot`).
    pub replay_depth: usize,
    /// Recent events kept in all (40 bytes each): many posts have shorter rings.
    pub replay_events: usize,
    /// After its last viewer has gone a post stays watched for this long, so that its ring is still there …
    pub replay_keep: Duration,
    /// … as long as not more posts than this wait so; the others leave after [`WatchOptions::linger`].
    pub replay_idle: usize,
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
            rows_per_second: 2_000,
            replay_depth: 0,
            replay_events: 1 << 20,
            replay_keep: Duration::from_secs(60),
            replay_idle: 10_000,
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
    /// Rows whose version was lower than one known before they were read, within one epoch: the database was restored.
    pub backward_rows: AtomicU64,
    /// Epochs that began while the pod ran.
    pub epochs: AtomicU64,
    /// Posts whose subscription the broker confirmed only after their first viewer was served.
    pub late_subscriptions: AtomicU64,
    /// From COMMIT until an event came from the broker, those that came twice once.
    pub lag: Timings,
}

/// Why a post cannot be watched now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// No such post.
    #[error("no such post")]
    UnknownPost,
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
        let inner = &self.inner;
        if inner.posts().leave(self.post, self.generation, Instant::now(), &inner.options) {
            inner.wake.notify_one();
        }
    }
}

impl Watch {
    /// Connects to the broker and starts the repairs.
    ///
    /// # Errors
    /// [`BrokerError::Connect`].
    pub async fn start(
        (store, epoch): (LikeStore, Epoch),
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
            posts: Mutex::new(Posts::new(epoch)),
            wake: Notify::new(),
            stop: CancellationToken::new(),
        });
        let weak = Arc::downgrade(&inner);
        let on_event = Arc::new(move |event, trace| {
            if let Some(inner) = weak.upgrade() {
                inner.on_event(event, &trace);
            }
        });
        let broker = Broker::connect(target, broker, on_event).await?;
        let _ = inner.broker.set(broker.clone());
        tokio::spawn(repair::keep(inner.clone(), broker.clone()));
        Ok((Self { inner }, broker))
    }

    /// One more viewer of `post`, which had `had`: what it begins with, and what keeps the post watched. Whatever is
    /// committed after that state reaches the sink (as an event, or by repair when an event is lost).
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn join(&self, post: PostId, had: Option<Position>) -> Result<Joined, JoinError> {
        let replay = self.inner.options.replay_depth > 0;
        for look in 0..LOOKS {
            let guard = self.enter(post).await?;
            let start = self.inner.posts().start(post, guard.generation, had, replay);
            match start {
                // The epoch changed just now.
                None => {}
                Some(Start { resumed: Resumed::Ahead, .. }) if look < 2 => {
                    // It has seen more on another pod: the event is on its way here, or lost.
                    if look == 0 {
                        tokio::time::sleep(self.inner.options.gap).await;
                    } else {
                        repair::read_now(&self.inner, post).await?;
                    }
                }
                Some(Start { epoch, state, missed, resumed }) => {
                    let cursor = match had {
                        Some(had) if resumed == Resumed::Ahead => had.version,
                        _ => state.version,
                    };
                    return Ok(Joined { epoch, state, cursor, missed, resumed, guard });
                }
            }
        }
        Err(JoinError::Store(StoreError::Unavailable { cause: "the database's epoch keeps changing".into() }))
    }

    /// Waits until the post is live.
    async fn enter(&self, post: PostId) -> Result<WatchGuard, JoinError> {
        let (guard, mut done) = {
            let mut posts = self.inner.posts();
            let guard = |generation| WatchGuard { inner: self.inner.clone(), post, generation };
            match posts.enter(post) {
                Some((generation, Entered::Known)) => return Ok(guard(generation)),
                Some((generation, Entered::Wait(done))) => (guard(generation), done),
                None => {
                    let (tell, done) = watch::channel(None);
                    let generation = posts.begin(post, done.clone());
                    // A task of its own: the first viewer may go while others wait for the same snapshot.
                    tokio::spawn(begin(self.inner.clone(), post, generation, tell));
                    (guard(generation), done)
                }
            }
        };
        // The end of the task without a word can only be a panic in it.
        let outcome = done.wait_for(Option::is_some).await.ok().and_then(|outcome| (*outcome).clone());
        outcome.unwrap_or_else(|| Err(JoinError::Store(StoreError::Unavailable { cause: "joining failed".into() })))?;
        Ok(guard)
    }

    /// States of these posts as the database has them now, those that do not exist left out.
    ///
    /// # Errors
    /// [`StoreError`], also when the epoch changed meanwhile.
    pub(super) async fn read(&self, lane: Lane, posts: &[PostId]) -> Result<Vec<StoredState>, StoreError> {
        let read = repair::read(&self.inner, lane, posts).await?;
        read.ok_or_else(|| StoreError::Unavailable { cause: "the database's epoch changed".into() })
    }

    /// The epoch of all versions that are sent now.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.inner.posts().epoch().0
    }

    /// Posts watched now, those nobody views any more but not yet left included.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.inner.posts().len()
    }

    /// Recent events kept for viewers that come back.
    #[must_use]
    pub fn kept_events(&self) -> usize {
        self.inner.posts().kept()
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

    fn on_event(&self, event: LikesChanged, trace: &Trace) {
        let mut posts = self.posts();
        let Some((accepted, look)) = posts.event(&event, Instant::now(), &self.options) else { return };
        if accepted != Accepted::Duplicate {
            self.counters.lag.observe(Duration::from_micros(unix_micros().saturating_sub(event.committed_at)));
        }
        match accepted {
            Accepted::New { gap } => {
                if gap > 0 {
                    count(&self.counters.gaps, 1);
                }
                (self.sink.publish)(Update::Changed(event), gap, trace.fan_out(&event));
            }
            Accepted::Superseded => count(&self.counters.superseded_events, 1),
            Accepted::Duplicate => count(&self.counters.duplicate_events, 1),
        }
        if look {
            self.wake.notify_one();
        }
    }

    /// The database has this epoch; `era` is from before that was read. False when what was read is of no use.
    fn is_current(&self, epoch: Epoch, era: u64) -> bool {
        let mut posts = self.posts();
        let known = posts.epoch();
        if known.1 != era || known.0 == epoch {
            return known == (epoch, era);
        }
        let left = posts.renew(epoch);
        // Under the lock: a newcomer subscribes anew only after this.
        for post in &left {
            if let Some(broker) = self.broker.get() {
                broker.unsubscribe(*post);
            }
        }
        (self.sink.renew)(epoch);
        count(&self.counters.epochs, 1);
        tracing::warn!(from = %known.0, to = %epoch, posts = left.len(), "the database has a new epoch: viewers come back");
        false
    }
}

/// Subscribes, then reads the snapshot, then lets those in who wait. Without the broker they are let in all the same:
/// anti-entropy serves them meanwhile, and once the subscription is in force the post is read again.
async fn begin(
    inner: Arc<Inner>,
    post: PostId,
    generation: Generation,
    tell: watch::Sender<Option<Result<(), JoinError>>>,
) {
    let Some(broker) = inner.broker.get().cloned() else { return };
    let connected = broker.state().borrow().connected;
    let in_force = connected && broker.subscribe(post).await.is_ok();
    let read = repair::read(&inner, Lane::Requests, &[post]).await;
    let outcome = {
        let mut posts = inner.posts();
        let outcome = match read {
            Ok(Some(read)) => match read.first() {
                Some(read) => {
                    posts.live(read.state, generation, Instant::now(), &inner.options);
                    if !in_force {
                        posts.is_unconfirmed(post, generation);
                    }
                    Ok(())
                }
                None => Err(JoinError::UnknownPost),
            },
            // The entry is gone; those who wait look again.
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if outcome.is_err() {
            posts.fail(post, generation);
        }
        if !posts.contains(post) {
            broker.unsubscribe(post);
        }
        outcome
    };
    tell.send_replace(Some(outcome));
    inner.wake.notify_one();
}

fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
