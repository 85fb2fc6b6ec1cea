//! One NATS connection per pod: subjects `likes.{post}`, a bounded queue in front of the connection, subscriptions proved by a nonce.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{BrokerCounters, BrokerError, BrokerOptions, BrokerState, OnEvent};
use crate::domain::{LikesChanged, PostId};

/// The connection.
#[derive(Debug, Clone)]
pub struct Nats {
    counters: Arc<BrokerCounters>,
    state: watch::Receiver<BrokerState>,
}

#[allow(clippy::unused_async, clippy::unused_self, clippy::needless_pass_by_value, reason = "not built yet")]
impl Nats {
    pub(super) async fn connect(
        url: &str,
        _name: &str,
        _options: BrokerOptions,
        _on_event: OnEvent,
    ) -> Result<Self, BrokerError> {
        Err(BrokerError::Connect { url: url.into(), cause: "not built yet".into() })
    }
    pub(super) fn publish(&self, _event: LikesChanged) {}
    pub(super) async fn subscribe(&self, _post: PostId) -> Result<(), BrokerError> {
        Err(BrokerError::Timeout(Duration::ZERO))
    }
    pub(super) fn unsubscribe(&self, _post: PostId) {}
    pub(super) fn state(&self) -> watch::Receiver<BrokerState> {
        self.state.clone()
    }
    pub(super) fn counters(&self) -> &BrokerCounters {
        &self.counters
    }
    pub(super) async fn drain(&self, _patience: Duration) {}
}
