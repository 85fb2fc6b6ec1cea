//! SQLite for the embedded stack: BEGIN IMMEDIATE, WAL.

use std::time::Duration;

use super::flights::Flights;
use super::{Lane, LikeOutcome, LikeRequest, Post, StoreCounters, StoreError, StoreOptions, StoredState};
use crate::domain::{Epoch, PostId};

/// The store.
#[derive(Debug, Clone)]
pub struct Sqlite {
    options: std::sync::Arc<StoreOptions>,
    flights: Flights,
    counters: std::sync::Arc<StoreCounters>,
}

#[allow(clippy::unused_async, clippy::unused_self, clippy::needless_pass_by_value, reason = "not built yet")]
impl Sqlite {
    pub(super) async fn connect(_url: &str, _options: StoreOptions) -> Result<Self, StoreError> {
        Err(not_yet())
    }
    pub(super) fn options(&self) -> &StoreOptions {
        &self.options
    }
    pub(super) fn flights(&self) -> &Flights {
        &self.flights
    }
    pub(super) fn counters(&self) -> &StoreCounters {
        &self.counters
    }
    pub(super) async fn epoch(&self) -> Result<Epoch, StoreError> {
        Err(not_yet())
    }
    pub(super) async fn new_epoch(&self) -> Result<Epoch, StoreError> {
        Err(not_yet())
    }
    pub(super) async fn create_post(&self, _title: &str) -> Result<Post, StoreError> {
        Err(not_yet())
    }
    pub(super) async fn post(&self, _post: PostId) -> Result<Post, StoreError> {
        Err(not_yet())
    }
    pub(super) async fn read(&self, _lane: Lane, _posts: &[PostId]) -> Result<Vec<StoredState>, StoreError> {
        Err(not_yet())
    }
    pub(super) async fn apply(&self, _request: &LikeRequest) -> Result<LikeOutcome, StoreError> {
        Err(not_yet())
    }
    pub(super) async fn ping(&self) -> Result<(), StoreError> {
        Err(not_yet())
    }
    pub(super) async fn sweep_keys(&self, _age: Duration) -> Result<u64, StoreError> {
        Err(not_yet())
    }
    pub(super) async fn close(&self) {}
}

fn not_yet() -> StoreError {
    StoreError::Unavailable { cause: "not built yet".into() }
}
