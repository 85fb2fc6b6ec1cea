//! What a store is told: bounds of time and connections, and how likes are written.

use std::time::Duration;

/// Bounds of the store. Every field is a promise to the caller, not a hint.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Connections of the pool for requests; repairs have one more of their own, and the writers of
    /// [`WriteStrategy::Combining`] as many again. PERFORMANCE: 2–4 × cores.
    pub max_connections: u32,
    /// Longest wait for a connection of the pool, connecting included.
    pub acquire_timeout: Duration,
    /// Longest wait for the post's row. Databases count whole seconds: rounded up.
    pub lock_timeout: Duration,
    /// Longest life of one operation, waits and retries included. When it has passed, the connection is closed and
    /// the database rolls back.
    pub operation_timeout: Duration,
    /// Longest wait of [`super::LikeStore::connect`] for a database that is just starting.
    pub startup_timeout: Duration,
    /// How often a transaction is repeated after a deadlock or a lock time-out of its own short kind.
    pub lock_retries: u32,
    /// How often [`WriteStrategy::Optimistic`] tries again after somebody else was quicker.
    pub optimistic_retries: u32,
    /// How the like is written.
    pub write: WriteStrategy,
    /// Whether each effective commit leaves a row in the outbox.
    pub outbox: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            max_connections: 16,
            acquire_timeout: Duration::from_secs(2),
            lock_timeout: Duration::from_secs(2),
            operation_timeout: Duration::from_secs(5),
            startup_timeout: Duration::from_secs(5),
            lock_retries: 3,
            optimistic_retries: 12,
            write: WriteStrategy::Pessimistic,
            outbox: false,
        }
    }
}

/// How a like is written (DESIGN §3). All of them take the post's row before any other, but for `Event`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum WriteStrategy {
    /// SELECT … FOR UPDATE, UPDATE, COMMIT
    #[default]
    Pessimistic,
    /// A version check instead of a lock: when somebody else was quicker the like begins again, a bounded number of times
    Optimistic,
    /// UPDATE … SET likes = likes + 1, then SELECT, in one transaction
    Atomic,
    /// Likes for one post that arrive in this pod while it commits share the next lock and commit
    Combining,
    /// The like is kept and answered 202 (pending); one applier per post adds those waiting to its count
    Event,
}

impl WriteStrategy {
    /// All of them, in the order of the flag's help.
    pub const ALL: [Self; 5] = [Self::Pessimistic, Self::Optimistic, Self::Atomic, Self::Combining, Self::Event];

    /// As on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pessimistic => "pessimistic",
            Self::Optimistic => "optimistic",
            Self::Atomic => "atomic",
            Self::Combining => "combining",
            Self::Event => "event",
        }
    }
}
