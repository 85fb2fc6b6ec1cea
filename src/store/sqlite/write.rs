//! The transactions of a like. `BEGIN IMMEDIATE` is the lock: the whole file's, so the post's too.

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, SqliteTransaction};
use tokio::time::Instant;

use crate::domain::{LikesState, Version, unix_micros};
use crate::store::{IdempotencyKey, LikeOp, LikeOutcome, LikeRequest, Row, Stages, StoreError, Who, WriteStrategy};

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
    strategy: WriteStrategy,
    started: Instant,
) -> Result<LikeOutcome, StoreError> {
    attempt(conn, request, strategy, started).await.map_err(|Failure(error)| error)
}

async fn attempt(
    conn: &mut SqliteConnection,
    request: &LikeRequest,
    strategy: WriteStrategy,
    started: Instant,
) -> Result<LikeOutcome, Failure> {
    let mut transaction = conn.begin_with("begin immediate").await?;
    let Prepared { mut outcome, dirty } = match strategy {
        WriteStrategy::Pessimistic => pessimistic(&mut transaction, request, started).await?,
    };
    if dirty {
        transaction.commit().await?
    } else {
        transaction.rollback().await?
    }
    outcome.committed_at = unix_micros();
    outcome.stages.commit_us = micros(started) - outcome.stages.lock_us;
    Ok(outcome)
}

async fn pessimistic(
    transaction: &mut SqliteTransaction<'_>,
    request: &LikeRequest,
    started: Instant,
) -> Result<Prepared, Failure> {
    let post = request.post;
    let select = "select likes, version from posts where id = ?";
    let row: Option<(i64, i64)> =
        sqlx::query_as(select).bind(post.get().cast_signed()).fetch_optional(&mut **transaction).await?;
    let lock_us = micros(started);
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
        let update = "update posts set likes = ?, version = ?, changed_at = ? where id = ?";
        let query = sqlx::query(update)
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
        LikeOp::Unlike => sqlx::query("delete from likes where post_id = ? and user = ?")
            .bind(request.post.get().cast_signed())
            .bind(user),
    };
    Ok(query.execute(&mut **transaction).await?.rows_affected() > 0)
}

/// The answer given to an earlier request with this key.
async fn earlier(
    transaction: &mut SqliteTransaction<'_>,
    request: &LikeRequest,
    key: &IdempotencyKey,
) -> Result<Option<LikeOutcome>, Failure> {
    let select = "select payload_hash, likes, version, prev, changed from idempotency_keys \
        where who = ? and scope = ? and value = ?";
    let kept: Option<(Vec<u8>, i64, i64, i64, bool)> = sqlx::query_as(select)
        .bind(request.who.column())
        .bind(&key.scope)
        .bind(&key.value)
        .fetch_optional(&mut **transaction)
        .await?;
    let Some((payload_hash, likes, version, prev, changed)) = kept else { return Ok(None) };
    if payload_hash != key.payload_hash {
        return Err(Failure(StoreError::KeyMismatch));
    }
    Ok(Some(LikeOutcome {
        state: LikesState {
            post_id: request.post,
            likes: likes.cast_unsigned(),
            version: Version(version.cast_unsigned()),
        },
        prev: Version(prev.cast_unsigned()),
        changed,
        replayed: true,
        stages: Stages::default(),
        committed_at: 0,
    }))
}

/// Keeps the answer for repeats.
async fn keep(
    transaction: &mut SqliteTransaction<'_>,
    who: &Who,
    key: &IdempotencyKey,
    outcome: &LikeOutcome,
) -> Result<(), Failure> {
    let insert = "insert into idempotency_keys \
        (who, scope, value, payload_hash, likes, version, prev, changed, created_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let query = sqlx::query(insert).bind(who.column()).bind(&key.scope).bind(&key.value);
    let query = query
        .bind(&key.payload_hash[..])
        .bind(outcome.state.likes.cast_signed())
        .bind(outcome.state.version.0.cast_signed());
    let query = query.bind(outcome.prev.0.cast_signed()).bind(outcome.changed).bind(unix_micros().cast_signed());
    query.execute(&mut **transaction).await?;
    Ok(())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
