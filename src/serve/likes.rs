//! The one use-case that publishes: a like is committed, then every pod is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::domain::{LikesChanged, PostId, Version, unix_micros};
use crate::store::{LikeOutcome, LikeRequest, LikeStore, StoreError};

/// Likes under way at most; more are refused at once ([`StoreError::Overloaded`]).
const IN_FLIGHT: usize = 2_048;

/// How long the database is asked what became of a COMMIT it did not answer.
const ASK: Duration = Duration::from_secs(120);

/// Takes likes from both transports. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Likes {
    store: LikeStore,
    broker: Broker,
    tasks: TaskTracker,
    room: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Likes {
    /// Over this store, told through this broker.
    #[must_use]
    pub fn new(store: LikeStore, broker: Broker) -> Self {
        let (tasks, room, stop) = (TaskTracker::new(), Arc::new(Semaphore::new(IN_FLIGHT)), CancellationToken::new());
        Self { store, broker, tasks, room, stop }
    }

    /// One like or unlike, in a task of its own: neither a hang-up nor a time-out of the caller cancels it between lock
    /// and publish. It ends by itself within the store's time limits.
    ///
    /// # Errors
    /// Those of [`LikeStore::apply`], and [`StoreError::Overloaded`].
    pub async fn like(&self, request: LikeRequest) -> Result<LikeOutcome, StoreError> {
        let Ok(place) = self.room.clone().try_acquire_owned() else { return Err(StoreError::Overloaded) };
        let likes = self.clone();
        let task = self.tasks.spawn(async move {
            let _place = place;
            let outcome = likes.store.apply(&request).await;
            match &outcome {
                Ok(outcome) => likes.publish(outcome),
                Err(StoreError::OutcomeUnknown { .. }) => {
                    let sent_at = unix_micros();
                    tokio::spawn(likes.stop.clone().run_until_cancelled_owned(likes.find_out(request.post, sent_at)));
                }
                Err(_) => {}
            }
            outcome
        });
        task.await.unwrap_or_else(|e| Err(StoreError::OutcomeUnknown { cause: e.to_string() }))
    }

    /// Waits until no like is under way, for the end of a drain, then stops asking for unknown outcomes. Likes that come later are still taken.
    pub async fn idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.stop.cancel();
    }

    fn publish(&self, outcome: &LikeOutcome) {
        if outcome.changed && !outcome.replayed {
            self.broker.publish(LikesChanged {
                post_id: outcome.state.post_id,
                likes: outcome.state.likes,
                version: outcome.state.version,
                prev: outcome.prev,
                committed_at: outcome.committed_at,
            });
        }
    }

    /// A COMMIT was not answered. If it was done all the same, nobody has told the viewers: as soon as the database
    /// answers again, its newest state is published (a second time, if somebody else has: receivers see that by the version).
    async fn find_out(self, post: PostId, sent_at: u64) {
        let deadline = Instant::now() + ASK;
        while Instant::now() < deadline {
            sleep(Duration::from_millis(rand::random_range(200..1_000))).await;
            let Ok(state) = self.store.read_settled(post).await else { continue };
            if state.version == Version(0) {
                return;
            }
            let prev = Version(state.version.0 - 1);
            let (likes, version) = (state.likes, state.version);
            self.broker.publish(LikesChanged { post_id: post, likes, version, prev, committed_at: sent_at });
            return;
        }
    }
}
