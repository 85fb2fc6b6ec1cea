//! Likes in MySQL/MariaDB or SQLite: lock the post's row, change, COMMIT. Knows no broker.
//!
//! Invariants: version = effective likes + effective unlikes and count = their difference, both raised under one lock;
//! locks are taken in one order everywhere: the post's row first, then like and key rows; every operation ends within
//! [`StoreOptions::operation_timeout`], also when the database hangs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::domain::{Epoch, LikesState, PostId, unix_micros};
use crate::telemetry::metrics::Timings;

/// Requests with a key that are under way in this process.
mod flights;
/// What is asked for and what comes of it.
mod like;
/// MySQL and MariaDB.
mod mysql;
/// Bounds, and how likes are written.
mod options;
/// The row under its lock.
mod row;
/// Statements both databases have.
mod sql;
/// SQLite, for the embedded stack.
mod sqlite;

pub use like::{
    IdempotencyKey, KeyError, LikeOp, LikeOutcome, LikeRequest, MAX_USER_BYTES, Stages, StoreError, ToPublish, Who,
};
pub use mysql::MySql;
pub use options::{StoreOptions, WriteStrategy};
pub use sqlite::Sqlite;

/// Longest title, in characters.
pub const MAX_TITLE_CHARS: usize = 200;

/// How long keys are kept.
pub const KEY_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// A post without its count (which changes far more often).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// Its id.
    pub id: PostId,
    /// Its title, at most [`MAX_TITLE_CHARS`].
    pub title: String,
    /// Unix time in µs.
    pub created_at: u64,
}

/// A post's likes as the database has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredState {
    /// Count and version.
    pub state: LikesState,
    /// Unix time in µs of the newest effective change; of the post's creation when there was none.
    pub changed_at: u64,
    /// The database's epoch, read with the state.
    pub epoch: Epoch,
}

/// Rows that wait: for publication, or to be counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    /// How many.
    pub rows: u64,
    /// How long the oldest has waited.
    pub oldest: Duration,
}

/// Pending likes that were counted in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// What the caller is to publish; nothing when they changed nothing (take-backs at 0).
    pub publish: Option<ToPublish>,
    /// When each of them was accepted: Unix time in µs.
    pub accepted_at: Vec<u64>,
    /// When they were counted: Unix time in µs, read right after COMMIT returned.
    pub committed_at: u64,
    /// There may be more.
    pub more: bool,
}

/// What has happened in a store since it was made. All only grow.
#[derive(Debug, Default)]
pub struct StoreCounters {
    /// Transactions repeated after a lock error.
    pub retries: AtomicU64,
    /// Transactions repeated because the connection was found dead.
    pub reconnects: AtomicU64,
    /// Operations given up because their time had passed.
    pub timeouts: AtomicU64,
    /// Transactions of likes that were committed; fewer than likes when several share one.
    pub commits: AtomicU64,
    /// Post's rows (SQLite: the file) that stayed locked for the whole lock time-out.
    pub lock_timeouts: AtomicU64,
    /// Times no connection of the pool was free in time.
    pub pool_timeouts: AtomicU64,
    /// Waits for a connection of the pool, opening one included.
    pub acquire: Timings,
}

/// Open connections of a database, of all pools together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pooled {
    /// Waiting for work.
    pub idle: usize,
    /// At work.
    pub used: usize,
}

impl Pooled {
    fn add(mut self, open: u32, idle: usize) -> Self {
        self.idle += idle;
        self.used += usize::try_from(open).unwrap_or(usize::MAX).saturating_sub(idle);
        self
    }
}

impl StoreCounters {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Which connections an operation uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The pool that serves requests.
    Requests,
    /// The one connection for re-reads, so that repairs never take a connection from a like.
    Repair,
}

/// The truth about likes. Cheap to clone; the pods of one process share one.
#[derive(Debug, Clone)]
pub enum LikeStore {
    /// MySQL or MariaDB.
    MySql(MySql),
    /// One file, `BEGIN IMMEDIATE`, WAL.
    Sqlite(Sqlite),
}

impl LikeStore {
    /// Connects to `mysql://…`, `mariadb://…` or `sqlite:PATH` and brings its tables up to date; several pods may do so at once.
    ///
    /// # Errors
    /// [`StoreError::BadUrl`], [`StoreError::Unsupported`], or [`StoreError::Unavailable`] after
    /// [`StoreOptions::startup_timeout`].
    pub async fn connect(url: &str, options: StoreOptions) -> Result<Self, StoreError> {
        if url.starts_with("mysql:") || url.starts_with("mariadb:") {
            let outbox = options.outbox;
            let store = MySql::connect(url, options).await?;
            if outbox {
                store.check_outbox().await?;
            }
            Ok(Self::MySql(store))
        } else if url.starts_with("sqlite:") {
            if options.write != WriteStrategy::Pessimistic || options.outbox {
                return Err(StoreError::Unsupported(
                    "SQLite has one writer, and readers in one process: with it likes are written pessimistic and published \
                     after-commit; the others need MariaDB or MySQL (--database-url mysql://…)"
                        .into(),
                ));
            }
            Ok(Self::Sqlite(Sqlite::connect(url, options).await?))
        } else {
            Err(StoreError::BadUrl("it begins with mysql://, mariadb:// or sqlite:".into()))
        }
    }

    /// The epoch: versions compare only within one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn epoch(&self) -> Result<Epoch, StoreError> {
        match self {
            Self::MySql(store) => store.epoch().await,
            Self::Sqlite(store) => store.epoch().await,
        }
    }

    /// Draws another epoch: after a restore, when versions may have gone backwards.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn new_epoch(&self) -> Result<Epoch, StoreError> {
        match self {
            Self::MySql(store) => store.new_epoch().await,
            Self::Sqlite(store) => store.new_epoch().await,
        }
    }

    /// A new post with 0 likes at version 0. The caller has checked the title's length ([`MAX_TITLE_CHARS`]).
    ///
    /// # Errors
    /// [`StoreError::Limit`], [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn create_post(&self, title: &str) -> Result<Post, StoreError> {
        if title.chars().count() > MAX_TITLE_CHARS {
            return Err(StoreError::Limit("a title has at most 200 characters"));
        }
        match self {
            Self::MySql(store) => store.create_post(title).await,
            Self::Sqlite(store) => store.create_post(title).await,
        }
    }

    /// The post.
    ///
    /// # Errors
    /// [`StoreError::UnknownPost`], [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn post(&self, post: PostId) -> Result<Post, StoreError> {
        match self {
            Self::MySql(store) => store.post(post).await,
            Self::Sqlite(store) => store.post(post).await,
        }
    }

    /// The newest committed states by primary key, in no order; posts that do not exist are left out.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn read(&self, posts: &[PostId]) -> Result<Vec<StoredState>, StoreError> {
        self.read_on(Lane::Requests, posts).await
    }

    /// [`LikeStore::read`] over the connections of `lane`.
    ///
    /// # Errors
    /// As [`LikeStore::read`].
    pub async fn read_on(&self, lane: Lane, posts: &[PostId]) -> Result<Vec<StoredState>, StoreError> {
        match self {
            Self::MySql(store) => store.read(lane, posts).await,
            Self::Sqlite(store) => store.read(lane, posts).await,
        }
    }

    /// The post's state after every transaction that has its row locked now has ended: for a COMMIT that was not answered.
    ///
    /// # Errors
    /// [`StoreError::UnknownPost`], [`StoreError::Contended`], [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn read_settled(&self, post: PostId) -> Result<LikesState, StoreError> {
        match self {
            Self::MySql(store) => store.read_settled(post).await,
            // Its one writer has ended, or the database file would be locked.
            Self::Sqlite(store) => {
                let read = store.read(Lane::Repair, &[post]).await?;
                read.first().map(|read| read.state).ok_or(StoreError::UnknownPost)
            }
        }
    }

    /// One like or unlike: counted once, or not at all.
    ///
    /// To be called from a task of its own (`serve::likes`): dropping the future rolls back what was not committed, but
    /// forgets to publish what was.
    ///
    /// # Errors
    /// Each variant of [`StoreError`] says what it means for the like.
    pub async fn apply(&self, request: &LikeRequest) -> Result<LikeOutcome, StoreError> {
        request.check()?;
        let (flights, wait) = match self {
            Self::MySql(store) => (store.flights(), store.options().lock_timeout),
            Self::Sqlite(store) => (store.flights(), store.options().lock_timeout),
        };
        // Within this process a duplicate waits here, without a connection; between processes it waits for the post's row.
        let flight = match &request.key {
            Some(key) => match flights.board(&request.who, key, wait).await? {
                flights::Seat::First(flight) => Some(flight),
                flights::Seat::After(payload_hash, outcome) => {
                    return if payload_hash == key.payload_hash { Ok(outcome) } else { Err(StoreError::KeyMismatch) };
                }
            },
            None => None,
        };
        let outcome = match self {
            Self::MySql(store) => store.apply(request).await,
            Self::Sqlite(store) => store.apply(request).await,
        };
        if let (Some(flight), Ok(outcome)) = (flight, &outcome) {
            flight.land(outcome);
        }
        outcome
    }

    /// Counts likes of `post` that were answered `pending` ([`WriteStrategy::Event`]); `None` when there are none.
    ///
    /// # Errors
    /// As [`LikeStore::apply`].
    pub async fn count_pending(&self, post: PostId) -> Result<Option<Counted>, StoreError> {
        match self {
            Self::MySql(store) => store.count_pending(post).await,
            Self::Sqlite(_) => Ok(None),
        }
    }

    /// Posts with pending likes, some thousand at most.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn pending_posts(&self) -> Result<Vec<PostId>, StoreError> {
        match self {
            Self::MySql(store) => store.pending_posts().await,
            Self::Sqlite(_) => Ok(Vec::new()),
        }
    }

    /// The likes that are pending.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn pending_queue(&self) -> Result<Queue, StoreError> {
        match self {
            Self::MySql(store) => store.pending_queue().await,
            Self::Sqlite(_) => Ok(Queue::default()),
        }
    }

    /// The events that are not published.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn outbox_queue(&self) -> Result<Queue, StoreError> {
        match self {
            Self::MySql(store) => store.outbox_queue().await,
            Self::Sqlite(_) => Ok(Queue::default()),
        }
    }

    /// Removes rows of the outbox whose events are published.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`]: those rows will be published once more.
    pub async fn published(&self, rows: &[u64]) -> Result<(), StoreError> {
        match self {
            Self::MySql(store) => store.published(rows).await,
            Self::Sqlite(_) => Ok(()),
        }
    }

    /// Claims up to `most` events that nobody has published for `age` (rows another pod has claimed are skipped), has
    /// them published, and removes those whose rows `publish` returns. How many those were.
    ///
    /// # Errors
    /// [`StoreError::Contended`], [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn publish_left<F>(
        &self,
        age: Duration,
        most: u32,
        publish: impl FnOnce(Vec<ToPublish>) -> F + Send,
    ) -> Result<usize, StoreError>
    where
        F: Future<Output = Vec<u64>> + Send,
    {
        match self {
            Self::MySql(store) => store.publish_left(age, most, publish).await,
            Self::Sqlite(_) => Ok(0),
        }
    }

    /// Whether the database answers, for readiness.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        match self {
            Self::MySql(store) => store.ping().await,
            Self::Sqlite(store) => store.ping().await,
        }
    }

    /// Removes keys older than [`KEY_RETENTION`], in small transactions; returns how many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn sweep_keys(&self) -> Result<u64, StoreError> {
        self.sweep_keys_older_than(KEY_RETENTION).await
    }

    /// [`LikeStore::sweep_keys`] with another age.
    ///
    /// # Errors
    /// As [`LikeStore::sweep_keys`].
    pub async fn sweep_keys_older_than(&self, age: Duration) -> Result<u64, StoreError> {
        match self {
            Self::MySql(store) => store.sweep_keys(age).await,
            Self::Sqlite(store) => store.sweep_keys(age).await,
        }
    }

    /// Uses up the ticket with this id; whether this is the first time, on whichever pod. `expires_at`: when it may be
    /// forgotten, in Unix seconds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`]: then it may have been used up.
    pub async fn use_ticket(&self, id: u128, expires_at: u64) -> Result<bool, StoreError> {
        match self {
            Self::MySql(store) => store.use_ticket(id, expires_at).await,
            Self::Sqlite(store) => store.use_ticket(id, expires_at).await,
        }
    }

    /// Forgets tickets that have ended, in small transactions; returns how many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Timeout`].
    pub async fn sweep_tickets(&self) -> Result<u64, StoreError> {
        let now = unix_micros() / 1_000_000;
        match self {
            Self::MySql(store) => store.sweep_tickets(now).await,
            Self::Sqlite(store) => store.sweep_tickets(now).await,
        }
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> &StoreCounters {
        match self {
            Self::MySql(store) => store.counters(),
            Self::Sqlite(store) => store.counters(),
        }
    }

    /// The connections there are now.
    #[must_use]
    pub fn pooled(&self) -> Pooled {
        match self {
            Self::MySql(store) => store.pooled(),
            Self::Sqlite(store) => store.pooled(),
        }
    }

    /// Closes the connections; waits for those in use, at most `patience`.
    pub async fn close(&self, patience: Duration) {
        let closing = async {
            match self {
                Self::MySql(store) => store.close().await,
                Self::Sqlite(store) => store.close().await,
            }
        };
        let _ = tokio::time::timeout(patience, closing).await;
    }
}
