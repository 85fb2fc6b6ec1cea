//! Join and repair: which posts this pod watches, their newest state, and how what was missed is found again.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::broker::{Broker, BrokerError, BrokerOptions, BrokerTarget};
use crate::domain::{LikesState, PostId, Update};
use crate::store::{LikeStore, StoreError};

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

#[derive(Debug)]
struct Inner {}

/// Keeps a post watched; dropped when its viewer goes.
#[derive(Debug)]
pub struct WatchGuard {
    _inner: Arc<Inner>,
}

#[allow(clippy::unused_async, clippy::unused_self, clippy::needless_pass_by_value, reason = "not built yet")]
impl Watch {
    /// Connects to the broker and starts the repairs.
    ///
    /// # Errors
    /// [`BrokerError::Connect`].
    pub async fn start(
        _store: LikeStore,
        target: &BrokerTarget,
        broker: BrokerOptions,
        _sink: Sink,
        _options: WatchOptions,
    ) -> Result<(Self, Broker), BrokerError> {
        let on_event = Arc::new(|_| ());
        let broker = Broker::connect(target, broker, on_event).await?;
        Ok((Self { inner: Arc::new(Inner {}) }, broker))
    }

    /// One more viewer of `post`: the newest known state, and what keeps the post watched. Whatever is committed after
    /// that state reaches the sink.
    ///
    /// # Errors
    /// [`JoinError`].
    pub async fn join(&self, _post: PostId) -> Result<(LikesState, WatchGuard), JoinError> {
        let _ = &self.inner;
        Err(JoinError::Store(StoreError::Unavailable { cause: "not built yet".into() }))
    }

    /// Posts watched now.
    #[must_use]
    pub fn watched(&self) -> usize {
        0
    }

    /// Ends the repairs.
    pub fn stop(&self) {}
}
