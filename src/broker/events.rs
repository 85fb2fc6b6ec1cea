//! Events with an acknowledgement: a JetStream stream over the posts' subjects. Pods keep their plain subscriptions; the
//! stream is what answers "I have it" to the outbox.

use std::time::Duration;

use async_nats::jetstream::context::{Context, ContextBuilder, PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use tokio::sync::watch;

use super::{BrokerError, BrokerState, Nats, nats};
use crate::domain::{Epoch, LikesChanged};
use crate::telemetry::Trace;
use crate::telemetry::trace::{Carrier, Publishing};

/// The stream's name.
const NAME: &str = "pushlab-likes";

/// `likes.{post}` and nothing else: the nonces that pods send to themselves (`likes.sync.…`) are not kept.
const SUBJECTS: &str = "likes.*";

/// Events are kept this long; the truth is in the database.
const MAX_AGE: Duration = Duration::from_secs(10 * 60);

/// Bytes kept at most; the oldest go first.
const MAX_BYTES: i64 = 64 << 20;

/// A `Nats-Msg-Id` is remembered this long. A later repeat is stored again, and superseded by its version everywhere.
const DUPLICATES: Duration = Duration::from_secs(120);

/// Longest wait for an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(2);

/// Events whose acknowledgement is waited for at most.
const IN_FLIGHT: usize = 1_024;

/// The stream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventStream {
    context: Context,
    nats: Nats,
    epoch: Epoch,
}

/// A promise of the stream to say that it has an event; the event's publication is traced until then.
#[derive(Debug)]
pub struct Acknowledgement(PublishAckFuture, Nats, Publishing);

impl EventStream {
    /// Makes the stream, or takes the one that is there (with its limits: an operator may have made it).
    pub(super) async fn open(nats: &Nats, epoch: Epoch) -> Result<Self, BrokerError> {
        let builder =
            ContextBuilder::new().timeout(PATIENCE).max_ack_inflight(IN_FLIGHT).backpressure_on_inflight(true);
        let context = builder.build(nats.client());
        let config = Config {
            name: NAME.into(),
            description: Some("Changed like counts, published from the outbox".into()),
            subjects: vec![SUBJECTS.into()],
            max_age: MAX_AGE,
            max_bytes: MAX_BYTES,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            duplicate_window: DUPLICATES,
            ..Config::default()
        };
        let made = context.get_or_create_stream(config).await;
        made.map_err(|error| BrokerError::NoStream { cause: error.to_string() })?;
        Ok(Self { context, nats: nats.clone(), epoch })
    }

    /// Sends an event to every pod that watches its post, and to the stream. Waits while very many are unanswered.
    ///
    /// # Errors
    /// [`BrokerError::NotTaken`]: it is not known whether anybody got it.
    pub async fn send(&self, event: &LikesChanged, trace: &Trace) -> Result<Acknowledgement, BrokerError> {
        let id = format!("{}.{}.{}", self.epoch, event.post_id, event.version);
        let payload = serde_json::to_vec(event).unwrap_or_default();
        let publishing = trace.publishing(event);
        let message = PublishMessage::build().payload(payload.into());
        // The id is a header too.
        let message = match nats::headers(&publishing.trace()) {
            Some(headers) => message.headers(headers),
            None => message,
        };
        let message = message.message_id(id);
        let sent = self.context.send_publish(event.post_id.subject(), message).await;
        let acknowledgement = sent.map_err(|error| not_taken(&error, &self.nats))?;
        self.nats.count_published();
        Ok(Acknowledgement(acknowledgement, self.nats.clone(), publishing))
    }

    /// The trace an outbox's row has.
    #[must_use]
    pub fn resumed(&self, kept: &Carrier) -> Trace {
        self.nats.tracer().resumed(kept)
    }

    /// Whether the connection stands.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<BrokerState> {
        self.nats.state()
    }
}

impl Acknowledgement {
    /// Waits for it, a bounded time. True: the stream has the event, from now or from before.
    ///
    /// # Errors
    /// [`BrokerError::NotTaken`]: publish it again.
    pub async fn taken(self) -> Result<(), BrokerError> {
        match self.0.await {
            Ok(_) => {
                self.2.sent();
                Ok(())
            }
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                Err(BrokerError::NotTaken { cause: format!("the stream {NAME} is gone") })
            }
            Err(error) => Err(not_taken(&error, &self.1)),
        }
    }
}

fn not_taken(error: &PublishError, nats: &Nats) -> BrokerError {
    if error.kind() == PublishErrorKind::TimedOut {
        nats.count_timeout();
    }
    BrokerError::NotTaken { cause: error.to_string() }
}
