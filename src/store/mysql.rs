//! MySQL and MariaDB: connections, bounded time, retries. The transactions themselves are in `mysql/write.rs`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, MySqlPool};
use tokio::time::{Instant, sleep, timeout_at};

use super::flights::Flights;
use super::{
    Lane, LikeOutcome, LikeRequest, Pooled, Post, StoreCounters, StoreError, StoreOptions, StoredState, WriteStrategy,
    sql,
};
use crate::domain::{Epoch, LikesState, PostId, Version, unix_micros};
use combiner::Combiner;
use failure::{Failure, Tries};
use lease::Lease;

/// Several likes of one post in one transaction.
mod batch;
/// Who shares a transaction with whom.
mod combiner;
/// What the database's errors mean.
mod failure;
/// A connection on loan.
mod lease;
/// Events to be published, written with what they tell.
mod outbox;
/// Likes that are kept first and counted later.
mod pending;
/// Tables, brought up to date by one pod at a time.
mod schema;
/// Tickets that were used.
mod tickets;
/// BEGIN and COMMIT.
mod transaction;
/// One like, one transaction.
mod write;

/// Least time a COMMIT is waited for, whatever was used up before: an unknown outcome is worse than a late one.
const COMMIT_PATIENCE: Duration = Duration::from_secs(1);

/// Between two tries to connect to a server that has no connection left.
const FULL: Duration = Duration::from_millis(50);

/// Sizes of `in (…)` lists: a batch is filled up with repeats to the next one, so that few statements are prepared.
const BATCHES: [usize; 4] = [1, 8, 64, 256];

/// Keys removed per transaction.
const SWEEP: u32 = 1000;

/// Pools of connections.
#[derive(Debug, Clone, Copy)]
enum Connections {
    /// For requests.
    Requests,
    /// For the writers of hot posts ([`WriteStrategy::Combining`]), who keep theirs as long as somebody waits.
    Writers,
    /// For re-reads, pings and sweeps.
    Repair,
}

/// One statement on its way.
type Work<'c, T> = BoxFuture<'c, Result<T, sqlx::Error>>;

/// The store.
#[derive(Debug, Clone)]
pub struct MySql {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: MySqlPool,
    writers: MySqlPool,
    repair: MySqlPool,
    options: StoreOptions,
    flights: Flights,
    counters: StoreCounters,
    combiner: Combiner,
}

impl MySql {
    pub(super) async fn connect(url: &str, options: StoreOptions) -> Result<Self, StoreError> {
        let connect: MySqlConnectOptions = url.parse().map_err(|e: sqlx::Error| StoreError::BadUrl(e.to_string()))?;
        let connect = connect.disable_statement_logging();
        schema::migrate(&connect, &options).await?;
        let pool = pool_options(&options).max_connections(options.max_connections).connect_lazy_with(connect.clone());
        let writers =
            pool_options(&options).max_connections(options.max_connections).connect_lazy_with(connect.clone());
        let repair = pool_options(&options).max_connections(1).connect_lazy_with(connect);
        let inner = Inner {
            pool,
            writers,
            repair,
            options,
            flights: Flights::default(),
            counters: StoreCounters::default(),
            combiner: Combiner::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(super) fn options(&self) -> &StoreOptions {
        &self.inner.options
    }

    pub(super) fn flights(&self) -> &Flights {
        &self.inner.flights
    }

    pub(super) fn counters(&self) -> &StoreCounters {
        &self.inner.counters
    }

    pub(super) async fn epoch(&self) -> Result<Epoch, StoreError> {
        let epoch: u32 = self.run(Lane::Requests, |conn| Box::pin(schema::epoch(conn))).await?;
        Ok(Epoch(epoch))
    }

    pub(super) async fn new_epoch(&self) -> Result<Epoch, StoreError> {
        let epoch: u32 = rand::random();
        let draw = "insert into epoch (id, value) values (1, ?) on duplicate key update value = ?";
        self.run(Lane::Requests, move |conn| Box::pin(sqlx::query(draw).bind(epoch).bind(epoch).execute(conn))).await?;
        Ok(Epoch(epoch))
    }

    pub(super) async fn create_post(&self, title: &str) -> Result<Post, StoreError> {
        let now = unix_micros();
        let done = self
            // Repeated, it may leave a post whose id nobody knows: harmless.
            .run(Lane::Requests, {
                let title = title.to_owned();
                move |conn| Box::pin(sqlx::query(sql::NEW_POST).bind(title.clone()).bind(now).bind(now).execute(conn))
            })
            .await?;
        let id = PostId::new(done.last_insert_id()).ok_or(StoreError::Limit("there are 2^53 posts"))?;
        Ok(Post { id, title: title.into(), created_at: now })
    }

    pub(super) async fn post(&self, id: PostId) -> Result<Post, StoreError> {
        let row: Option<(String, u64)> = self
            .run(Lane::Requests, move |conn| Box::pin(sqlx::query_as(sql::POST).bind(id.get()).fetch_optional(conn)))
            .await?;
        let (title, created_at) = row.ok_or(StoreError::UnknownPost)?;
        Ok(Post { id, title, created_at })
    }

    pub(super) async fn read(&self, lane: Lane, posts: &[PostId]) -> Result<Vec<StoredState>, StoreError> {
        let mut states = Vec::with_capacity(posts.len());
        for batch in posts.chunks(BATCHES[BATCHES.len() - 1]) {
            let size = BATCHES.into_iter().find(|size| *size >= batch.len()).unwrap_or(batch.len());
            let list = vec!["?"; size].join(",");
            // Only question marks are put into the text.
            let epoch = "(select value from epoch where id = 1)";
            let select = format!("select id, likes, version, changed_at, {epoch} from posts where id in ({list})");
            let ids: Vec<u64> = (0..size).map(|at| batch[at.min(batch.len() - 1)].get()).collect();
            let rows: Vec<(u64, u64, u64, u64, u32)> = self
                .run(lane, move |conn| {
                    let query = sqlx::query_as(sqlx::AssertSqlSafe(select.clone()));
                    Box::pin(ids.iter().fold(query, |query, id| query.bind(*id)).fetch_all(conn))
                })
                .await?;
            states.extend(rows.into_iter().filter_map(|(id, likes, version, changed_at, epoch)| {
                let state = LikesState { post_id: PostId::new(id)?, likes, version: Version(version) };
                Some(StoredState { state, changed_at, epoch: Epoch(epoch) })
            }));
        }
        Ok(states)
    }

    pub(super) async fn read_settled(&self, post: PostId) -> Result<LikesState, StoreError> {
        let select = "select likes, version from posts where id = ? for update";
        let row: Option<(u64, u64)> = self
            .run(Lane::Repair, move |conn| Box::pin(sqlx::query_as(select).bind(post.get()).fetch_optional(conn)))
            .await?;
        let (likes, version) = row.ok_or(StoreError::UnknownPost)?;
        Ok(LikesState { post_id: post, likes, version: Version(version) })
    }

    pub(super) async fn apply(&self, request: &LikeRequest) -> Result<LikeOutcome, StoreError> {
        let Inner { options, counters, .. } = &*self.inner;
        if options.write == WriteStrategy::Combining {
            return self.combine(request).await;
        }
        let started = Instant::now();
        let deadline = started + options.operation_timeout;
        let mut tries = Tries::default();
        loop {
            let mut conn = self.acquire(Connections::Requests, deadline).await?;
            let attempt = match options.write {
                WriteStrategy::Event => pending::accept(&mut conn, request, started, deadline).await,
                _ => write::attempt(&mut conn, request, options, started, deadline).await,
            };
            match attempt {
                Ok(outcome) => {
                    if outcome.stages.commit_us > 0 {
                        StoreCounters::count(&counters.commits);
                    }
                    return Ok(outcome);
                }
                Err(failure) => self.again(failure, conn, &mut tries, deadline, Some(request)).await?,
            }
        }
    }

    /// After a failed attempt: the final answer, or nothing when it makes sense to try again now. `request` is the one
    /// whose key may be under way in another pod.
    async fn again(
        &self,
        failure: Failure,
        mut conn: Lease,
        tries: &mut Tries,
        deadline: Instant,
        request: Option<&LikeRequest>,
    ) -> Result<(), StoreError> {
        let Inner { options, counters, .. } = &*self.inner;
        if failure.leaves_connection_unusable() {
            conn.discard();
        }
        let tried = match failure {
            Failure::Contended if tries.lock_errors < options.lock_retries => {
                tries.lock_errors += 1;
                tries.lock_errors + 2
            }
            Failure::Overtaken if tries.overtaken < options.optimistic_retries => {
                tries.overtaken += 1;
                tries.overtaken
            }
            Failure::LockTimeout => {
                StoreCounters::count(&counters.lock_timeouts);
                let first_is_under_way = match request {
                    Some(request) => write::key_in_flight(&mut conn, request).await,
                    None => false,
                };
                return Err(if first_is_under_way { StoreError::KeyInFlight } else { StoreError::Contended });
            }
            // The pool does not test connections before use: after a restart of the database each of them may be dead.
            Failure::Broken(cause) => {
                tries.broken += 1;
                if tries.broken > options.max_connections + 1 || Instant::now() >= deadline {
                    return Err(StoreError::Unavailable { cause });
                }
                StoreCounters::count(&counters.reconnects);
                return Ok(());
            }
            failure => {
                if matches!(failure, Failure::TimedOut | Failure::Unanswered) {
                    StoreCounters::count(&counters.timeouts);
                }
                return Err(failure.into_store_error(options.operation_timeout));
            }
        };
        StoreCounters::count(&counters.retries);
        // Others use the connection meanwhile. Longer each time, and at random: those who collided do not again.
        drop(conn);
        let most = 250_u64 << tried.min(7);
        sleep(Duration::from_micros(rand::random_range(most / 8..most))).await;
        Ok(())
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        self.run(Lane::Repair, |conn| Box::pin(conn.ping())).await
    }

    pub(super) async fn sweep_keys(&self, age: Duration) -> Result<u64, StoreError> {
        let before = unix_micros().saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
        let delete = "delete from idempotency_keys where created_at < ? limit ?";
        let mut swept = 0;
        loop {
            let done = self
                .run(Lane::Repair, move |conn| Box::pin(sqlx::query(delete).bind(before).bind(SWEEP).execute(conn)))
                .await?;
            swept += done.rows_affected();
            if done.rows_affected() < u64::from(SWEEP) {
                return Ok(swept);
            }
        }
    }

    pub(super) fn pooled(&self) -> Pooled {
        let Inner { pool, writers, repair, .. } = &*self.inner;
        [pool, writers, repair].into_iter().fold(Pooled::default(), |sum, pool| sum.add(pool.size(), pool.num_idle()))
    }

    pub(super) async fn close(&self) {
        self.inner.pool.close().await;
        self.inner.writers.close().await;
        self.inner.repair.close().await;
    }

    async fn acquire(&self, which: Connections, deadline: Instant) -> Result<Lease, StoreError> {
        let pool = match which {
            Connections::Requests => &self.inner.pool,
            Connections::Writers => &self.inner.writers,
            Connections::Repair => &self.inner.repair,
        };
        let (counters, began) = (&self.inner.counters, Instant::now());
        let patience = self.inner.options.acquire_timeout;
        let acquiring = async {
            loop {
                match pool.acquire().await {
                    // sqlx gives up at once, although one of the pool's own may be free in a moment.
                    Err(error) if failure::is_full(&error) && began.elapsed() < patience => sleep(FULL).await,
                    acquired => break acquired,
                }
            }
        };
        let acquired = timeout_at(deadline, acquiring).await;
        counters.acquire.observe(began.elapsed());
        let in_vain = |error: &sqlx::Error| matches!(error, sqlx::Error::PoolTimedOut) || failure::is_full(error);
        if acquired.as_ref().map_or(true, |acquired| acquired.as_ref().is_err_and(in_vain)) {
            StoreCounters::count(&counters.pool_timeouts);
        }
        match acquired {
            Ok(Ok(conn)) => Ok(Lease::new(conn)),
            Ok(Err(e)) => Err(StoreError::Unavailable { cause: format!("no connection: {e}") }),
            Err(_) => Err(StoreError::Timeout(self.inner.options.operation_timeout)),
        }
    }

    /// Runs one statement that may be repeated, in bounded time; again when the connection was found dead.
    async fn run<T>(&self, lane: Lane, work: impl Fn(&mut MySqlConnection) -> Work<'_, T>) -> Result<T, StoreError> {
        let attempts = self.inner.options.max_connections + 2;
        let limit = self.inner.options.operation_timeout;
        let deadline = Instant::now() + limit;
        for attempt in 1.. {
            let which = match lane {
                Lane::Requests => Connections::Requests,
                Lane::Repair => Connections::Repair,
            };
            let mut conn = self.acquire(which, deadline).await?;
            let failure = match timeout_at(deadline, work(&mut conn)).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(e)) => Failure::from(e),
                Err(_) => Failure::TimedOut,
            };
            if failure.leaves_connection_unusable() {
                conn.discard();
            }
            match failure {
                Failure::Broken(_) if attempt < attempts => StoreCounters::count(&self.inner.counters.reconnects),
                Failure::TimedOut => StoreCounters::count(&self.inner.counters.timeouts),
                Failure::LockTimeout => StoreCounters::count(&self.inner.counters.lock_timeouts),
                _ => {}
            }
            if attempt >= attempts || !matches!(failure, Failure::Broken(_)) {
                return Err(failure.into_store_error(limit));
            }
        }
        Err(StoreError::Timeout(limit))
    }
}

/// PERFORMANCE §3: no ping before every use; a lock wait of our own; no gap locks; nobody keeps a row for ever.
fn pool_options(options: &StoreOptions) -> MySqlPoolOptions {
    let lock_seconds = options.lock_timeout.as_secs_f64().ceil().max(1.0);
    let idle_seconds = options.operation_timeout.as_secs_f64().ceil().max(1.0);
    // A pod that hangs with a row locked is thrown out by MariaDB; MySQL takes this part for a comment.
    let session = format!(
        "set session innodb_lock_wait_timeout = {lock_seconds} /*M!100300 , idle_transaction_timeout = {idle_seconds} */"
    );
    MySqlPoolOptions::new()
        .acquire_timeout(options.acquire_timeout)
        .test_before_acquire(false)
        .max_lifetime(Duration::from_secs(30 * 60))
        .idle_timeout(Duration::from_secs(10 * 60))
        .after_connect(move |conn, _| {
            let session = session.clone();
            Box::pin(async move {
                conn.execute("set session transaction isolation level read committed").await?;
                conn.execute(sqlx::AssertSqlSafe(session)).await?;
                Ok(())
            })
        })
}
