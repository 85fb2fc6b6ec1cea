//! One like, one transaction: pessimistic, optimistic, atomic. Lock order: the post's row, then its like, key and outbox rows.

use sqlx::mysql::MySqlConnection;
use sqlx::{Executor, MySqlTransaction};
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::Failure;
use super::transaction::{Prepared, begin, end};
use super::{COMMIT_PATIENCE, outbox};
use crate::domain::{LikesChanged, MAX_SAFE_INTEGER, PostId, Version, unix_micros};
use crate::store::row::Row;
use crate::store::{
    IdempotencyKey, LikeOp, LikeOutcome, LikeRequest, Stages, StoreError, StoreOptions, ToPublish, Who, WriteStrategy,
    sql,
};
use crate::telemetry::Trace;

/// Adds a user's one like; (post, user, liked at).
pub(super) const ADD_OWN_LIKE: &str = "insert ignore into likes (post_id, user, liked_at) values (?, ?, ?)";

/// One attempt: BEGIN to COMMIT. On failure the whole transaction is rolled back, or the connection is unusable.
pub(super) async fn attempt(
    conn: &mut MySqlConnection,
    request: &LikeRequest,
    options: &StoreOptions,
    started: Instant,
    deadline: Instant,
) -> Result<LikeOutcome, Failure> {
    let mut transaction = begin(conn, deadline).await?;
    let work = async {
        match options.write {
            WriteStrategy::Optimistic => optimistic(&mut transaction, request, options.outbox, started).await,
            WriteStrategy::Atomic => atomic(&mut transaction, request, options.outbox, started).await,
            // The other two have transactions of their own.
            WriteStrategy::Pessimistic | WriteStrategy::Combining | WriteStrategy::Event => {
                pessimistic(&mut transaction, request, options.outbox, started).await
            }
        }
    };
    let prepared = timeout_at(deadline, work).await;
    let Prepared { value: mut outcome, dirty } = end(transaction, prepared, deadline).await?;
    outcome.committed_at = unix_micros();
    if let Some(publish) = &mut outcome.publish {
        publish.event.committed_at = outcome.committed_at;
    }
    if dirty {
        outcome.stages.commit_us = Stages::since(started) - outcome.stages.lock_us;
    }
    Ok(outcome)
}

async fn pessimistic(
    transaction: &mut MySqlTransaction<'_>,
    request: &LikeRequest,
    outbox: bool,
    started: Instant,
) -> Result<Prepared<LikeOutcome>, Failure> {
    let row = lock_row(transaction, request.post.get()).await?;
    let lock_us = Stages::since(started);
    if let Some(replay) = earlier(transaction, request, lock_us).await? {
        return Ok(replay);
    }
    let own_like_changed = match request.user_once() {
        Some(user) => Some(change_own_like(transaction, request, user).await?),
        None => None,
    };
    let after = if own_like_changed == Some(false) { None } else { row.after(request.op).map_err(Failure::Refused)? };
    if let Some(after) = after {
        set_row(transaction, request.post.get(), after).await?;
    }
    finish(transaction, request, Done { row, after, own_like_changed, lock_us }, outbox).await
}

/// Reads without a lock, then takes the row only if it is still at the version read.
async fn optimistic(
    transaction: &mut MySqlTransaction<'_>,
    request: &LikeRequest,
    outbox: bool,
    started: Instant,
) -> Result<Prepared<LikeOutcome>, Failure> {
    // One statement sees one state, the own like included.
    let select = "select likes, version, exists(select 1 from likes l where l.post_id = p.id and l.user = ?) \
        from posts p where id = ?";
    let post = request.post.get();
    let user = request.user_once();
    let read: Option<(u64, u64, bool)> =
        sqlx::query_as(select).bind(user.unwrap_or_default()).bind(post).fetch_optional(&mut **transaction).await?;
    let (likes, version, has_liked) = read.ok_or(Failure::Refused(StoreError::UnknownPost))?;
    let row = Row { likes, version };
    if let Some(replay) = earlier(transaction, request, Stages::since(started)).await? {
        return Ok(replay);
    }
    let own_like_changed = user.map(|_| has_liked != (request.op == LikeOp::Like));
    let after = if own_like_changed == Some(false) { None } else { row.after(request.op).map_err(Failure::Refused)? };
    let unchanged = if let Some(after) = after {
        let update = "update posts set likes = ?, version = ?, changed_at = ? where id = ? and version = ?";
        let query = sqlx::query(update).bind(after.likes).bind(after.version).bind(unix_micros());
        query.bind(post).bind(version).execute(&mut **transaction).await?.rows_affected() == 1
    } else if own_like_changed == Some(true) {
        // Hers goes and the count stays at 0: also that under the row's lock.
        let select = "select 1 from posts where id = ? and version = ? for update";
        let found: Option<i64> =
            sqlx::query_scalar(select).bind(post).bind(version).fetch_optional(&mut **transaction).await?;
        found.is_some()
    } else {
        true
    };
    let lock_us = Stages::since(started);
    if !unchanged {
        return Err(Failure::Overtaken);
    }
    if own_like_changed == Some(true)
        && let Some(user) = user
        && !change_own_like(transaction, request, user).await?
    {
        return Err(Failure::Overtaken);
    }
    finish(transaction, request, Done { row, after, own_like_changed, lock_us }, outbox).await
}

/// The database does the sum; the row is ours from the UPDATE on, so the SELECT after it reads what this like made.
async fn atomic(
    transaction: &mut MySqlTransaction<'_>,
    request: &LikeRequest,
    outbox: bool,
    started: Instant,
) -> Result<Prepared<LikeOutcome>, Failure> {
    let post = request.post.get();
    // A kept answer must survive when the sum is undone.
    let undo = request.user_once().is_some();
    if undo {
        transaction.execute("savepoint before_the_sum").await?;
    }
    let update = match request.op {
        LikeOp::Like => {
            "update posts set likes = likes + 1, version = version + 1, changed_at = ? where id = ? and version < ?"
        }
        LikeOp::Unlike => {
            "update posts set likes = likes - 1, version = version + 1, changed_at = ? \
             where id = ? and version < ? and likes > 0"
        }
    };
    let query = sqlx::query(update).bind(unix_micros()).bind(post).bind(MAX_SAFE_INTEGER);
    let summed = query.execute(&mut **transaction).await?.rows_affected() == 1;
    // Nothing was summed: there is no such post, or its row would not change; that is read under its lock.
    let now = if summed { read_row(transaction, post).await? } else { lock_row(transaction, post).await? };
    let lock_us = Stages::since(started);
    let before = match (summed, request.op) {
        (false, _) => now,
        (true, LikeOp::Like) => Row { likes: now.likes - 1, version: now.version - 1 },
        (true, LikeOp::Unlike) => Row { likes: now.likes + 1, version: now.version - 1 },
    };
    if let Some(replay) = earlier(transaction, request, lock_us).await? {
        return Ok(replay);
    }
    if !summed && before.after(request.op).map_err(Failure::Refused)?.is_some() {
        return Err(Failure::Overtaken);
    }
    let own_like_changed = match request.user_once() {
        Some(user) => Some(change_own_like(transaction, request, user).await?),
        None => None,
    };
    let counts = summed && own_like_changed != Some(false);
    if summed && !counts {
        // The locks stay, the sum goes.
        transaction.execute("rollback to savepoint before_the_sum").await?;
    }
    let after = counts.then_some(now);
    finish(transaction, request, Done { row: before, after, own_like_changed, lock_us }, outbox).await
}

/// What was done to the post's row and to the like's own row.
struct Done {
    row: Row,
    after: Option<Row>,
    own_like_changed: Option<bool>,
    lock_us: u64,
}

/// The rows after the post's and the like's: key, outbox.
async fn finish(
    transaction: &mut MySqlTransaction<'_>,
    request: &LikeRequest,
    done: Done,
    outbox: bool,
) -> Result<Prepared<LikeOutcome>, Failure> {
    let Done { row, after, own_like_changed, lock_us } = done;
    let state = after.unwrap_or(row).state(request.post);
    let mut outcome = LikeOutcome {
        state,
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
    if outcome.changed {
        let outbox = Outbox { write: outbox, trace: &request.trace };
        outcome.publish = Some(to_publish(transaction, row, after.unwrap_or(row), request.post, outbox).await?);
    }
    let dirty = outcome.changed || own_like_changed == Some(true) || request.key.is_some();
    Ok(Prepared { value: outcome, dirty })
}

/// Whether an event gets a row in the outbox, and whose trace it goes on with.
pub(super) struct Outbox<'a> {
    pub(super) write: bool,
    pub(super) trace: &'a Trace,
}

/// The event of a commit, and its row in the outbox. The stamp is put in after COMMIT.
pub(super) async fn to_publish(
    transaction: &mut MySqlTransaction<'_>,
    before: Row,
    after: Row,
    post_id: PostId,
    Outbox { write, trace }: Outbox<'_>,
) -> Result<ToPublish, sqlx::Error> {
    let (version, prev) = (Version(after.version), Version(before.version));
    let event = LikesChanged { post_id, likes: after.likes, version, prev, committed_at: unix_micros() };
    let row = if write { Some(outbox::add(transaction, &event, trace).await?) } else { None };
    Ok(ToPublish { event, outbox: row, trace: trace.clone(), kept: None })
}

/// Takes the post's row.
pub(super) async fn lock_row(transaction: &mut MySqlTransaction<'_>, post: u64) -> Result<Row, Failure> {
    a_row(transaction, "select likes, version from posts where id = ? for update", post).await
}

async fn read_row(transaction: &mut MySqlTransaction<'_>, post: u64) -> Result<Row, Failure> {
    a_row(transaction, sql::ROW, post).await
}

async fn a_row(transaction: &mut MySqlTransaction<'_>, select: &'static str, post: u64) -> Result<Row, Failure> {
    let row: Option<(u64, u64)> = sqlx::query_as(select).bind(post).fetch_optional(&mut **transaction).await?;
    let (likes, version) = row.ok_or(Failure::Refused(StoreError::UnknownPost))?;
    Ok(Row { likes, version })
}

/// Writes the post's row.
pub(super) async fn set_row(transaction: &mut MySqlTransaction<'_>, post: u64, row: Row) -> Result<(), sqlx::Error> {
    let query = sqlx::query(sql::SET_ROW).bind(row.likes).bind(row.version).bind(unix_micros()).bind(post);
    query.execute(&mut **transaction).await.map(|_| ())
}

/// Adds or removes the user's one like; false when it was so already.
pub(super) async fn change_own_like(
    transaction: &mut MySqlTransaction<'_>,
    request: &LikeRequest,
    user: &str,
) -> Result<bool, sqlx::Error> {
    let post = request.post.get();
    let query = match request.op {
        LikeOp::Like => sqlx::query(ADD_OWN_LIKE).bind(post).bind(user).bind(unix_micros()),
        LikeOp::Unlike => sqlx::query(sql::REMOVE_OWN_LIKE).bind(post).bind(user),
    };
    Ok(query.execute(&mut **transaction).await?.rows_affected() > 0)
}

/// The answer given to an earlier request with this key, if there is a key and was a request.
pub(super) async fn earlier(
    transaction: &mut MySqlTransaction<'_>,
    request: &LikeRequest,
    lock_us: u64,
) -> Result<Option<Prepared<LikeOutcome>>, Failure> {
    let Some(key) = &request.key else { return Ok(None) };
    let query = sqlx::query_as(sql::EARLIER).bind(request.who.column()).bind(&key.scope).bind(&key.value);
    let Some(kept) = query.fetch_optional(&mut **transaction).await? else { return Ok(None) };
    let mut outcome = LikeOutcome::kept(request.post, key, kept).map_err(Failure::Refused)?;
    outcome.stages.lock_us = lock_us;
    Ok(Some(Prepared { value: outcome, dirty: false }))
}

/// Keeps the answer for repeats.
pub(super) async fn keep(
    transaction: &mut MySqlTransaction<'_>,
    who: &Who,
    key: &IdempotencyKey,
    outcome: &LikeOutcome,
) -> Result<(), sqlx::Error> {
    let query = sqlx::query(sql::KEEP).bind(who.column()).bind(&key.scope).bind(&key.value);
    let query = query.bind(&key.payload_hash[..]).bind(outcome.state.likes).bind(outcome.state.version.0);
    let query = query.bind(outcome.prev.0).bind(outcome.changed).bind(unix_micros());
    query.execute(&mut **transaction).await.map(|_| ())
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
