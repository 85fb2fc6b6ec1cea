//! The transactions of a like. Lock order: the post's row, then its like and key rows.

use sqlx::mysql::MySqlConnection;
use sqlx::{Connection, Executor, MySqlTransaction};
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::Failure;
use super::{COMMIT_PATIENCE, rollback};
use crate::domain::{LikesState, Version, unix_micros};
use crate::store::{
    IdempotencyKey, LikeOp, LikeOutcome, LikeRequest, Row, Stages, StoreError, StoreOptions, Who, WriteStrategy,
};

/// What a transaction has done before its COMMIT.
struct Prepared {
    outcome: LikeOutcome,
    /// Something was written: COMMIT. Otherwise ROLLBACK.
    dirty: bool,
}

/// One attempt: BEGIN to COMMIT. On failure the whole transaction is rolled back, or the connection is unusable.
pub(super) async fn attempt(
    conn: &mut MySqlConnection,
    request: &LikeRequest,
    options: &StoreOptions,
    started: Instant,
    deadline: Instant,
) -> Result<LikeOutcome, Failure> {
    let mut transaction = match timeout_at(deadline, conn.begin()).await {
        Ok(begun) => begun?,
        Err(_) => return Err(Failure::TimedOut),
    };
    let prepared = match options.write {
        WriteStrategy::Pessimistic => timeout_at(deadline, pessimistic(&mut transaction, request, started)).await,
    };
    let Prepared { mut outcome, dirty } = match prepared {
        Ok(Ok(prepared)) => prepared,
        // Dropping the transaction would roll back too, but later: others wait for the row.
        Ok(Err(failure)) if failure.leaves_connection_unusable() => return Err(failure),
        Ok(Err(failure)) => {
            return Err(if rollback(transaction).await { failure } else { Failure::Broken("rollback failed".into()) });
        }
        Err(_) => return Err(Failure::TimedOut),
    };
    if !dirty {
        rollback(transaction).await;
        outcome.committed_at = unix_micros();
        return Ok(outcome);
    }
    match timeout_at(deadline.max(Instant::now() + COMMIT_PATIENCE), transaction.commit()).await {
        Ok(Ok(())) => {}
        // An error in the database's own words: it has not committed.
        Ok(Err(e)) if e.as_database_error().is_some() => return Err(e.into()),
        Ok(Err(e)) => return Err(Failure::Unknown(e.to_string())),
        Err(_) => return Err(Failure::Unknown("no answer to COMMIT in time".into())),
    }
    outcome.committed_at = unix_micros();
    outcome.stages.commit_us = micros(started) - outcome.stages.lock_us;
    Ok(outcome)
}

async fn pessimistic(
    transaction: &mut MySqlTransaction<'_>,
    request: &LikeRequest,
    started: Instant,
) -> Result<Prepared, Failure> {
    let post = request.post;
    let select = "select likes, version from posts where id = ? for update";
    let row: Option<(u64, u64)> = sqlx::query_as(select).bind(post.get()).fetch_optional(&mut **transaction).await?;
    let lock_us = micros(started);
    let (likes, version) = row.ok_or(Failure::Refused(StoreError::UnknownPost))?;
    let row = Row { likes, version };
    if let Some(key) = &request.key
        && let Some(mut outcome) = earlier(transaction, request, key).await?
    {
        outcome.stages.lock_us = lock_us;
        return Ok(Prepared { outcome, dirty: false });
    }

    let own_like_changed = match request.user_once() {
        Some(user) => Some(change_own_like(transaction, request, user).await?),
        None => None,
    };
    let after = if own_like_changed == Some(false) { None } else { row.after(request.op).map_err(Failure::Refused)? };
    if let Some(after) = after {
        let update = "update posts set likes = ?, version = ?, changed_at = ? where id = ?";
        let query = sqlx::query(update).bind(after.likes).bind(after.version).bind(unix_micros()).bind(post.get());
        query.execute(&mut **transaction).await?;
    }
    let outcome = LikeOutcome {
        state: after.unwrap_or(row).state(post),
        prev: Version(version),
        changed: after.is_some(),
        replayed: false,
        stages: Stages { lock_us, commit_us: 0 },
        committed_at: 0,
    };
    if let Some(key) = &request.key {
        keep(transaction, &request.who, key, &outcome).await?;
    }
    let dirty = outcome.changed || own_like_changed == Some(true) || request.key.is_some();
    Ok(Prepared { outcome, dirty })
}

/// Adds or removes the user's one like; false when it was so already.
async fn change_own_like(
    transaction: &mut MySqlTransaction<'_>,
    request: &LikeRequest,
    user: &str,
) -> Result<bool, sqlx::Error> {
    let query = match request.op {
        LikeOp::Like => sqlx::query("insert ignore into likes (post_id, user, liked_at) values (?, ?, ?)")
            .bind(request.post.get())
            .bind(user)
            .bind(unix_micros()),
        LikeOp::Unlike => {
            sqlx::query("delete from likes where post_id = ? and user = ?").bind(request.post.get()).bind(user)
        }
    };
    Ok(query.execute(&mut **transaction).await?.rows_affected() > 0)
}

/// The answer given to an earlier request with this key.
async fn earlier(
    transaction: &mut MySqlTransaction<'_>,
    request: &LikeRequest,
    key: &IdempotencyKey,
) -> Result<Option<LikeOutcome>, Failure> {
    let select = "select payload_hash, likes, version, prev, changed from idempotency_keys \
        where who = ? and scope = ? and value = ?";
    let kept: Option<(Vec<u8>, u64, u64, u64, bool)> = sqlx::query_as(select)
        .bind(request.who.column())
        .bind(&key.scope)
        .bind(&key.value)
        .fetch_optional(&mut **transaction)
        .await?;
    let Some((payload_hash, likes, version, prev, changed)) = kept else { return Ok(None) };
    if payload_hash != key.payload_hash {
        return Err(Failure::Refused(StoreError::KeyMismatch));
    }
    Ok(Some(LikeOutcome {
        state: LikesState { post_id: request.post, likes, version: Version(version) },
        prev: Version(prev),
        changed,
        replayed: true,
        stages: Stages::default(),
        committed_at: 0,
    }))
}

/// Keeps the answer for repeats.
async fn keep(
    transaction: &mut MySqlTransaction<'_>,
    who: &Who,
    key: &IdempotencyKey,
    outcome: &LikeOutcome,
) -> Result<(), sqlx::Error> {
    let insert = "insert into idempotency_keys \
        (who, scope, value, payload_hash, likes, version, prev, changed, created_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let query = sqlx::query(insert).bind(who.column()).bind(&key.scope).bind(&key.value);
    let query = query.bind(&key.payload_hash[..]).bind(outcome.state.likes).bind(outcome.state.version.0);
    let query = query.bind(outcome.prev.0).bind(outcome.changed).bind(unix_micros());
    query.execute(&mut **transaction).await?;
    Ok(())
}

/// Whether another pod is just now inside a transaction with this key: its row is visible before it is committed.
/// Asked only after a lock time-out.
pub(super) async fn key_in_flight(conn: &mut MySqlConnection, request: &LikeRequest) -> bool {
    let Some(key) = &request.key else { return false };
    let ask = async {
        conn.execute("set transaction isolation level read uncommitted").await?;
        let select = "select 1 from idempotency_keys where who = ? and scope = ? and value = ?";
        let query = sqlx::query_scalar::<_, i64>(select).bind(request.who.column()).bind(&key.scope).bind(&key.value);
        query.fetch_optional(conn).await
    };
    matches!(timeout(COMMIT_PATIENCE, ask).await, Ok(Ok(Some(_))))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
