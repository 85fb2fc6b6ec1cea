//! Several likes of one post in one transaction: one lock, one COMMIT, a version for each, one event.

use std::collections::{BTreeSet, HashMap};

use sqlx::MySqlTransaction;
use sqlx::mysql::MySqlConnection;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::transaction::{Prepared, begin, end};
use super::write::{Outbox, lock_row, set_row, to_publish};
use crate::domain::{Version, unix_micros};
use crate::store::row::Batch;
use crate::store::{IdempotencyKey, LikeOutcome, LikeRequest, Stages, StoreError, StoreOptions};
use crate::telemetry::Trace;

/// What a kept key says: (payload hash, likes, version, prev, changed).
type Kept = (Vec<u8>, u64, u64, u64, bool);

/// (who, scope, value).
type Name = (Vec<u8>, Vec<u8>, Vec<u8>);

/// One attempt for all of `requests`, which are of one post and have no key in common. The outcomes are in their order,
/// their stages counted from `started`; the first that changed something carries what is to be published for all.
pub(super) async fn attempt(
    conn: &mut MySqlConnection,
    requests: &[&LikeRequest],
    options: &StoreOptions,
    started: Instant,
    deadline: Instant,
) -> Result<Vec<Result<LikeOutcome, StoreError>>, Failure> {
    let mut transaction = begin(conn, deadline).await?;
    let prepared = timeout_at(deadline, write(&mut transaction, requests, options.outbox, started)).await;
    let Prepared { value: mut outcomes, dirty } = end(transaction, prepared, deadline).await?;
    let (committed_at, total_us) = (unix_micros(), Stages::since(started));
    for outcome in outcomes.iter_mut().flatten() {
        outcome.committed_at = committed_at;
        if dirty && !outcome.replayed {
            outcome.stages.commit_us = total_us - outcome.stages.lock_us;
        }
        if let Some(publish) = &mut outcome.publish {
            publish.event.committed_at = committed_at;
        }
    }
    Ok(outcomes)
}

async fn write(
    transaction: &mut MySqlTransaction<'_>,
    requests: &[&LikeRequest],
    outbox: bool,
    started: Instant,
) -> Result<Prepared<Vec<Result<LikeOutcome, StoreError>>>, Failure> {
    let Some(post) = requests.first().map(|request| request.post) else {
        return Ok(Prepared { value: Vec::new(), dirty: false });
    };
    let before = lock_row(transaction, post.get()).await?;
    let stages = Stages { lock_us: Stages::since(started), commit_us: 0 };
    let kept = kept(transaction, requests).await?;
    let kept_of = |request: &LikeRequest| request.key.as_ref().and_then(|key| kept.get(&name(request, key)));
    let fresh: Vec<&LikeRequest> = requests.iter().copied().filter(|request| kept_of(request).is_none()).collect();
    let has_liked = has_liked(transaction, post.get(), &fresh).await?;
    let batch = Batch::of(before, fresh, &has_liked);
    if batch.row != before {
        set_row(transaction, post.get(), batch.row).await?;
    }
    change_own_likes(transaction, post.get(), &batch).await?;
    let own_likes_changed = !(batch.liked.is_empty() && batch.unliked.is_empty());

    let mut steps = batch.steps.into_iter();
    let mut outcomes: Vec<Result<LikeOutcome, StoreError>> = Vec::with_capacity(requests.len());
    for request in requests {
        if let (Some(key), Some(kept)) = (&request.key, kept_of(request)) {
            let replay = LikeOutcome::kept(post, key, kept.clone());
            outcomes.push(replay.map(|outcome| LikeOutcome { stages, ..outcome }));
            continue;
        }
        let step = steps.next().unwrap_or(Err(StoreError::Contended));
        outcomes.push(step.map(|step| LikeOutcome {
            state: step.after.state(post),
            prev: Version(step.before.version),
            changed: step.changed(),
            replayed: false,
            pending: false,
            publish: None,
            stages,
            committed_at: 0,
        }));
    }
    let keys = keep(transaction, requests, &outcomes).await?;
    if batch.row != before {
        // One of them carries the event on; a traced one, if there is one.
        let changed = |outcome: &Result<LikeOutcome, StoreError>| matches!(outcome, Ok(o) if o.changed && !o.replayed);
        let traced = |at: &usize| changed(&outcomes[*at]) && requests[*at].trace.is_sampled();
        let first = (0..requests.len()).find(traced).or_else(|| outcomes.iter().position(changed));
        let none = Trace::none();
        let trace = first.map_or(&none, |at| &requests[at].trace);
        let publish = to_publish(transaction, before, batch.row, post, Outbox { write: outbox, trace }).await?;
        if let Some(Ok(outcome)) = first.map(|at| &mut outcomes[at]) {
            outcome.publish = Some(publish);
        }
    }
    let dirty = batch.row != before || own_likes_changed || keys > 0;
    Ok(Prepared { value: outcomes, dirty })
}

fn name(request: &LikeRequest, key: &IdempotencyKey) -> Name {
    (request.who.column().into_bytes(), key.scope.clone().into_bytes(), key.value.clone().into_bytes())
}

/// The answers given before to those of these keys that were used.
async fn kept(
    transaction: &mut MySqlTransaction<'_>,
    requests: &[&LikeRequest],
) -> Result<HashMap<Name, Kept>, sqlx::Error> {
    let names: BTreeSet<Name> =
        requests.iter().filter_map(|request| request.key.as_ref().map(|key| name(request, key))).collect();
    let Some(padded) = Padded::of(names.into_iter().collect()) else { return Ok(HashMap::new()) };
    let select = format!(
        "select who, scope, value, payload_hash, likes, version, prev, changed from idempotency_keys where {}",
        padded.places("(who = ? and scope = ? and value = ?)", " or ")
    );
    // Only question marks are put into the text.
    let mut query = sqlx::query_as(sqlx::AssertSqlSafe(select));
    for (who, scope, value) in padded.iter() {
        query = query.bind(who).bind(scope).bind(value);
    }
    type Found = (Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>, u64, u64, u64, bool);
    let rows: Vec<Found> = query.fetch_all(&mut **transaction).await?;
    let rows = rows.into_iter().map(|(who, scope, value, hash, likes, version, prev, changed)| {
        ((who, scope, value), (hash, likes, version, prev, changed))
    });
    Ok(rows.collect())
}

/// Those of these requests' users who have their one like.
async fn has_liked(
    transaction: &mut MySqlTransaction<'_>,
    post: u64,
    requests: &[&LikeRequest],
) -> Result<BTreeSet<String>, sqlx::Error> {
    let users: BTreeSet<&str> = requests.iter().filter_map(|request| request.user_once()).collect();
    let Some(padded) = Padded::of(users.into_iter().collect()) else { return Ok(BTreeSet::new()) };
    let select = format!("select user from likes where post_id = ? and user in ({})", padded.places("?", ","));
    let mut query = sqlx::query_scalar(sqlx::AssertSqlSafe(select)).bind(post);
    for user in padded.iter() {
        query = query.bind(*user);
    }
    let rows: Vec<Vec<u8>> = query.fetch_all(&mut **transaction).await?;
    // What a user is called came in as text.
    Ok(rows.into_iter().filter_map(|user| String::from_utf8(user).ok()).collect())
}

/// The users' rows, in order. They change under the post's lock only: a row that is not as it was read is a stranger's.
async fn change_own_likes(transaction: &mut MySqlTransaction<'_>, post: u64, batch: &Batch<'_>) -> Result<(), Failure> {
    let now = unix_micros();
    let liked: Vec<&str> = batch.liked.iter().copied().collect();
    if let Some(padded) = Padded::of(liked) {
        // Repeats are ignored.
        let insert =
            format!("insert ignore into likes (post_id, user, liked_at) values {}", padded.places("(?, ?, ?)", ","));
        let mut query = sqlx::query(sqlx::AssertSqlSafe(insert));
        for user in padded.iter() {
            query = query.bind(post).bind(*user).bind(now);
        }
        exactly(query.execute(&mut **transaction).await?.rows_affected(), padded.len())?;
    }
    let unliked: Vec<&str> = batch.unliked.iter().copied().collect();
    if let Some(padded) = Padded::of(unliked) {
        let delete = format!("delete from likes where post_id = ? and user in ({})", padded.places("?", ","));
        let mut query = sqlx::query(sqlx::AssertSqlSafe(delete)).bind(post);
        for user in padded.iter() {
            query = query.bind(*user);
        }
        exactly(query.execute(&mut **transaction).await?.rows_affected(), padded.len())?;
    }
    Ok(())
}

/// Keeps the answers of those that came with a key; how many.
async fn keep(
    transaction: &mut MySqlTransaction<'_>,
    requests: &[&LikeRequest],
    outcomes: &[Result<LikeOutcome, StoreError>],
) -> Result<usize, Failure> {
    let answered = requests.iter().zip(outcomes).filter_map(|(request, outcome)| {
        let outcome = outcome.as_ref().ok().filter(|outcome| !outcome.replayed)?;
        request.key.as_ref().map(|key| (name(request, key), key, outcome))
    });
    let mut answered: Vec<_> = answered.collect();
    answered.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    let Some(padded) = Padded::of(answered) else { return Ok(0) };
    let insert = format!(
        "insert ignore into idempotency_keys (who, scope, value, payload_hash, likes, version, prev, changed, created_at) \
         values {}",
        padded.places("(?, ?, ?, ?, ?, ?, ?, ?, ?)", ",")
    );
    let now = unix_micros();
    let mut query = sqlx::query(sqlx::AssertSqlSafe(insert));
    for ((who, scope, value), key, outcome) in padded.iter() {
        query = query.bind(who).bind(scope).bind(value).bind(&key.payload_hash[..]);
        query = query.bind(outcome.state.likes).bind(outcome.state.version.0).bind(outcome.prev.0);
        query = query.bind(outcome.changed).bind(now);
    }
    exactly(query.execute(&mut **transaction).await?.rows_affected(), padded.len())?;
    Ok(padded.len())
}

fn exactly(affected: u64, wanted: usize) -> Result<(), Failure> {
    if affected == wanted as u64 { Ok(()) } else { Err(Failure::Contended) }
}

/// Values for a list in a statement, filled up with repeats of the last to a power of two, so that few statements are prepared.
pub(super) struct Padded<T> {
    values: Vec<T>,
    places: usize,
}

impl<T> Padded<T> {
    /// `None` when there is nothing to list.
    pub(super) fn of(values: Vec<T>) -> Option<Self> {
        let places = values.len().next_power_of_two();
        (!values.is_empty()).then_some(Self { values, places })
    }

    /// Values without the repeats.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// A value per place.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.values.iter().chain(self.values.last().into_iter().cycle()).take(self.places)
    }

    /// `one`, once per place.
    pub(super) fn places(&self, one: &str, between: &str) -> String {
        vec![one; self.places].join(between)
    }
}
