//! The outbox: an event's row commits with the change it tells of, and goes once the event is published.

use std::time::Duration;

use sqlx::MySqlTransaction;
use sqlx::mysql::MySqlConnection;
use tokio::time::{Instant, timeout_at};

use super::batch::Padded;
use super::failure::{Failure, Tries};
use super::transaction::{Prepared, begin, end};
use super::{Connections, MySql};
use crate::domain::{LikesChanged, PostId, Version, unix_micros};
use crate::store::{Queue, StoreError, ToPublish};
use crate::telemetry::Trace;
use crate::telemetry::trace::Carrier;

/// Writes an event's row; its id.
pub(super) async fn add(
    transaction: &mut MySqlTransaction<'_>,
    event: &LikesChanged,
    trace: &Trace,
) -> Result<u64, sqlx::Error> {
    let Carrier { parent, state } = trace.carrier().unwrap_or_default();
    let insert = "insert into outbox (post_id, likes, version, prev, created_at, traceparent, tracestate) \
        values (?, ?, ?, ?, ?, ?, ?)";
    let query = sqlx::query(insert).bind(event.post_id.get()).bind(event.likes).bind(event.version.0);
    let query = query.bind(event.prev.0).bind(event.committed_at).bind(parent).bind(state);
    let done = query.execute(&mut **transaction).await?;
    Ok(done.last_insert_id())
}

impl MySql {
    /// Whether the server can skip locked rows: MariaDB 10.6, MySQL 8.
    pub(in crate::store) async fn check_outbox(&self) -> Result<(), StoreError> {
        let select = "select id from outbox order by id limit 1 for update skip locked";
        let read = self.run(crate::store::Lane::Requests, move |conn| {
            Box::pin(sqlx::query_scalar::<_, u64>(select).fetch_optional(conn))
        });
        read.await.map(|_| ()).map_err(|error| match error {
            StoreError::Unavailable { cause } if cause.contains("syntax") => {
                StoreError::Unsupported("the outbox needs SKIP LOCKED: MariaDB 10.6 or MySQL 8, or a newer one".into())
            }
            other => other,
        })
    }

    pub(in crate::store) async fn published(&self, rows: &[u64]) -> Result<(), StoreError> {
        let Some(padded) = Padded::of(rows.to_vec()) else { return Ok(()) };
        let delete = format!("delete from outbox where id in ({})", padded.places("?", ","));
        let ids: Vec<u64> = padded.iter().copied().collect();
        self.run(crate::store::Lane::Requests, move |conn| {
            let query = sqlx::query(sqlx::AssertSqlSafe(delete.clone()));
            Box::pin(ids.iter().fold(query, |query, id| query.bind(*id)).execute(conn))
        })
        .await
        .map(|_| ())
    }

    pub(in crate::store) async fn publish_left<F>(
        &self,
        age: Duration,
        most: u32,
        publish: impl FnOnce(Vec<ToPublish>) -> F + Send,
    ) -> Result<usize, StoreError>
    where
        F: Future<Output = Vec<u64>> + Send,
    {
        let deadline = Instant::now() + self.inner.options.operation_timeout;
        let mut conn = self.acquire(Connections::Requests, deadline).await?;
        match relay(&mut conn, age, most, publish, deadline).await {
            Ok(published) => Ok(published),
            Err(failure) => {
                let mut no_more = Tries { lock_errors: u32::MAX, overtaken: u32::MAX, broken: u32::MAX - 1 };
                let refused = self.again(failure, conn, &mut no_more, deadline, None).await;
                Err(refused.err().unwrap_or(StoreError::Contended))
            }
        }
    }

    pub(in crate::store) async fn outbox_queue(&self) -> Result<Queue, StoreError> {
        self.queue("select count(*), min(created_at) from outbox").await
    }

    /// How many rows there are, and since when.
    pub(super) async fn queue(&self, select: &'static str) -> Result<Queue, StoreError> {
        let (rows, oldest): (i64, Option<u64>) =
            self.run(crate::store::Lane::Repair, move |conn| Box::pin(sqlx::query_as(select).fetch_one(conn))).await?;
        let waits = oldest.map_or(0, |oldest| unix_micros().saturating_sub(oldest));
        Ok(Queue { rows: rows.unsigned_abs(), oldest: Duration::from_micros(waits) })
    }
}

/// Claims rows that are old enough (by what they are, not by an id already reached: ids are given out before COMMIT, so
/// a reader of "the next ids" skips rows that commit late), has them published, deletes those that were. How many were.
async fn relay<F>(
    conn: &mut MySqlConnection,
    age: Duration,
    most: u32,
    publish: impl FnOnce(Vec<ToPublish>) -> F + Send,
    deadline: Instant,
) -> Result<usize, Failure>
where
    F: Future<Output = Vec<u64>> + Send,
{
    let mut transaction = begin(conn, deadline).await?;
    let work = async {
        let before = unix_micros().saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
        type Left = (u64, u64, u64, u64, u64, u64, Option<String>, Option<String>);
        let select = "select id, post_id, likes, version, prev, created_at, traceparent, tracestate from outbox \
            where created_at <= ? order by id limit ? for update skip locked";
        let rows: Vec<Left> = sqlx::query_as(select).bind(before).bind(most).fetch_all(&mut *transaction).await?;
        let rows = rows.into_iter().filter_map(|(id, post, likes, version, prev, committed_at, parent, state)| {
            let (version, prev) = (Version(version), Version(prev));
            let event = LikesChanged { post_id: PostId::new(post)?, likes, version, prev, committed_at };
            let kept = parent.is_some().then(|| Box::new(Carrier { parent, state }));
            Some(ToPublish { event, outbox: Some(id), trace: Trace::none(), kept })
        });
        let rows: Vec<ToPublish> = rows.collect();
        let published = if rows.is_empty() { Vec::new() } else { publish(rows).await };
        let taken = published.len();
        if let Some(padded) = Padded::of(published) {
            let delete = format!("delete from outbox where id in ({})", padded.places("?", ","));
            let query = sqlx::query(sqlx::AssertSqlSafe(delete));
            padded.iter().fold(query, |query, id| query.bind(*id)).execute(&mut *transaction).await?;
        }
        Ok::<_, Failure>(Prepared { value: taken, dirty: taken > 0 })
    };
    let prepared = timeout_at(deadline, work).await;
    Ok(end(transaction, prepared, deadline).await?.value)
}
