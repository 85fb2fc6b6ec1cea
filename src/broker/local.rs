//! The in-process bus of the embedded stack: N pods of one process, no server.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::{BrokerCounters, BrokerState, OnEvent};
use crate::domain::{LikesChanged, PostId};
use crate::telemetry::Trace;

type Subscriptions = HashMap<PostId, Vec<(u64, Arc<LocalPod>)>>;

/// What the pods of one process share.
#[derive(Debug, Clone, Default)]
pub struct LocalBus(Arc<Bus>);

#[derive(Debug, Default)]
struct Bus {
    next: AtomicU64,
    subscriptions: RwLock<Subscriptions>,
}

/// One pod's place at the bus.
#[derive(Debug, Clone)]
pub struct Local {
    bus: LocalBus,
    pod: Arc<LocalPod>,
}

struct LocalPod {
    id: u64,
    on_event: OnEvent,
    counters: BrokerCounters,
    state: watch::Sender<BrokerState>,
}

impl std::fmt::Debug for LocalPod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalPod").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Local {
    pub(super) fn new(bus: &LocalBus, on_event: OnEvent) -> Self {
        let id = bus.0.next.fetch_add(1, Ordering::Relaxed);
        let (state, _) = watch::channel(BrokerState { connected: true, missed: 0 });
        let pod = LocalPod { id, on_event, counters: BrokerCounters::default(), state };
        Self { bus: bus.clone(), pod: Arc::new(pod) }
    }

    pub(super) fn publish(&self, event: LikesChanged, trace: &Trace) {
        let publishing = trace.publishing(&event);
        self.pod.counters.published.fetch_add(1, Ordering::Relaxed);
        let subscriptions = self.bus.0.subscriptions.read().unwrap_or_else(PoisonError::into_inner);
        let pods: Vec<_> =
            subscriptions.get(&event.post_id).into_iter().flatten().map(|(_, pod)| pod.clone()).collect();
        drop(subscriptions);
        for pod in pods {
            pod.counters.received.fetch_add(1, Ordering::Relaxed);
            (pod.on_event)(event, publishing.trace());
        }
        publishing.sent();
    }

    pub(super) fn subscribe(&self, post: PostId) {
        let mut subscriptions = self.bus.0.subscriptions.write().unwrap_or_else(PoisonError::into_inner);
        let pods = subscriptions.entry(post).or_default();
        if pods.iter().all(|(id, _)| *id != self.pod.id) {
            pods.push((self.pod.id, self.pod.clone()));
        }
    }

    pub(super) fn unsubscribe(&self, post: PostId) {
        let mut subscriptions = self.bus.0.subscriptions.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(pods) = subscriptions.get_mut(&post) {
            pods.retain(|(id, _)| *id != self.pod.id);
            if pods.is_empty() {
                subscriptions.remove(&post);
            }
        }
    }

    pub(super) fn subscriptions(&self) -> usize {
        let subscriptions = self.bus.0.subscriptions.read().unwrap_or_else(PoisonError::into_inner);
        subscriptions.values().filter(|pods| pods.iter().any(|(id, _)| *id == self.pod.id)).count()
    }

    pub(super) fn state(&self) -> watch::Receiver<BrokerState> {
        self.pod.state.subscribe()
    }

    pub(super) fn counters(&self) -> &BrokerCounters {
        &self.pod.counters
    }

    pub(super) fn close(&self) {
        let mut subscriptions = self.bus.0.subscriptions.write().unwrap_or_else(PoisonError::into_inner);
        subscriptions.retain(|_, pods| {
            pods.retain(|(id, _)| *id != self.pod.id);
            !pods.is_empty()
        });
    }
}
