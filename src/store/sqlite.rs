//! SQLite for the embedded stack: one writer (`BEGIN IMMEDIATE`), readers beside it (WAL). All pods of a process share one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::flights::Flights;
use super::{Lane, LikeOutcome, LikeRequest, Pooled, Post, StoreCounters, StoreError, StoreOptions, StoredState, sql};
use crate::domain::{Epoch, LikesState, PostId, Version, unix_micros};

/// Tickets that were used.
mod tickets;
/// The transactions of a like.
mod write;

/// Readers: SQLite serves them in this process, more would not be faster.
const READERS: u32 = 4;

/// The store.
#[derive(Debug, Clone)]
pub struct Sqlite {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    writer: SqlitePool,
    readers: SqlitePool,
    options: StoreOptions,
    flights: Flights,
    counters: StoreCounters,
}

impl Sqlite {
    pub(super) async fn connect(url: &str, options: StoreOptions) -> Result<Self, StoreError> {
        let path = url.strip_prefix("sqlite:").unwrap_or(url);
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.contains(":memory:") {
            return Err(StoreError::BadUrl("sqlite: is followed by the path of a file".into()));
        }
        // FULL: an acknowledged like survives a power cut, as with MySQL's innodb_flush_log_at_trx_commit = 1.
        let connect = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(options.lock_timeout)
            .disable_statement_logging();
        let pool = || {
            let pool = SqlitePoolOptions::new().acquire_timeout(options.acquire_timeout).test_before_acquire(false);
            pool.idle_timeout(None).max_lifetime(None)
        };
        let writer = pool().max_connections(1).connect_lazy_with(connect.clone());
        let readers = pool().max_connections(READERS).connect_lazy_with(connect);
        let (flights, counters) = (Flights::default(), StoreCounters::default());
        let store = Self { inner: Arc::new(Inner { writer, readers, options, flights, counters }) };
        // Two that switch a new file to WAL at once: SQLite tells one of them "busy" without the wait it was asked for.
        let deadline = Instant::now() + store.options().startup_timeout;
        loop {
            match store.migrate().await {
                Err(StoreError::Contended) if Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
                Err(StoreError::Unavailable { cause }) => {
                    return Err(StoreError::Unavailable { cause: format!("{path}: {cause}") });
                }
                done => break done?,
            }
        }
        Ok(store)
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

    /// Inside one `BEGIN IMMEDIATE`: of two processes that start at once, one waits.
    async fn migrate(&self) -> Result<(), StoreError> {
        let first: u32 = rand::random();
        self.run(&self.inner.writer, move |conn| {
            Box::pin(async move {
                let mut transaction = conn.begin_with("begin immediate").await?;
                let mut migrator = sqlx::migrate!("src/store/migrations/sqlite");
                migrator.set_ignore_missing(true);
                let migrated = migrator.run_direct(None, &mut *transaction, false).await;
                migrated.map_err(|e| sqlx::Error::Protocol(e.to_string()))?;
                let draw = sqlx::query("insert or ignore into epoch (id, value) values (1, ?)").bind(first);
                draw.execute(&mut *transaction).await?;
                transaction.commit().await
            })
        })
        .await
    }

    pub(super) async fn epoch(&self) -> Result<Epoch, StoreError> {
        let epoch: u32 =
            self.run(&self.inner.readers, move |conn| Box::pin(sqlx::query_scalar(sql::EPOCH).fetch_one(conn))).await?;
        Ok(Epoch(epoch))
    }

    pub(super) async fn new_epoch(&self) -> Result<Epoch, StoreError> {
        let epoch: u32 = rand::random();
        let draw = "insert or replace into epoch (id, value) values (1, ?)";
        self.run(&self.inner.writer, move |conn| Box::pin(sqlx::query(draw).bind(epoch).execute(conn))).await?;
        Ok(Epoch(epoch))
    }

    pub(super) async fn create_post(&self, title: &str) -> Result<Post, StoreError> {
        let created_at = unix_micros();
        let now = created_at.cast_signed();
        let done = self
            .run(&self.inner.writer, {
                let title = title.to_owned();
                move |conn| Box::pin(sqlx::query(sql::NEW_POST).bind(title.clone()).bind(now).bind(now).execute(conn))
            })
            .await?;
        let id =
            PostId::new(done.last_insert_rowid().cast_unsigned()).ok_or(StoreError::Limit("there are 2^53 posts"))?;
        Ok(Post { id, title: title.into(), created_at })
    }

    pub(super) async fn post(&self, id: PostId) -> Result<Post, StoreError> {
        let row: Option<(String, i64)> = self
            .run(&self.inner.readers, move |conn| {
                Box::pin(sqlx::query_as(sql::POST).bind(id.get().cast_signed()).fetch_optional(conn))
            })
            .await?;
        let (title, created_at) = row.ok_or(StoreError::UnknownPost)?;
        Ok(Post { id, title, created_at: created_at.cast_unsigned() })
    }

    pub(super) async fn read(&self, _lane: Lane, posts: &[PostId]) -> Result<Vec<StoredState>, StoreError> {
        let mut states = Vec::with_capacity(posts.len());
        for batch in posts.chunks(256) {
            // Numbers only, as JSON: one statement for every length.
            let ids = serde_json::to_string(batch).unwrap_or_default();
            let select = "select id, likes, version, changed_at, (select value from epoch where id = 1) from posts \
                where id in (select value from json_each(?))";
            let rows: Vec<(i64, i64, i64, i64, u32)> = self
                .run(&self.inner.readers, move |conn| {
                    Box::pin(sqlx::query_as(select).bind(ids.clone()).fetch_all(conn))
                })
                .await?;
            states.extend(rows.into_iter().filter_map(|(id, likes, version, changed_at, epoch)| {
                let post_id = PostId::new(id.cast_unsigned())?;
                let state =
                    LikesState { post_id, likes: likes.cast_unsigned(), version: Version(version.cast_unsigned()) };
                Some(StoredState { state, changed_at: changed_at.cast_unsigned(), epoch: Epoch(epoch) })
            }));
        }
        Ok(states)
    }

    pub(super) async fn apply(&self, request: &LikeRequest) -> Result<LikeOutcome, StoreError> {
        let Inner { writer, options, counters, .. } = &*self.inner;
        let started = Instant::now();
        let limit = options.operation_timeout;
        let mut conn = match timeout_at(started + limit, self.acquire(writer)).await {
            Ok(conn) => conn?,
            Err(_) => {
                StoreCounters::count(&counters.pool_timeouts);
                return Err(StoreError::Timeout(limit));
            }
        };
        match timeout_at(started + limit, write::transaction(&mut conn, request, started)).await {
            Ok(result) => {
                self.locked(&result);
                if result.as_ref().is_ok_and(|outcome| outcome.stages.commit_us > 0) {
                    StoreCounters::count(&counters.commits);
                }
                result
            }
            // Between BEGIN and COMMIT nothing leaves this process: either SQLite is done, or it rolls back. Which of both,
            // is not known here.
            Err(_) => {
                conn.close_on_drop();
                StoreCounters::count(&counters.timeouts);
                Err(StoreError::OutcomeUnknown { cause: format!("the file did not answer within {limit:?}") })
            }
        }
    }

    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        self.run(&self.inner.readers, |conn| Box::pin(conn.ping())).await
    }

    pub(super) async fn sweep_keys(&self, age: Duration) -> Result<u64, StoreError> {
        let before = unix_micros().saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX)).cast_signed();
        let delete = "delete from idempotency_keys where (who, scope, value) in \
            (select who, scope, value from idempotency_keys where created_at < ? limit 1000)";
        let mut swept = 0;
        loop {
            let done = self
                .run(&self.inner.writer, move |conn| Box::pin(sqlx::query(delete).bind(before).execute(conn)))
                .await?
                .rows_affected();
            swept += done;
            if done < 1000 {
                return Ok(swept);
            }
        }
    }

    pub(super) fn pooled(&self) -> Pooled {
        let Inner { writer, readers, .. } = &*self.inner;
        [writer, readers].into_iter().fold(Pooled::default(), |sum, pool| sum.add(pool.size(), pool.num_idle()))
    }

    pub(super) async fn close(&self) {
        self.inner.writer.close().await;
        self.inner.readers.close().await;
    }

    async fn acquire(&self, pool: &SqlitePool) -> Result<PoolConnection<sqlx::Sqlite>, StoreError> {
        let (counters, began) = (&self.inner.counters, Instant::now());
        let acquired = pool.acquire().await;
        counters.acquire.observe(began.elapsed());
        if matches!(acquired, Err(sqlx::Error::PoolTimedOut)) {
            StoreCounters::count(&counters.pool_timeouts);
        }
        acquired.map_err(|e| failure(&e))
    }

    /// SQLite waits by itself for another writer, as long as it was told, and then gives up.
    fn locked<T>(&self, done: &Result<T, StoreError>) {
        if matches!(done, Err(StoreError::Contended)) {
            StoreCounters::count(&self.inner.counters.lock_timeouts);
        }
    }

    async fn run<T>(
        &self,
        pool: &SqlitePool,
        work: impl Fn(&mut SqliteConnection) -> BoxFuture<'_, Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let limit = self.inner.options.operation_timeout;
        let operation = async {
            let mut conn = self.acquire(pool).await?;
            let done = work(&mut conn).await.map_err(|e| failure(&e));
            self.locked(&done);
            done
        };
        timeout(limit, operation).await.unwrap_or_else(|_| {
            StoreCounters::count(&self.inner.counters.timeouts);
            Err(StoreError::Timeout(limit))
        })
    }
}

/// `SQLITE_BUSY` and `SQLITE_LOCKED`, with their extended codes, mean another writer.
fn failure(error: &sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    match code.and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff) {
        Some(5 | 6) => StoreError::Contended,
        _ => StoreError::Unavailable { cause: error.to_string() },
    }
}
