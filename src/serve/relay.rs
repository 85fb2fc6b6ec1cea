//! `--fanout relay`: each STOMP session has a broker connection of its own with its own subscriptions, as Spring's
//! StompBrokerRelay has, and the pod copies through. For comparison with the hub; SSE streams stay on the hub.
//!
//! What stays the same: the subscription is in force before the snapshot is read, versions never go back, what is missed
//! is read again, and the bytes leave through the engine with its mailboxes and counters. What does not: nothing is
//! shared between sessions but reads of the database that are due at the same time.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{Notify, OnceCell, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::watch::{JoinError, Joined, Position, Resumed, Watch};
use super::wire::{Guard, TalkReply, Wire};
use crate::broker::{Broker, BrokerOptions, BrokerTarget};
use crate::domain::{LikesChanged, LikesState, PostId, Update};
use crate::hub::topic::{Accepted, Topic};
use crate::hub::{ConnKey, Hub};
use crate::proto::stomp::session::Subscribe;
use crate::store::{Lane, StoreError, StoredState};

/// A subscription without an event for this long (± 50 %) is read again.
const QUIET: Duration = Duration::from_secs(5);
/// After a reconnect the sessions read again, spread over this.
const SPREAD: Duration = Duration::from_secs(1);
/// A state found by reading is given this long to arrive as an event.
const GAP: Duration = Duration::from_millis(100);
/// Between two reads for repair: what sessions ask for meanwhile is read at once.
const REPAIR_PAUSE: Duration = Duration::from_millis(100);
/// How long a session that ends may take to leave the broker in good order.
const LEAVE: Duration = Duration::from_secs(1);
/// Reads that may wait.
const READS: usize = 4096;

/// What the sessions of a pod have in common. Cheap to clone.
#[derive(Clone)]
pub(super) struct Relay(Arc<Shared>);

struct Shared {
    target: BrokerTarget,
    hub: Hub<Wire>,
    /// Whether quiet subscriptions are read again.
    anti_entropy: bool,
    /// For snapshots: at once.
    snapshots: Reads,
    /// For repairs: now and then.
    repairs: Reads,
    counters: RelayCounters,
}

/// What has happened so far; all but `connections` only grow.
#[derive(Debug, Default)]
pub(super) struct RelayCounters {
    /// Sessions that have a broker connection now.
    pub connections: AtomicUsize,
    /// Broker connections or subscriptions that could not be had.
    pub failed: AtomicU64,
    /// Events that arrived after a newer one.
    pub superseded: AtomicU64,
    /// Subscriptions for which a read found a newer state than events had brought.
    pub healed: AtomicU64,
}

/// A session's way to the broker; the connection ends when it is dropped.
pub(super) struct Upstream(Arc<Session>);

struct Session {
    relay: Arc<Shared>,
    key: ConnKey,
    broker: OnceCell<Broker>,
    /// By slot.
    wanted: Mutex<HashMap<u32, Wanted>>,
    /// Slots whose subscription has ended.
    left: Mutex<Vec<u32>>,
    /// Something is in `left`.
    leaves: Notify,
    stop: CancellationToken,
}

struct Wanted {
    post: PostId,
    phase: Phase,
}

enum Phase {
    /// The snapshot is not read yet. The newest event that came meanwhile.
    Joining(Option<LikesChanged>),
    Live {
        topic: Topic,
        quiet: Instant,
    },
}

/// Ends one subscription when dropped, on any thread.
pub struct Leave {
    session: Arc<Session>,
    slot: u32,
}

impl Drop for Leave {
    fn drop(&mut self) {
        lock(&self.session.left).push(self.slot);
        self.session.leaves.notify_one();
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.0.stop.cancel();
    }
}

impl Relay {
    /// A relay to this broker. To be called within the runtime.
    pub(super) fn new(target: BrokerTarget, hub: Hub<Wire>, watch: &Watch, anti_entropy: bool) -> Self {
        let target = match target {
            BrokerTarget::Nats { url, name } => BrokerTarget::Nats { url, name: format!("{name} relay") },
            local @ BrokerTarget::Local(_) => local,
        };
        let snapshots = Reads::start(watch.clone(), Lane::Requests, Duration::ZERO);
        let repairs = Reads::start(watch.clone(), Lane::Repair, REPAIR_PAUSE);
        let counters = RelayCounters::default();
        Self(Arc::new(Shared { target, hub, anti_entropy, snapshots, repairs, counters }))
    }

    /// A session's way to the broker; it connects with the first subscription.
    pub(super) fn session(&self, key: ConnKey) -> Upstream {
        Upstream(Arc::new(Session {
            relay: Arc::clone(&self.0),
            key,
            broker: OnceCell::new(),
            wanted: Mutex::default(),
            left: Mutex::default(),
            leaves: Notify::new(),
            stop: CancellationToken::new(),
        }))
    }

    pub(super) fn counters(&self) -> &RelayCounters {
        &self.0.counters
    }
}

impl Upstream {
    /// Subscribes, reads the snapshot, and answers the session.
    pub(super) fn join(&self, wish: Subscribe) -> impl Future<Output = ()> + Send + use<> {
        let session = Arc::clone(&self.0);
        // Noted before anything can arrive.
        let joining = Wanted { post: wish.post, phase: Phase::Joining(None) };
        lock(&session.wanted).insert(wish.slot, joining);
        async move {
            let snapshot = session.snapshot(wish.post).await;
            session.answer(wish, snapshot);
        }
    }
}

impl Session {
    async fn snapshot(self: &Arc<Self>, post: PostId) -> Result<StoredState, ApiError> {
        let failed = |_| {
            self.relay.counters.failed.fetch_add(1, Ordering::Relaxed);
            ApiError::Unavailable("the broker cannot be reached now")
        };
        let broker = self.broker.get_or_try_init(|| connect(self)).await.map_err(failed)?;
        broker.subscribe(post).await.map_err(failed)?;
        self.relay.snapshots.read(post).await.map_err(|error| match error {
            JoinError::UnknownPost => ApiError::UnknownPost,
            JoinError::Store(error) => ApiError::from(&error),
        })
    }

    fn answer(self: &Arc<Self>, wish: Subscribe, snapshot: Result<StoredState, ApiError>) {
        let guard = Guard::Relay(Leave { session: Arc::clone(self), slot: wish.slot });
        let hub = &self.relay.hub;
        let read = match snapshot {
            Ok(read) => read,
            Err(error) => return hub.reply(self.key, TalkReply::Joined(wish, Err(error))),
        };
        let mut wanted = lock(&self.wanted);
        let mut state = read.state;
        if let Some(wanted) = wanted.get_mut(&wish.slot) {
            if let Phase::Joining(Some(early)) = &wanted.phase
                && early.version > state.version
            {
                state = LikesState { post_id: early.post_id, likes: early.likes, version: early.version };
            }
            wanted.phase = Phase::Live { topic: Topic::new(state.version), quiet: dice() };
        }
        let had = wish.last.map(|(epoch, version)| Position { epoch, version });
        let resumed = Resumed::of(had, read.epoch, state.version);
        let cursor = had.filter(|_| resumed == Resumed::Ahead).map_or(state.version, |had| had.version);
        let joined = Joined { epoch: read.epoch, state, cursor, missed: Vec::new(), resumed, guard };
        // Under the lock: whatever arrives from now on comes to the engine after this.
        hub.reply(self.key, TalkReply::Joined(wish, Ok(joined)));
    }

    fn on_event(&self, event: LikesChanged) {
        let mut wanted = lock(&self.wanted);
        for (slot, wanted) in wanted.iter_mut().filter(|(_, wanted)| wanted.post == event.post_id) {
            match &mut wanted.phase {
                Phase::Joining(early) if early.is_none_or(|early| early.version < event.version) => {
                    *early = Some(event);
                }
                Phase::Joining(_) => {}
                Phase::Live { topic, quiet } => match topic.accept(&event) {
                    Accepted::New { gap } => {
                        *quiet = dice();
                        self.relay.hub.publish_to(self.key, *slot, Update::Changed(event), gap);
                    }
                    Accepted::Superseded => _ = self.relay.counters.superseded.fetch_add(1, Ordering::Relaxed),
                    Accepted::Duplicate => {}
                },
            }
        }
    }

    /// Takes the slots that have ended out; what nobody wants any more is unsubscribed.
    fn tidy(&self, broker: &Broker) {
        let mut wanted = lock(&self.wanted);
        for slot in std::mem::take(&mut *lock(&self.left)) {
            let Some(gone) = wanted.remove(&slot) else { continue };
            if wanted.values().all(|other| other.post != gone.post) {
                broker.unsubscribe(gone.post);
            }
        }
    }

    /// Posts that are to be read again: all, or those that are quiet by now.
    fn due(&self, all: bool) -> BTreeSet<PostId> {
        let now = Instant::now();
        let mut wanted = lock(&self.wanted);
        let due = wanted.values_mut().filter_map(|wanted| match &mut wanted.phase {
            Phase::Live { quiet, .. } if all || *quiet <= now => {
                *quiet = dice();
                Some(wanted.post)
            }
            _ => None,
        });
        due.collect()
    }

    fn next_quiet(&self) -> Instant {
        let wanted = lock(&self.wanted);
        let quiet = wanted.values().filter_map(|wanted| match wanted.phase {
            Phase::Live { quiet, .. } => Some(quiet),
            Phase::Joining(_) => None,
        });
        quiet.min().unwrap_or_else(dice)
    }

    async fn reread(&self, posts: BTreeSet<PostId>) {
        let reads = posts.into_iter().map(|post| self.relay.repairs.read(post));
        // What could not be read is quiet again soon.
        let read: Vec<LikesState> = join_all(reads).await.into_iter().flatten().map(|read| read.state).collect();
        let news: Vec<LikesState> = {
            let wanted = lock(&self.wanted);
            let lacks = |wanted: &Wanted, state: &LikesState| match &wanted.phase {
                Phase::Live { topic, .. } => wanted.post == state.post_id && topic.latest() < state.version,
                Phase::Joining(_) => false,
            };
            read.into_iter().filter(|state| wanted.values().any(|wanted| lacks(wanted, state))).collect()
        };
        if news.is_empty() {
            return;
        }
        sleep(GAP).await;
        let mut wanted = lock(&self.wanted);
        for state in news {
            for (slot, wanted) in wanted.iter_mut().filter(|(_, wanted)| wanted.post == state.post_id) {
                if let Phase::Live { topic, .. } = &mut wanted.phase
                    && topic.accept_state(&state)
                {
                    self.relay.counters.healed.fetch_add(1, Ordering::Relaxed);
                    self.relay.hub.publish_to(self.key, *slot, Update::Snapshot(state), 0);
                }
            }
        }
    }
}

async fn connect(session: &Arc<Session>) -> Result<Broker, crate::broker::BrokerError> {
    let weak: Weak<Session> = Arc::downgrade(session);
    let on_event = Arc::new(move |event, _| {
        if let Some(session) = weak.upgrade() {
            session.on_event(event);
        }
    });
    let options = BrokerOptions {
        connect_timeout: Duration::from_secs(2),
        // Many connections: a server that vanishes without a word is noticed later than by the pod's own.
        ping_interval: Duration::from_secs(10),
        ..BrokerOptions::default()
    };
    let broker = Broker::connect(&session.relay.target, options, on_event).await?;
    tokio::spawn(keep(Arc::clone(session), broker.clone()));
    Ok(broker)
}

/// A session's connection. Inputs: its reconnects, subscriptions that end or are quiet, the end.
async fn keep(session: Arc<Session>, broker: Broker) {
    let counters = &session.relay.counters;
    counters.connections.fetch_add(1, Ordering::Relaxed);
    let mut state = broker.state();
    let mut missed = state.borrow().missed;
    let work = async {
        loop {
            tokio::select! {
                () = session.leaves.notified() => session.tidy(&broker),
                changed = state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = state.borrow_and_update().missed;
                    if now != missed {
                        missed = now;
                        sleep(SPREAD.mul_f64(rand::random())).await;
                        session.reread(session.due(true)).await;
                    }
                }
                () = sleep_until(session.next_quiet()), if session.relay.anti_entropy => {
                    session.reread(session.due(false)).await;
                }
            }
        }
    };
    let _ = session.stop.run_until_cancelled(work).await;
    // Each by itself: they would hold the connection while the broker does not answer.
    let posts: Vec<PostId> = lock(&session.wanted).drain().map(|(_, wanted)| wanted.post).collect();
    posts.into_iter().for_each(|post| broker.unsubscribe(post));
    broker.drain(LEAVE).await;
    counters.connections.fetch_sub(1, Ordering::Relaxed);
}

/// Reads posts for many sessions: who asks while one read is under way shares the next.
struct Reads(mpsc::Sender<Ask>);

struct Ask {
    post: PostId,
    answer: oneshot::Sender<Result<StoredState, JoinError>>,
}

impl Reads {
    /// With a pause after each read.
    fn start(watch: Watch, lane: Lane, pause: Duration) -> Self {
        let (sender, mut asks) = mpsc::channel::<Ask>(READS);
        tokio::spawn(async move {
            let mut asked = Vec::new();
            while asks.recv_many(&mut asked, READS).await > 0 {
                let posts: BTreeSet<PostId> = asked.iter().map(|ask| ask.post).collect();
                let posts: Vec<PostId> = posts.into_iter().collect();
                let read = watch.read(lane, &posts).await;
                for Ask { post, answer } in asked.drain(..) {
                    let found = read.as_ref().map(|read| read.iter().find(|read| read.state.post_id == post).copied());
                    let _ = answer.send(match found {
                        Ok(found) => found.ok_or(JoinError::UnknownPost),
                        Err(error) => Err(error.clone().into()),
                    });
                }
                sleep(pause).await;
            }
        });
        Self(sender)
    }

    async fn read(&self, post: PostId) -> Result<StoredState, JoinError> {
        let (answer, read) = oneshot::channel();
        let stopped = || StoreError::Unavailable { cause: "the pod stops".into() };
        self.0.send(Ask { post, answer }).await.map_err(|_| stopped())?;
        read.await.map_err(|_| stopped())?
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("counters", &self.0.counters).finish_non_exhaustive()
    }
}

impl fmt::Debug for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leave").field("slot", &self.slot).finish_non_exhaustive()
    }
}

fn dice() -> Instant {
    Instant::now() + QUIET.mul_f64(rand::random_range(0.5..1.5))
}

/// No holder of these locks panics half way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
