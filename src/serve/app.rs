//! What the handlers and connections of one pod share, and the few things they all do: like, join, admit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use tokio::runtime::Handle;

use super::auth::{Auth, Identity, Ticket};
use super::conformance::Broadcast;
use super::connection::Stats;
use super::error::ApiError;
use super::likes::{Likes, LikesOptions};
use super::limits::{Lifetime, Seat, Seats};
use super::rates::Rates;
use super::relay::Relay;
use super::watch::{JoinError, Joined, Position, Watch};
use super::wire::Wire;
use super::{Broken, Config};
use crate::broker::{Broker, EventStream};
use crate::domain::{PostId, unix_micros};
use crate::hub::Hub;
use crate::proto::stomp::session;
use crate::store::{LikeOutcome, LikeRequest, LikeStore, StoreError};
use crate::telemetry::trace::export::SpanCounters;
use crate::telemetry::{Metrics, Tracer};

/// One pod's parts. Handlers get it as axum's state, connections hold it to reach the async side.
pub(super) struct App {
    /// What the pod was told.
    pub config: Config,
    /// `X-Pushlab-Pod`.
    pub pod: HeaderValue,
    /// Posts and likes.
    pub store: LikeStore,
    /// The use-case that publishes.
    pub likes: Likes,
    /// Join and repair.
    pub watch: Watch,
    /// Events between pods.
    pub broker: Broker,
    /// The engines that write to viewers.
    pub hub: Hub<Wire>,
    /// STOMP sessions' own way to the broker, with `--fanout relay`.
    pub relay: Option<Relay>,
    /// For `/metrics`.
    pub metrics: Metrics,
    /// Begins traces.
    pub tracer: Tracer,
    /// What became of their spans.
    pub spans: Arc<SpanCounters>,
    /// What the accept loop counts.
    pub stats: Arc<Stats>,
    /// Who asks; `None`: everybody may.
    pub auth: Option<Auth>,
    /// How often one may ask.
    pub rates: Rates,
    /// Streams held, up to the cap.
    pub seats: Seats,
    /// Set once, at SIGTERM.
    pub draining: AtomicBool,
    /// The database answered the last ping.
    pub database_up: AtomicBool,
    /// What STOMP sessions have in common, in the epoch of the last one.
    stomp: Mutex<Arc<session::Options>>,
    /// What sessions send each other in the conformance mode.
    pub broadcast: Arc<Broadcast>,
    /// Lets connections, which live on engine threads, start tasks.
    pub runtime: Handle,
    complaints: Complaints,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("App").field("pod", &self.pod).finish_non_exhaustive()
    }
}

/// The parts that [`App::new`] puts together.
pub(super) struct Parts {
    pub config: Config,
    pub pod: HeaderValue,
    pub store: LikeStore,
    pub watch: Watch,
    pub broker: Broker,
    pub outbox: Option<EventStream>,
    pub hub: Hub<Wire>,
    pub relay: Option<Relay>,
    pub auth: Option<Auth>,
    pub metrics: Metrics,
    pub tracer: Tracer,
    pub spans: Arc<SpanCounters>,
}

impl App {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        let Parts { config, pod, store, watch, broker, outbox, hub, relay, auth, metrics, tracer, spans } = parts;
        let likes = LikesOptions { write: config.write, outbox, fail_at: config.fail_at, metrics: metrics.clone() };
        let stomp = session::Options {
            // The pod's name as the comment, so that a client can show where it hangs; no version, which is nobody's business.
            server: format!("pushlab {}", pod.to_str().unwrap_or_default()).into(),
            epoch: watch.epoch(),
            heartbeat_send: config.heartbeat,
            heartbeat_want: config.heartbeat,
            connect_timeout: super::limits::CONNECT,
            subscriptions: super::limits::SUBSCRIPTIONS,
            body: if config.conformance { super::limits::CONFORMANCE_BODY } else { super::limits::BODY },
            authenticate: auth.is_some(),
            require_host: false,
            relay: config.conformance,
            ..session::Options::default()
        };
        Arc::new(Self {
            likes: Likes::start(store.clone(), broker.clone(), likes),
            seats: Seats::new(config.max_connections),
            stomp: Mutex::new(Arc::new(stomp)),
            broadcast: Arc::default(),
            rates: Rates::new(&config.rates),
            auth,
            metrics,
            tracer,
            spans,
            stats: Arc::default(),
            draining: AtomicBool::new(false),
            database_up: AtomicBool::new(true),
            runtime: Handle::current(),
            complaints: Complaints::default(),
            config,
            pod,
            store,
            watch,
            broker,
            hub,
            relay,
        })
    }

    /// One like or take-back, counted in the metrics. Both transports come through here.
    ///
    /// # Errors
    /// What the liker is told.
    pub(super) async fn like(&self, request: LikeRequest) -> Result<LikeOutcome, ApiError> {
        let outcome = self.likes.like(request).await;
        let label = match &outcome {
            Ok(outcome) if outcome.replayed => "replayed",
            Ok(outcome) if outcome.pending => "pending",
            Ok(outcome) if outcome.changed => "changed",
            Ok(_) => "unchanged",
            Err(_) => "",
        };
        match outcome {
            Ok(outcome) => {
                self.metrics.likes_total.with_label_values(&[label]).inc();
                if !outcome.replayed {
                    self.metrics.lock_wait_seconds.observe(seconds(outcome.stages.lock_us));
                    self.metrics.transaction_seconds.observe(seconds(outcome.stages.commit_us));
                }
                if outcome.changed && !outcome.replayed {
                    self.metrics.publish_seconds.observe(seconds(unix_micros().saturating_sub(outcome.committed_at)));
                }
                Ok(outcome)
            }
            Err(error) => {
                let told = self.told(&error, "a like failed");
                let label = if told.is_callers() { "refused" } else { "failed" };
                self.metrics.likes_total.with_label_values(&[label]).inc();
                Err(told)
            }
        }
    }

    /// What a caller is told of a store's error; its cause goes to the log.
    pub(super) fn told(&self, error: &StoreError, what: &str) -> ApiError {
        let told = ApiError::from(error);
        if !told.is_callers() {
            self.complaints.say(&format!("{what}: {error}"));
        }
        told
    }

    /// One more viewer of a post, which had `had`: what it begins with, and what keeps the post watched.
    ///
    /// # Errors
    /// What the viewer is told.
    pub(super) async fn join(&self, post: PostId, had: Option<Position>) -> Result<Joined, ApiError> {
        self.watch.join(post, had).await.map_err(|error| match error {
            JoinError::UnknownPost => ApiError::UnknownPost,
            JoinError::Store(error) => self.told(&error, "a viewer could not join"),
        })
    }

    /// What a session that begins now has in common with the others.
    pub(super) fn stomp_options(&self) -> Arc<session::Options> {
        let epoch = self.watch.epoch();
        let mut options = self.stomp.lock().unwrap_or_else(PoisonError::into_inner);
        if options.epoch != epoch {
            *options = Arc::new(session::Options { epoch, ..(**options).clone() });
        }
        Arc::clone(&options)
    }

    /// A seat for a new stream.
    ///
    /// # Errors
    /// [`ApiError::Broken`], [`ApiError::Draining`], [`ApiError::Rush`] or [`ApiError::Full`].
    pub(super) fn admit(&self) -> Result<Seat, ApiError> {
        if self.config.broken == Some(Broken::RefuseFast) {
            return Err(ApiError::Broken);
        }
        if self.draining.load(Ordering::Acquire) {
            return Err(ApiError::Draining);
        }
        let seat = self.seats.take().ok_or(ApiError::Full)?;
        self.rates.stream().map(|()| seat)
    }

    /// Uses up the ticket a stream was asked for with, if it was one.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`] when it was used before.
    pub(super) async fn take_ticket(&self, extensions: &http::Extensions) -> Result<(), ApiError> {
        let (Some(auth), Some(ticket)) = (&self.auth, extensions.get::<Ticket>()) else { return Ok(()) };
        let taken = auth.take(ticket, &self.store).await;
        let fresh = taken.map_err(|error| self.told(&error, "a ticket could not be used"))?;
        if fresh { Ok(()) } else { Err(ApiError::Unauthorized) }
    }

    /// Counts a stream that was turned away.
    pub(super) fn refused(&self, why: &ApiError) {
        self.metrics.streams_refused_total.with_label_values(&[why.name()]).inc();
    }

    /// When a stream that begins now has to end: as `--max-age` says, ± 20 %, so that they do not end together; and never
    /// later than what its user has shown.
    pub(super) fn lifetime(&self, user: Option<&Identity>) -> Lifetime {
        let lifetime = Lifetime::around(self.config.max_age);
        user.map_or(lifetime, |user| lifetime.until(user.expires))
    }
}

/// The browser's next attempt after a stream ends, in ms; random, so that those cut off together do not return together.
pub(super) fn retry_ms() -> u64 {
    rand::random_range(500..=1500)
}

#[expect(clippy::cast_precision_loss, reason = "a duration")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// Warnings that an outage would repeat for each request: at most one per second, with the number of those left out.
#[derive(Debug, Default)]
struct Complaints {
    next_at: AtomicU64,
    left_out: AtomicU64,
}

impl Complaints {
    fn say(&self, what: &str) {
        let now = unix_micros();
        let due = self.next_at.load(Ordering::Relaxed);
        let next = now + u64::try_from(Duration::from_secs(1).as_micros()).unwrap_or(u64::MAX);
        if now >= due && self.next_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let left_out = self.left_out.swap(0, Ordering::Relaxed);
            tracing::warn!(left_out, "{what}");
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}
