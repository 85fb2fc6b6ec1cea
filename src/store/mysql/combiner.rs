//! Likes that arrive together share a lock and a commit: a writer per hot post takes whatever waits, again and again.
//!
//! There is no timer: what arrives while one transaction runs is the next one's batch. So a like waits for one or two
//! commits, and batches grow with the load.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::failure::Tries;
use super::lease::Lease;
use super::{Connections, MySql, batch};
use crate::domain::PostId;
use crate::store::{LikeOutcome, LikeRequest, StoreCounters, StoreError};

/// Likes in one transaction at most.
const BATCH: usize = 1_024;

/// Likes waiting for all posts at most; beyond it they are refused ([`StoreError::Overloaded`]).
const WAITING: usize = 8_192;

/// After so many transactions a writer gives its connection back once, so that writers of other posts get one too.
const TURN: u32 = 32;

/// Who waits, by post. A post has an entry while, and only while, it has a writer.
#[derive(Debug, Default)]
pub(super) struct Combiner(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    posts: HashMap<PostId, VecDeque<Caller>>,
    callers: usize,
}

#[derive(Debug)]
struct Caller {
    request: LikeRequest,
    since: Instant,
    answer: oneshot::Sender<Result<LikeOutcome, StoreError>>,
}

impl Combiner {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when the post needs a writer.
    fn push(&self, caller: Caller) -> Result<bool, StoreError> {
        let mut waiting = self.lock();
        if waiting.callers >= WAITING {
            return Err(StoreError::Overloaded);
        }
        waiting.callers += 1;
        Ok(match waiting.posts.entry(caller.request.post) {
            Entry::Occupied(mut queue) => {
                queue.get_mut().push_back(caller);
                false
            }
            Entry::Vacant(place) => {
                place.insert(VecDeque::from([caller]));
                true
            }
        })
    }

    /// What waits for this post; the entry goes when it is nothing.
    fn take(&self, post: PostId) -> Vec<Caller> {
        let mut waiting = self.lock();
        let Some(queue) = waiting.posts.get_mut(&post) else { return Vec::new() };
        let taken: Vec<Caller> = queue.drain(..queue.len().min(BATCH)).collect();
        if taken.is_empty() {
            waiting.posts.remove(&post);
        }
        waiting.callers -= taken.len();
        taken
    }
}

/// A writer's place at its post. Dropped by a panic it gives up those who wait: they learn that the outcome is unknown.
struct Place<'a> {
    store: &'a MySql,
    post: PostId,
    left: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.left {
            let mut waiting = self.store.inner.combiner.lock();
            let queue = waiting.posts.remove(&self.post).unwrap_or_default();
            waiting.callers -= queue.len();
        }
    }
}

impl MySql {
    pub(super) async fn combine(&self, request: &LikeRequest) -> Result<LikeOutcome, StoreError> {
        let (answer, outcome) = oneshot::channel();
        let caller = Caller { request: request.clone(), since: Instant::now(), answer };
        if self.inner.combiner.push(caller)? {
            tokio::spawn(write(self.clone(), request.post));
        }
        let lost = |_| Err(StoreError::OutcomeUnknown { cause: "the post's writer ended early".into() });
        outcome.await.unwrap_or_else(lost)
    }

    async fn write_batch(&self, callers: Vec<Caller>, lease: &mut Option<Lease>) {
        let limit = self.inner.options.operation_timeout;
        let now = Instant::now();
        let (callers, late): (Vec<_>, Vec<_>) = callers.into_iter().partition(|caller| caller.since + limit > now);
        for caller in late {
            StoreCounters::count(&self.inner.counters.timeouts);
            let _ = caller.answer.send(Err(StoreError::Timeout(limit)));
        }
        // The first has waited longest.
        let Some(started) = callers.first().map(|caller| caller.since) else { return };
        let requests: Vec<&LikeRequest> = callers.iter().map(|caller| &caller.request).collect();
        let outcomes = self.try_batch(&requests, started, lease).await;
        match outcomes {
            Ok(outcomes) => {
                for (caller, mut outcome) in callers.into_iter().zip(outcomes) {
                    if let Ok(outcome) = &mut outcome {
                        let later = caller.since.saturating_duration_since(started).as_micros();
                        let later = u64::try_from(later).unwrap_or(u64::MAX);
                        // Who came while the lock was waited for has waited less.
                        outcome.stages.lock_us = outcome.stages.lock_us.saturating_sub(later);
                    }
                    let _ = caller.answer.send(outcome);
                }
            }
            Err(error) => {
                for caller in callers {
                    let _ = caller.answer.send(Err(error.clone()));
                }
            }
        }
    }

    async fn try_batch(
        &self,
        requests: &[&LikeRequest],
        started: Instant,
        lease: &mut Option<Lease>,
    ) -> Result<Vec<Result<LikeOutcome, StoreError>>, StoreError> {
        let options = &self.inner.options;
        let deadline = started + options.operation_timeout;
        let mut tries = Tries::default();
        loop {
            let mut conn = match lease.take() {
                Some(conn) => conn,
                None => self.acquire(Connections::Writers, deadline).await?,
            };
            match batch::attempt(&mut conn, requests, options, started, deadline).await {
                Ok(outcomes) => {
                    if outcomes.iter().flatten().any(|outcome| !outcome.replayed && outcome.stages.commit_us > 0) {
                        StoreCounters::count(&self.inner.counters.commits);
                    }
                    *lease = Some(conn);
                    return Ok(outcomes);
                }
                Err(failure) => self.again(failure, conn, &mut tries, deadline, None).await?,
            }
        }
    }
}

/// The writer of one post, until nobody waits for it. The connection is its own as long as somebody does.
async fn write(store: MySql, post: PostId) {
    let mut place = Place { store: &store, post, left: false };
    let (mut lease, mut turn) = (None, 0);
    loop {
        let callers = store.inner.combiner.take(post);
        if callers.is_empty() {
            place.left = true;
            return;
        }
        store.write_batch(callers, &mut lease).await;
        turn += 1;
        if turn == TURN {
            (lease, turn) = (None, 0);
        }
    }
}
