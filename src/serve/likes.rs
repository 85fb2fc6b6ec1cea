//! The one use-case that publishes: a like is committed, then every pod is told.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, EventStream};
use crate::domain::{LikesChanged, PostId, Version, unix_micros};
use crate::store::{LikeOutcome, LikeRequest, LikeStore, Stages, StoreError, ToPublish, WriteStrategy};
use crate::telemetry::Metrics;
use relay::Relay;
use turns::Turns;

/// Likes answered before they are counted.
mod counting;
/// Where the laboratory has a pod die.
mod fail;
/// Publishes from the outbox.
mod relay;
/// One task per post at a time.
mod turns;

pub use fail::FailAt;
pub(super) use fail::die;

/// Likes under way at most; more are refused at once ([`StoreError::Overloaded`]).
const IN_FLIGHT: usize = 2_048;

/// How long the database is asked what became of a COMMIT it did not answer.
const ASK: Duration = Duration::from_secs(120);

/// What is done with likes beside the store.
#[derive(Debug, Clone, Default)]
pub struct LikesOptions {
    /// How the store writes them.
    pub write: WriteStrategy,
    /// Where the outbox is published; nothing: events are published after the commit and kept nowhere.
    pub outbox: Option<EventStream>,
    /// Where the process dies, for the laboratory.
    pub fail_at: Option<FailAt>,
    /// What is measured.
    pub metrics: Metrics,
}

/// Takes likes from both transports. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Likes {
    store: LikeStore,
    broker: Broker,
    relay: Option<Relay>,
    fail_at: Option<FailAt>,
    metrics: Metrics,
    tasks: TaskTracker,
    room: Arc<Semaphore>,
    counting: Turns,
    asking: Turns,
    stop: CancellationToken,
}

impl Likes {
    /// Over this store, told through this broker after each commit.
    #[must_use]
    pub fn new(store: LikeStore, broker: Broker) -> Self {
        Self::start(store, broker, LikesOptions::default())
    }

    /// Over this store, told through this broker, in another way. The store's options must agree.
    #[must_use]
    pub fn start(store: LikeStore, broker: Broker, options: LikesOptions) -> Self {
        let LikesOptions { write, outbox, fail_at, metrics } = options;
        let stop = CancellationToken::new();
        let relay = outbox.map(|events| Relay::start(&store, &events, &metrics, fail_at, &stop));
        let likes = Self {
            store,
            broker,
            relay,
            fail_at,
            metrics,
            tasks: TaskTracker::new(),
            room: Arc::new(Semaphore::new(IN_FLIGHT)),
            counting: Turns::default(),
            asking: Turns::default(),
            stop,
        };
        let look = counting::look(likes.clone(), write == WriteStrategy::Event);
        tokio::spawn(likes.stop.clone().run_until_cancelled_owned(look));
        likes
    }

    /// One like or unlike, in a task of its own: neither a hang-up nor a time-out of the caller cancels it between lock
    /// and publish. It ends by itself within the store's time limits.
    ///
    /// # Errors
    /// Those of [`LikeStore::apply`], and [`StoreError::Overloaded`].
    pub async fn like(&self, request: LikeRequest) -> Result<LikeOutcome, StoreError> {
        let Ok(place) = self.room.clone().try_acquire_owned() else { return Err(StoreError::Overloaded) };
        let likes = self.clone();
        let trace = request.trace.clone();
        let task = self.tasks.spawn(trace.scope(async move {
            let _place = place;
            let outcome = likes.store.apply(&request).await;
            match &outcome {
                Ok(outcome) => {
                    likes.tell(outcome);
                    if outcome.committed_at > 0 && !outcome.replayed {
                        let Stages { lock_us, commit_us } = outcome.stages;
                        request.trace.committed(outcome.committed_at, lock_us, commit_us);
                    }
                    if likes.fail_at == Some(FailAt::BeforeAnswer) {
                        likes.broker.drain(Duration::from_secs(2)).await;
                        die();
                    }
                }
                Err(StoreError::OutcomeUnknown { .. }) => likes.find_out_later(request.post, unix_micros()),
                Err(_) => {}
            }
            outcome
        }));
        task.await.unwrap_or_else(|e| Err(StoreError::OutcomeUnknown { cause: e.to_string() }))
    }

    /// Waits until no like is under way, for the end of a drain, then stops what runs beside them. Likes that come later
    /// are still taken, and published in the plain way or by another pod's sweep.
    pub async fn idle(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(relay) = &self.relay {
            // With the broker away this would not end; the rows stay, and other pods find them.
            let _ = tokio::time::timeout(Duration::from_secs(2), relay.idle()).await;
        }
        self.stop.cancel();
    }

    fn tell(&self, outcome: &LikeOutcome) {
        if (outcome.changed || outcome.pending) && !outcome.replayed {
            FailAt::AfterCommit.if_asked(self.fail_at);
        }
        if let Some(publish) = &outcome.publish {
            self.publish(publish.clone());
        }
        if outcome.pending && !outcome.replayed {
            self.count(outcome.state.post_id);
        }
    }

    fn publish(&self, publish: ToPublish) {
        match &self.relay {
            Some(relay) => relay.publish(publish),
            None => self.broker.publish_traced(publish.event, &publish.trace),
        }
    }

    /// A COMMIT was not answered. If it was done all the same, nobody has told the viewers.
    fn find_out_later(&self, post: PostId, sent_at: u64) {
        // An outbox has the event if the database has the change.
        if self.relay.is_some() {
            return;
        }
        let Some(mut turn) = self.asking.begin(post) else { return };
        let likes = self.clone();
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(async move {
            loop {
                likes.find_out(post, sent_at).await;
                if !turn.again() {
                    return;
                }
            }
        }));
    }

    /// As soon as the database answers again, the post's newest state is published (a second time, if somebody else has:
    /// receivers see that by the version).
    async fn find_out(&self, post: PostId, sent_at: u64) {
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
