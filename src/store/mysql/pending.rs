//! Likes that are kept first and counted later: accepted without the post's row, added to its count in batches by whoever
//! holds the row.

use std::collections::BTreeSet;

use sqlx::mysql::MySqlConnection;
use sqlx::{MySqlTransaction, Row as _};
use tokio::time::{Instant, timeout_at};

use super::batch::Padded;
use super::failure::{Failure, Tries};
use super::transaction::{Prepared, begin, end};
use super::write::{Outbox, change_own_like, earlier, keep, lock_row, set_row, to_publish};
use super::{Connections, MySql};
use crate::domain::{LikesState, PostId, Version, unix_micros};
use crate::store::like::PENDING;
use crate::store::row::Batch;
use crate::store::{Counted, Lane, LikeOp, LikeOutcome, LikeRequest, Queue, Stages, StoreCounters, StoreError, sql};
use crate::telemetry::Trace;

/// Likes counted in one transaction at most.
const BATCH: u32 = 1_024;

/// Keeps a like. What it needs is decided here (its key, the user's one like), what it counts is decided later. Lock
/// order: the like's own row, then its key; the post's row is not taken.
pub(super) async fn accept(
    conn: &mut MySqlConnection,
    request: &LikeRequest,
    started: Instant,
    deadline: Instant,
) -> Result<LikeOutcome, Failure> {
    let mut transaction = begin(conn, deadline).await?;
    let prepared = timeout_at(deadline, put(&mut transaction, request)).await;
    let Prepared { value: mut outcome, dirty } = end(transaction, prepared, deadline).await?;
    outcome.committed_at = unix_micros();
    if dirty {
        outcome.stages.commit_us = Stages::since(started);
    }
    Ok(outcome)
}

async fn put(transaction: &mut MySqlTransaction<'_>, request: &LikeRequest) -> Result<Prepared<LikeOutcome>, Failure> {
    let post = request.post;
    if let Some(replay) = earlier(transaction, request, 0).await? {
        return Ok(replay);
    }
    let own_like_changed = match request.user_once() {
        Some(user) => Some(change_own_like(transaction, request, user).await?),
        None => None,
    };
    let mut outcome = LikeOutcome {
        state: LikesState { post_id: post, likes: 0, version: Version(PENDING) },
        prev: Version(PENDING),
        changed: false,
        replayed: false,
        pending: true,
        publish: None,
        stages: Stages::default(),
        committed_at: 0,
    };
    if own_like_changed == Some(false) {
        let row: Option<(u64, u64)> =
            sqlx::query_as(sql::ROW).bind(post.get()).fetch_optional(&mut **transaction).await?;
        let (likes, version) = row.ok_or(Failure::Refused(StoreError::UnknownPost))?;
        let version = Version(version);
        outcome.state = LikesState { post_id: post, likes, version };
        (outcome.prev, outcome.pending) = (version, false);
    } else {
        // READ COMMITTED: the post is looked for without a lock.
        let insert = "insert into pending_likes (post_id, unlikes, created_at) select id, ?, ? from posts where id = ?";
        let query = sqlx::query(insert).bind(request.op == LikeOp::Unlike).bind(unix_micros()).bind(post.get());
        if query.execute(&mut **transaction).await?.rows_affected() == 0 {
            return Err(Failure::Refused(StoreError::UnknownPost));
        }
    }
    if let Some(key) = &request.key {
        keep(transaction, &request.who, key, &outcome).await?;
    }
    let dirty = outcome.pending || request.key.is_some();
    Ok(Prepared { value: outcome, dirty })
}

/// Counts what waits for a post, at most [`BATCH`] of it. Whoever holds the post's row does; the others wait for it and
/// then find less, or nothing.
async fn count(
    conn: &mut MySqlConnection,
    post: PostId,
    outbox: bool,
    deadline: Instant,
) -> Result<Option<Counted>, Failure> {
    let mut transaction = begin(conn, deadline).await?;
    let work = async {
        let before = lock_row(&mut transaction, post.get()).await?;
        let select = "select id, unlikes, created_at from pending_likes where post_id = ? order by id limit ?";
        let rows = sqlx::query(select).bind(post.get()).bind(BATCH).fetch_all(&mut *transaction).await?;
        let mut requests = Vec::with_capacity(rows.len());
        let (mut ids, mut accepted_at) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for row in &rows {
            let op = if row.try_get::<bool, _>(1)? { LikeOp::Unlike } else { LikeOp::Like };
            requests.push(LikeRequest { op, ..LikeRequest::anonymous_like(post) });
            ids.push(row.try_get::<u64, _>(0)?);
            accepted_at.push(row.try_get::<u64, _>(2)?);
        }
        let Some(padded) = Padded::of(ids) else { return Ok(Prepared { value: None, dirty: false }) };
        // A user's one like was settled when it was accepted.
        let batch = Batch::of(before, &requests, &BTreeSet::new());
        let publish = if batch.row == before {
            None
        } else {
            set_row(&mut transaction, post.get(), batch.row).await?;
            // Each of the likes has its own trace, which ended with its acceptance.
            let outbox = Outbox { write: outbox, trace: &Trace::none() };
            Some(to_publish(&mut transaction, before, batch.row, post, outbox).await?)
        };
        // These and no others: rows with smaller ids may commit later.
        let delete = format!("delete from pending_likes where id in ({})", padded.places("?", ","));
        let query = sqlx::query(sqlx::AssertSqlSafe(delete));
        padded.iter().fold(query, |query, id| query.bind(*id)).execute(&mut *transaction).await?;
        let more = padded.len() >= BATCH as usize;
        Ok::<_, Failure>(Prepared { value: Some(Counted { publish, accepted_at, more, committed_at: 0 }), dirty: true })
    };
    let prepared = timeout_at(deadline, work).await;
    let mut counted = end(transaction, prepared, deadline).await?.value;
    if let Some(counted) = &mut counted {
        counted.committed_at = unix_micros();
        if let Some(publish) = &mut counted.publish {
            publish.event.committed_at = counted.committed_at;
        }
    }
    Ok(counted)
}

impl MySql {
    pub(in crate::store) async fn count_pending(&self, post: PostId) -> Result<Option<Counted>, StoreError> {
        let options = &self.inner.options;
        let deadline = Instant::now() + options.operation_timeout;
        let mut tries = Tries::default();
        loop {
            let mut conn = self.acquire(Connections::Writers, deadline).await?;
            match count(&mut conn, post, options.outbox, deadline).await {
                Ok(counted) => {
                    if counted.is_some() {
                        StoreCounters::count(&self.inner.counters.commits);
                    }
                    return Ok(counted);
                }
                Err(failure) => self.again(failure, conn, &mut tries, deadline, None).await?,
            }
        }
    }

    pub(in crate::store) async fn pending_posts(&self) -> Result<Vec<PostId>, StoreError> {
        let select = "select distinct post_id from pending_likes limit 1000";
        let posts: Vec<u64> =
            self.run(Lane::Repair, move |conn| Box::pin(sqlx::query_scalar(select).fetch_all(conn))).await?;
        Ok(posts.into_iter().filter_map(PostId::new).collect())
    }

    pub(in crate::store) async fn pending_queue(&self) -> Result<Queue, StoreError> {
        self.queue("select count(*), min(created_at) from pending_likes").await
    }
}
