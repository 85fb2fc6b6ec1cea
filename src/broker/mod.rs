//! Events between pods: NATS, or in-process for the embedded stack. At most once; whoever has the newest state has the truth.
//!
//! Invariants: publishing never blocks and an outage never fails a like; after [`Broker::subscribe`] has returned, every
//! event published from then on arrives (while the connection lives); subjects are made of validated numbers only.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::{Epoch, LikesChanged, PostId};
use crate::telemetry::{Trace, Tracer};

/// Events with an acknowledgement.
mod events;
/// The in-process bus.
mod local;
/// One NATS connection per pod.
mod nats;
/// What waits for the connection.
mod queue;

pub use events::{Acknowledgement, EventStream};
pub use local::{Local, LocalBus};
pub use nats::Nats;

/// Takes the events of subscribed posts, and their traces. Called from the broker's tasks: it must not block.
pub type OnEvent = Arc<dyn Fn(LikesChanged, Trace) + Send + Sync>;

/// Where the broker is.
#[derive(Debug, Clone)]
pub enum BrokerTarget {
    /// `nats://host:port`, several separated by commas.
    Nats {
        /// The servers.
        url: String,
        /// How the connection is called in the server's monitoring.
        name: String,
    },
    /// The bus of this process.
    Local(LocalBus),
}

/// Bounds of the broker.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Events waiting for the connection in order. Beyond it only the newest event of each post waits.
    pub queue: usize,
    /// Posts whose newest event waits beyond `queue`. Beyond it events are dropped, and counted.
    pub overflow: usize,
    /// Longest wait for the first connection.
    pub connect_timeout: Duration,
    /// Longest wait for a subscription to be in force.
    pub subscribe_timeout: Duration,
    /// How often the server is asked for a sign of life; after two unanswered the connection is given up.
    pub ping_interval: Duration,
    /// After a reconnect the newest event of each post published this long before is published again: it may have been
    /// lost in the old connection's buffers.
    pub republish: Duration,
    /// Messages of one subject that may wait until they are taken; what comes then is lost, and what is watched read again.
    pub backlog: usize,
    /// Goes on with the traces of events that come over a server.
    pub tracer: Tracer,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            queue: 8_192,
            overflow: 65_536,
            connect_timeout: Duration::from_secs(5),
            subscribe_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(3),
            republish: Duration::from_secs(10),
            backlog: 65_536,
            tracer: Tracer::default(),
        }
    }
}

/// Whether events flow, as seen by this pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrokerState {
    /// The connection stands.
    pub connected: bool,
    /// Raised whenever events may have been missed and subscriptions are in force again: read what is watched once more.
    pub missed: u64,
}

/// What has happened so far. All only grow.
#[derive(Debug, Default)]
pub struct BrokerCounters {
    /// Events handed to the connection.
    pub published: AtomicU64,
    /// Events that a newer one of the same post replaced while both waited for the connection.
    pub merged: AtomicU64,
    /// Events never sent because the queue was full.
    pub dropped: AtomicU64,
    /// Events sent once more after a reconnect.
    pub republished: AtomicU64,
    /// Events received.
    pub received: AtomicU64,
    /// Messages on our subjects that were not events of ours.
    pub malformed: AtomicU64,
    /// Times the connection came back.
    pub reconnects: AtomicU64,
    /// Times this pod was too slow to take its messages and some were lost.
    pub slow: AtomicU64,
    /// Times the connection was made, the first included.
    pub connected: AtomicU64,
    /// Times the connection was lost.
    pub disconnected: AtomicU64,
    /// Times a server said that it is about to leave.
    pub lame_ducks: AtomicU64,
    /// Errors that the server or the client reported.
    pub errors: AtomicU64,
    /// Round trips, requests and acknowledgements that did not come in time.
    pub timeouts: AtomicU64,
}

/// Why the broker did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// No connection could be made, or no server is where the URL says.
    #[error("cannot reach NATS at {url}: {cause}; is nats-server running there?")]
    Connect {
        /// The servers tried, without passwords.
        url: String,
        /// The last cause.
        cause: String,
    },
    /// There is no stream, and none can be made.
    #[error("NATS has no JetStream for the outbox ({cause}); start it with `nats-server -js`")]
    NoStream {
        /// What the server or the client says.
        cause: String,
    },
    /// An event was not acknowledged.
    #[error("an event was not acknowledged: {cause}")]
    NotTaken {
        /// What the server or the client says.
        cause: String,
    },
    /// A subscription was not in force in time.
    #[error("the broker did not confirm the subscription within {0:?}")]
    Timeout(Duration),
}

/// Carries events between pods. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Broker {
    /// NATS.
    Nats(Nats),
    /// The bus of this process.
    Local(Local),
}

impl Broker {
    /// Connects. `on_event` gets the events of the posts subscribed to, this pod's own included.
    ///
    /// # Errors
    /// [`BrokerError::Connect`] within [`BrokerOptions::connect_timeout`].
    pub async fn connect(
        target: &BrokerTarget,
        options: BrokerOptions,
        on_event: OnEvent,
    ) -> Result<Self, BrokerError> {
        match target {
            BrokerTarget::Nats { url, name } => Ok(Self::Nats(Nats::connect(url, name, options, on_event).await?)),
            BrokerTarget::Local(bus) => Ok(Self::Local(Local::new(bus, on_event))),
        }
    }

    /// Sends an event to every pod that watches its post. Never blocks and never fails: see [`BrokerCounters`].
    pub fn publish(&self, event: LikesChanged) {
        self.publish_traced(event, &Trace::none());
    }

    /// The same for an event that takes a trace along.
    pub fn publish_traced(&self, event: LikesChanged, trace: &Trace) {
        match self {
            Self::Nats(nats) => nats.publish(event, trace),
            Self::Local(local) => local.publish(event, trace),
        }
    }

    /// The stream that acknowledges events, made if need be. Its messages are named after `epoch`, post and version.
    ///
    /// # Errors
    /// [`BrokerError::NoStream`], always so in-process.
    pub async fn events(&self, epoch: Epoch) -> Result<EventStream, BrokerError> {
        match self {
            Self::Nats(nats) => EventStream::open(nats, epoch).await,
            Self::Local(_) => Err(BrokerError::NoStream { cause: "`local` is no NATS".into() }),
        }
    }

    /// Subscribes; in force on return. A second subscription to the same post changes nothing.
    ///
    /// # Errors
    /// [`BrokerError::Timeout`]: undo it with [`Broker::unsubscribe`].
    pub async fn subscribe(&self, post: PostId) -> Result<(), BrokerError> {
        match self {
            Self::Nats(nats) => nats.subscribe(post).await,
            Self::Local(local) => {
                local.subscribe(post);
                Ok(())
            }
        }
    }

    /// Ends a subscription; at once and without waiting.
    pub fn unsubscribe(&self, post: PostId) {
        match self {
            Self::Nats(nats) => nats.unsubscribe(post),
            Self::Local(local) => local.unsubscribe(post),
        }
    }

    /// Posts subscribed to.
    #[must_use]
    pub fn subscriptions(&self) -> usize {
        match self {
            Self::Nats(nats) => nats.subscriptions(),
            Self::Local(local) => local.subscriptions(),
        }
    }

    /// Whether events flow, and a number that says when to read again.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<BrokerState> {
        match self {
            Self::Nats(nats) => nats.state(),
            Self::Local(local) => local.state(),
        }
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> &BrokerCounters {
        match self {
            Self::Nats(nats) => nats.counters(),
            Self::Local(local) => local.counters(),
        }
    }

    /// Sends what is waiting, then ends the connection; at most `patience`.
    pub async fn drain(&self, patience: Duration) {
        match self {
            Self::Nats(nats) => nats.drain(patience).await,
            Self::Local(local) => local.close(),
        }
    }
}
