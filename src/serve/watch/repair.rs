//! Reads what is due over one connection: what was missed, what is quiet, and whether the epoch is still the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::posts::Why;
use super::{Inner, JoinError, count};
use crate::broker::Broker;
use crate::domain::{LikesState, PostId, Update, Version};
use crate::store::{Lane, StoreError, StoredState};
use crate::telemetry::FanOut;

/// Posts read at once.
const BATCH: usize = 256;

/// Subscriptions that are confirmed at a time.
const CONFIRM: usize = 64;

/// Pause before a failed read is repeated (± 50 %).
const RETRY: Duration = Duration::from_secs(1);

/// Reads what is due and leaves what nobody views. Inputs: the next due time, a wake-up, the broker's reconnects, the end.
pub(super) async fn keep(inner: Arc<Inner>, broker: Broker) {
    let mut state = broker.state();
    let mut missed = state.borrow().missed;
    // Until then nothing more is read, so that a pod stays within its share of the database.
    let mut rested = Instant::now();
    let mut epoch_due = epoch_at(&inner);
    let mut confirming: Option<JoinHandle<()>> = None;
    loop {
        let now = Instant::now();
        let due = {
            let mut posts = inner.posts();
            let due = posts.take_due(now, if now < rested { 0 } else { BATCH }, &inner.options);
            // Under the lock: a newcomer subscribes anew only after this.
            for post in &due.left {
                broker.unsubscribe(*post);
                (inner.sink.forget)(*post);
            }
            due
        };
        if !due.read.is_empty() {
            let rows = u32::try_from(due.read.len()).unwrap_or(u32::MAX);
            rested = now + Duration::from_secs(1) * rows / inner.options.rows_per_second.max(1);
            reread(&inner, due.read).await;
            epoch_due = epoch_at(&inner);
            continue;
        }
        if now >= epoch_due {
            look_at_epoch(&inner).await;
            epoch_due = epoch_at(&inner);
        }
        let waits = !inner.posts().unconfirmed().is_empty();
        let connected = state.borrow().connected;
        if waits && connected && confirming.as_ref().is_none_or(JoinHandle::is_finished) {
            confirming = Some(tokio::spawn(confirm(inner.clone(), broker.clone())));
        }
        let mut next = inner.posts().next().map_or(epoch_due, |next| next.max(rested).min(epoch_due));
        if waits && connected {
            next = next.min(now + RETRY);
        }
        tokio::select! {
            () = sleep_until(next) => {}
            () = inner.wake.notified() => {}
            changed = state.changed() => {
                let now = state.borrow_and_update().missed;
                if now != missed {
                    missed = now;
                    inner.posts().reread_all(Instant::now(), inner.options.spread);
                }
                if changed.is_err() {
                    return;
                }
            }
            () = inner.stop.cancelled() => return,
        }
    }
}

/// Makes sure of the subscriptions of posts whose first viewer was served without; each is read again then.
async fn confirm(inner: Arc<Inner>, broker: Broker) {
    let posts: Vec<PostId> = inner.posts().unconfirmed().iter().copied().collect();
    let (inner, broker) = (&inner, &broker);
    let each = futures_util::stream::iter(posts).for_each_concurrent(CONFIRM, |post| async move {
        let in_force = broker.subscribe(post).await.is_ok();
        let mut posts = inner.posts();
        if !posts.contains(post) {
            // Its last viewer left meanwhile.
            broker.unsubscribe(post);
        } else if in_force && posts.confirmed(post, Instant::now()) {
            count(&inner.counters.late_subscriptions, 1);
        }
    });
    each.await;
    if !inner.posts().unconfirmed().is_empty() {
        sleep(RETRY).await;
    }
    inner.wake.notify_one();
}

/// Each batch of rows tells the epoch; without one it is asked for about as often as a quiet post is read.
fn epoch_at(inner: &Inner) -> Instant {
    Instant::now() + inner.options.quiet.max(Duration::from_millis(100)).mul_f64(rand::random_range(0.5..1.5))
}

async fn look_at_epoch(inner: &Arc<Inner>) {
    let (_, era) = inner.posts().epoch();
    match inner.store.epoch().await {
        Ok(epoch) => _ = inner.is_current(epoch, era),
        Err(error) => tracing::debug!(%error, "the epoch could not be read"),
    }
}

/// States of these posts in the pod's epoch; `None` when the epoch changed meanwhile: then everything begins anew.
pub(super) async fn read(
    inner: &Arc<Inner>,
    lane: Lane,
    posts: &[PostId],
) -> Result<Option<Vec<StoredState>>, StoreError> {
    let (_, era) = inner.posts().epoch();
    let read = inner.store.read_on(lane, posts).await?;
    // Several statements may have read them; the last one would know best.
    Ok(read.last().is_none_or(|last| inner.is_current(last.epoch, era)).then_some(read))
}

/// Reads a post whose viewer has seen more than this pod, and tells everybody at once.
pub(super) async fn read_now(inner: &Arc<Inner>, post: PostId) -> Result<(), JoinError> {
    let Some(read) = read(inner, Lane::Requests, &[post]).await? else { return Ok(()) };
    let mut posts = inner.posts();
    for read in read {
        if posts.read(read.state) {
            count(&inner.counters.reread_healed, 1);
            (inner.sink.publish)(Update::Snapshot(read.state), 0, FanOut::none());
        }
    }
    Ok(())
}

/// One batch over the repair connection.
async fn reread(inner: &Arc<Inner>, due: Vec<(PostId, Why)>) {
    let ids: Vec<PostId> = due.iter().map(|(post, _)| *post).collect();
    let known: HashMap<PostId, Version> = {
        let posts = inner.posts();
        ids.iter().filter_map(|post| Some((*post, posts.version(*post)?))).collect()
    };
    let read = match read(inner, Lane::Repair, &ids).await {
        Ok(Some(read)) => read,
        Ok(None) => return,
        Err(e) => {
            count(&inner.counters.failed_reads, 1);
            tracing::warn!(error = %e, posts = due.len(), "a re-read failed; it will be repeated");
            inner.posts().put_off(&due, Instant::now(), RETRY);
            return;
        }
    };
    let of = |wanted| due.iter().filter(|(_, why)| *why == wanted).count() as u64;
    count(&inner.counters.anti_entropy_rows, of(Why::Quiet));
    count(&inner.counters.gap_reads, of(Why::Gap));
    complain_about_the_past(inner, &read, &known);
    let why: HashMap<PostId, Why> = due.into_iter().collect();
    let news: Vec<LikesState> = {
        let mut posts = inner.posts();
        let states = read.iter().map(|read| read.state);
        // What is no news still answers for the versions that were missing.
        states.filter(|state| posts.is_news(state) || posts.read(*state)).collect()
    };
    if news.is_empty() {
        return;
    }
    // The event of what was just committed may be on its way: it is delivered as a change, not as a repair.
    let inner = inner.clone();
    let (_, era) = inner.posts().epoch();
    tokio::spawn(async move {
        sleep(inner.options.gap).await;
        let mut posts = inner.posts();
        if posts.epoch().1 != era {
            return;
        }
        for state in news {
            if !posts.read(state) {
                continue;
            }
            match why.get(&state.post_id) {
                Some(Why::Quiet) => count(&inner.counters.anti_entropy_healed, 1),
                _ => count(&inner.counters.reread_healed, 1),
            }
            (inner.sink.publish)(Update::Snapshot(state), 0, FanOut::none());
        }
    });
}

/// A committed version never goes back by itself: an older copy of the database was put in its place. Nothing older is
/// sent within an epoch, so viewers stay where they are until the operator begins a new one.
fn complain_about_the_past(inner: &Inner, read: &[StoredState], known: &HashMap<PostId, Version>) {
    let past = |read: &&StoredState| known.get(&read.state.post_id).is_some_and(|known| read.state.version < *known);
    let mut back = read.iter().filter(past);
    let Some(first) = back.next() else { return };
    let posts = 1 + back.count() as u64;
    count(&inner.counters.backward_rows, posts);
    tracing::error!(
        posts,
        post = %first.state.post_id,
        version = %first.state.version,
        known = %known[&first.state.post_id],
        "the database has older versions than were sent: was it restored? Start one pod with --new-epoch",
    );
}
