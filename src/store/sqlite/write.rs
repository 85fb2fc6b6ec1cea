//! The transactions of a like. `BEGIN IMMEDIATE` is the lock: the whole file's, so the post's too.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, SqliteTransaction};
use tokio::time::Instant;

use crate::domain::{LikesChanged, Version, unix_micros};
use crate::store::row::Row;
use crate::store::{IdempotencyKey, LikeOp, LikeOutcome, LikeRequest, Stages, StoreError, ToPublish, Who, sql};

/// An error of ours, or the driver's in our words.
struct Failure(StoreError);

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self(super::failure(&error))
    }
}

/// What a transaction has done before its COMMIT.
struct Prepared {
    outcome: LikeOutcome,
    /// Something was written: COMMIT. Otherwise ROLLBACK.
    dirty: bool,
}

/// BEGIN to COMMIT; rolled back on failure.
pub(super) async fn transaction(
    conn: &mut SqliteConnection,
    request: &LikeRequest,
    started: Instant,
) -> Result<LikeOutcome, StoreError> {
    attempt(conn, request, started).await.map_err(|Failure(error)| error)
}

async fn attempt(conn: &mut SqliteConnection, request: &LikeRequest, started: Instant) -> Result<LikeOutcome, Failure> {
    let mut transaction = conn.begin_with("begin immediate").await?;
    let Prepared { mut outcome, dirty } = pessimistic(&mut transaction, request, started).await?;
    if dirty {
        transaction.commit().await?
    } else {
        transaction.rollback().await?
    }
    outcome.committed_at = unix_micros();
    if dirty {
        outcome.stages.commit_us = Stages::since(started) - outcome.stages.lock_us;
    }
    if outcome.changed && !outcome.replayed {
        let (state, prev, committed_at) = (outcome.state, outcome.prev, outcome.committed_at);
        let (post_id, likes, version) = (state.post_id, state.likes, state.version);
        let event = LikesChanged { post_id, likes, version, prev, committed_at };
        outcome.publish = Some(ToPublish { event, outbox: None, trace: request.trace.clone(), kept: None });
    }
    Ok(outcome)
}

async fn pessimistic(
    transaction: &mut SqliteTransaction<'_>,
    request: &LikeRequest,
    started: Instant,
) -> Result<Prepared, Failure> {
    let post = request.post;
    let row: Option<(i64, i64)> =
        sqlx::query_as(sql::ROW).bind(post.get().cast_signed()).fetch_optional(&mut **transaction).await?;
    let lock_us = Stages::since(started);
    let (likes, version) = row.ok_or(Failure(StoreError::UnknownPost))?;
    let row = Row { likes: likes.cast_unsigned(), version: version.cast_unsigned() };
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
    let after = if own_like_changed == Some(false) { None } else { row.after(request.op).map_err(Failure)? };
    if let Some(after) = after {
        let query = sqlx::query(sql::SET_ROW)
            .bind(after.likes.cast_signed())
            .bind(after.version.cast_signed())
            .bind(unix_micros().cast_signed())
            .bind(post.get().cast_signed());
        query.execute(&mut **transaction).await?;
    }
    let outcome = LikeOutcome {
        state: after.unwrap_or(row).state(post),
        prev: Version(row.version),
        changed: after.is_some(),
        replayed: false,
        pending: false,
        publish: None,
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
    transaction: &mut SqliteTransaction<'_>,
    request: &LikeRequest,
    user: &str,
) -> Result<bool, Failure> {
    let query = match request.op {
        LikeOp::Like => sqlx::query("insert or ignore into likes (post_id, user, liked_at) values (?, ?, ?)")
            .bind(request.post.get().cast_signed())
            .bind(user)
            .bind(unix_micros().cast_signed()),
        LikeOp::Unlike => sqlx::query(sql::REMOVE_OWN_LIKE).bind(request.post.get().cast_signed()).bind(user),
    };
    Ok(query.execute(&mut **transaction).await?.rows_affected() > 0)
}

/// The answer given to an earlier request with this key.
async fn earlier(
    transaction: &mut SqliteTransaction<'_>,
    request: &LikeRequest,
    key: &IdempotencyKey,
) -> Result<Option<LikeOutcome>, Failure> {
    let kept: Option<(Vec<u8>, i64, i64, i64, bool)> = sqlx::query_as(sql::EARLIER)
        .bind(request.who.column())
        .bind(&key.scope)
        .bind(&key.value)
        .fetch_optional(&mut **transaction)
        .await?;
    let Some((payload_hash, likes, version, prev, changed)) = kept else { return Ok(None) };
    let [likes, version, prev] = [likes, version, prev].map(i64::cast_unsigned);
    let kept = (payload_hash, likes, version, prev, changed);
    LikeOutcome::kept(request.post, key, kept).map(Some).map_err(Failure)
}

/// Keeps the answer for repeats.
async fn keep(
    transaction: &mut SqliteTransaction<'_>,
    who: &Who,
    key: &IdempotencyKey,
    outcome: &LikeOutcome,
) -> Result<(), Failure> {
    let query = sqlx::query(sql::KEEP).bind(who.column()).bind(&key.scope).bind(&key.value);
    let query = query
        .bind(&key.payload_hash[..])
        .bind(outcome.state.likes.cast_signed())
        .bind(outcome.state.version.0.cast_signed());
    let query = query.bind(outcome.prev.0.cast_signed()).bind(outcome.changed).bind(unix_micros().cast_signed());
    query.execute(&mut **transaction).await?;
    Ok(())
}
