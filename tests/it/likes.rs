//! From the like to the hub's door, over several pods: nothing is lost at a join, in an outage, or when callers hang up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pushlab::broker::{Broker, BrokerOptions, BrokerTarget, LocalBus};
use pushlab::domain::{Epoch, PostId, Update, Version};
use pushlab::serve::likes::Likes;
use pushlab::serve::watch::{JoinError, Joined, Position, Resumed, Sink, Watch, WatchOptions};
use pushlab::store::{LikeRequest, LikeStore, StoreError, StoreOptions, WriteStrategy};
use tokio::task::JoinSet;

use crate::proxy::Proxy;
use crate::servers::{MariaDb, NatsServer, until};
use crate::store::patient;

/// A pod without sockets.
pub(crate) struct Pod {
    pub(crate) store: LikeStore,
    likes: Likes,
    pub(crate) broker: Broker,
    pub(crate) watch: Watch,
    pub(crate) updates: Arc<Mutex<Vec<(Update, u64)>>>,
    forgotten: Arc<AtomicU64>,
    renewed: Arc<Mutex<Vec<Epoch>>>,
}

impl Pod {
    pub(crate) async fn new(store: &LikeStore, target: &BrokerTarget, options: WatchOptions) -> Self {
        let updates = Arc::new(Mutex::new(Vec::new()));
        let forgotten = Arc::new(AtomicU64::new(0));
        let renewed = Arc::new(Mutex::new(Vec::new()));
        let sink = Sink {
            publish: Box::new({
                let updates = updates.clone();
                move |update, gap, _| updates.lock().unwrap().push((update, gap))
            }),
            forget: Box::new({
                let forgotten = forgotten.clone();
                move |_| _ = forgotten.fetch_add(1, Ordering::Relaxed)
            }),
            renew: Box::new({
                let renewed = renewed.clone();
                move |epoch| renewed.lock().unwrap().push(epoch)
            }),
        };
        let epoch = store.epoch().await.unwrap();
        let started = Watch::start((store.clone(), epoch), target, BrokerOptions::default(), sink, options).await;
        let (watch, broker) = started.unwrap();
        Self {
            store: store.clone(),
            likes: Likes::new(store.clone(), broker.clone()),
            broker,
            watch,
            updates,
            forgotten,
            renewed,
        }
    }

    pub(crate) async fn join(&self, post: PostId) -> Joined {
        self.watch.join(post, None).await.unwrap()
    }

    async fn like(&self, post: PostId) -> Result<Version, StoreError> {
        self.likes.like(LikeRequest::anonymous_like(post)).await.map(|outcome| outcome.state.version)
    }

    pub(crate) fn newest(&self, post: PostId) -> Option<Update> {
        let updates = self.updates.lock().unwrap();
        updates.iter().map(|(update, _)| *update).filter(|u| u.post_id() == post).max_by_key(Update::version)
    }

    pub(crate) fn version(&self, post: PostId) -> Version {
        self.newest(post).map_or(Version(0), |update| update.version())
    }
}

fn repairs_off() -> WatchOptions {
    WatchOptions { anti_entropy: false, ..WatchOptions::default() }
}

async fn mariadb() -> LikeStore {
    let url = MariaDb::shared().database().await;
    LikeStore::connect(&url, StoreOptions { max_connections: 8, ..patient(WriteStrategy::default()) }).await.unwrap()
}

async fn new_post(store: &LikeStore) -> PostId {
    store.create_post("").await.unwrap().id
}

fn over(server: &NatsServer) -> BrokerTarget {
    BrokerTarget::Nats { url: server.url(), name: "test".into() }
}

async fn two_pods(store: &LikeStore, target: &BrokerTarget, options: WatchOptions) -> (Pod, Pod) {
    (Pod::new(store, target, options.clone()).await, Pod::new(store, target, options).await)
}

async fn embedded(options: WatchOptions) -> (tempfile::TempDir, Pod, Pod) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("likes.db").display());
    let store = LikeStore::connect(&url, patient(WriteStrategy::default())).await.unwrap();
    let target = BrokerTarget::Local(LocalBus::default());
    let (a, b) = two_pods(&store, &target, options).await;
    (folder, a, b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_like_during_a_join_on_another_pod_is_never_lost() {
    let (server, store) = (NatsServer::start(), mariadb().await);
    // Without the re-read after a second: only the order of subscription and snapshot holds this.
    let options = WatchOptions { settle: Duration::from_secs(3600), ..repairs_off() };
    let (a, b) = two_pods(&store, &over(&server), options).await;
    let (a, b) = (Arc::new(a), Arc::new(b));
    // The lab's bar is 10,000 (PUSHLAB_JOINS); what everybody runs is 500.
    let joins = std::env::var("PUSHLAB_JOINS").map_or(500, |n| n.parse().unwrap());
    for _ in 0..joins / 25 {
        let mut joins = JoinSet::new();
        for _ in 0..25 {
            let (a, b) = (a.clone(), b.clone());
            joins.spawn(async move {
                let post = new_post(&a.store).await;
                let (joined, liked) = tokio::join!(b.join(post), a.like(post));
                (post, joined.state.version, liked.unwrap(), joined)
            });
        }
        let joined = joins.join_all().await;
        until("every viewer has the like", || {
            joined.iter().all(|(post, snapshot, liked, _)| (*snapshot).max(b.version(*post)) == *liked)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_hang_up_cancel_nothing() {
    let (server, store) = (NatsServer::start(), mariadb().await);
    let (a, b) = two_pods(&store, &over(&server), repairs_off()).await;
    let post = new_post(&store).await;
    let _joined = b.join(post).await;
    for i in 0..1_000 {
        // Each is polled a little and dropped, at another place each time.
        let impatient = tokio::time::timeout(Duration::from_micros(i % 50 * 40), a.like(post));
        let _ = impatient.await;
    }
    a.likes.idle().await;
    let state = store.read(&[post]).await.unwrap()[0].state;
    assert_eq!((state.likes, state.version), (1_000, Version(1_000)));
    until("the newest arrives", || b.version(post) == state.version).await;
    // Each committed version was published once: it was delivered, or came after a newer one.
    let late = || {
        let counters = b.watch.counters();
        [&counters.superseded_events, &counters.duplicate_events].map(|c| c.load(Ordering::Relaxed)).iter().sum::<u64>()
    };
    let versions = || b.updates.lock().unwrap().iter().map(|(update, _)| update.version().0).collect::<Vec<_>>();
    until("all events arrive", || versions().len() as u64 + late() == 1_000).await;
    assert!(versions().is_sorted(), "versions never go back");
    let gaps: u64 = b.updates.lock().unwrap().iter().map(|(_, gap)| gap).sum();
    assert_eq!(gaps, late(), "what was skipped came late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn likes_go_on_without_nats_and_are_seen_after_it() {
    let (mut server, store) = (NatsServer::start(), mariadb().await);
    let (a, b) = two_pods(&store, &over(&server), repairs_off()).await;
    let post = new_post(&store).await;
    let _joined = b.join(post).await;
    server.kill();
    for version in 1..=20 {
        assert_eq!(a.like(post).await, Ok(Version(version)));
    }
    // Who comes now to a post that nobody watched is served the state, and the rest once there is a subscription.
    let other = new_post(&store).await;
    assert_eq!(a.like(other).await, Ok(Version(1)));
    let joined = b.join(other).await;
    assert_eq!(joined.state.version, Version(1));
    assert_eq!(a.like(other).await, Ok(Version(2)));
    server.start_again();
    until("the newest arrives", || b.version(post) == Version(20)).await;
    until("what came after the snapshot arrives", || b.version(other) == Version(2)).await;
    let late = || b.watch.counters().late_subscriptions.load(Ordering::Relaxed);
    until("the subscription is in force", || late() == 1).await;
    for post in [post, other] {
        let version = a.like(post).await.unwrap();
        until("events flow again", || b.version(post) == version).await;
        assert!(matches!(b.newest(post), Some(Update::Changed(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_lost_inside_nats_is_sent_and_read_again() {
    let (mut server, store) = (NatsServer::start(), mariadb().await);
    let options = WatchOptions { settle: Duration::from_secs(3600), ..repairs_off() };
    let (a, b) = two_pods(&store, &over(&server), options).await;
    let (post, other) = (new_post(&store).await, new_post(&store).await);
    let _joined = (b.join(post).await, b.join(other).await);
    // It takes the bytes and dies before it reads them.
    server.signal(Signal::SIGSTOP);
    for _ in 0..20 {
        a.like(post).await.unwrap();
    }
    a.store.apply(&LikeRequest::anonymous_like(other)).await.unwrap();
    let handed = || a.broker.counters().published.load(Ordering::Relaxed) == 20;
    until("the events are handed to the connection", handed).await;
    tokio::time::sleep(Duration::from_millis(100)).await; // And written to its socket.
    server.kill();
    server.start_again();
    until("the newest arrives", || b.version(post) == Version(20)).await;
    until("what nobody sends again is read", || b.version(other) == Version(1)).await;
    assert!(matches!(b.newest(other), Some(Update::Snapshot(_))));
    until("and what was sent is sent again", || a.broker.counters().republished.load(Ordering::Relaxed) > 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_told_to_the_viewers_all_the_same() {
    let (database, server) = (MariaDb::shared(), NatsServer::start());
    let proxy = Proxy::start(database.port()).await;
    let options = StoreOptions { operation_timeout: Duration::from_millis(800), ..StoreOptions::default() };
    let store = LikeStore::connect(&proxy.instead_of(&database.database().await), options).await.unwrap();
    let options = WatchOptions { settle: Duration::from_secs(3600), ..repairs_off() };
    let (a, b) = two_pods(&store, &over(&server), options).await;
    let post = new_post(&store).await;
    let _joined = b.join(post).await;
    assert_eq!(a.like(post).await, Ok(Version(1)));
    proxy.swallow(Some(b"COMMIT"));
    assert!(matches!(a.like(post).await, Err(StoreError::OutcomeUnknown { .. })));
    proxy.swallow(None);
    until("the viewers know", || b.version(post) == Version(2)).await;
    assert!(
        matches!(b.newest(post), Some(Update::Changed(event)) if event.prev == Version(1) && event.committed_at > 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_event_is_found_by_anti_entropy_and_only_by_it() {
    let quick = WatchOptions { quiet: Duration::from_millis(200), settle: Duration::ZERO, ..WatchOptions::default() };
    for anti_entropy in [true, false] {
        let (_folder, a, b) = embedded(WatchOptions { anti_entropy, ..quick.clone() }).await;
        let (post, witness) = (new_post(&a.store).await, new_post(&a.store).await);
        let _joined = (b.join(post).await, b.join(witness).await);
        tokio::time::sleep(Duration::from_millis(300)).await; // Past the re-read of newly watched posts.
        // Committed, and nobody told: the pod was killed between COMMIT and publish.
        a.store.apply(&LikeRequest::anonymous_like(post)).await.unwrap();
        if anti_entropy {
            until("the state is found", || b.version(post) == Version(1)).await;
            assert!(matches!(b.newest(post), Some(Update::Snapshot(_))));
            assert_eq!(b.watch.counters().anti_entropy_healed.load(Ordering::Relaxed), 1);
        } else {
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert_eq!(b.version(post), Version(0));
            assert_eq!(b.watch.counters().anti_entropy_rows.load(Ordering::Relaxed), 0);
        }
        // The next event heals it in any case, and says what was skipped.
        a.like(post).await.unwrap();
        until("the event arrives", || b.version(post) == Version(2)).await;
        let gaps: Vec<u64> = b.updates.lock().unwrap().iter().map(|(_, gap)| *gap).filter(|gap| *gap > 0).collect();
        assert_eq!(gaps, if anti_entropy { vec![] } else { vec![1] });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newly_watched_post_is_read_once_more() {
    let options = WatchOptions { settle: Duration::from_millis(500), ..repairs_off() };
    let (_folder, a, b) = embedded(options).await;
    let post = new_post(&a.store).await;
    let _joined = b.join(post).await;
    a.store.apply(&LikeRequest::anonymous_like(post)).await.unwrap();
    until("the state is found", || b.version(post) == Version(1)).await;
    assert_eq!(b.watch.counters().reread_healed.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn viewers_come_and_go_and_nothing_stays() {
    let options = WatchOptions { linger: Duration::from_millis(100), ..repairs_off() };
    let (_folder, a, b) = embedded(options).await;
    let post = new_post(&a.store).await;
    let mut joins = JoinSet::new();
    for _ in 0..50 {
        let watch = b.watch.clone();
        joins.spawn(async move { watch.join(post, None).await.unwrap() });
    }
    let joined = joins.join_all().await;
    assert_eq!(b.watch.watched(), 1);
    a.like(post).await.unwrap();
    until("the event arrives once", || b.version(post) == Version(1)).await;
    assert_eq!(b.updates.lock().unwrap().len(), 1);
    let one_more = b.join(post).await;
    assert_eq!(one_more.state.version, Version(1), "the known state, without a read");
    drop((joined, one_more));
    until("the post is left", || b.watch.watched() == 0 && b.forgotten.load(Ordering::Relaxed) == 1).await;
    a.like(post).await.unwrap();
    assert_eq!(b.version(post), Version(1));
    assert_eq!(b.join(post).await.state.version, Version(2));

    let nobody = PostId::new(4711).unwrap();
    assert!(matches!(b.watch.join(nobody, None).await, Err(JoinError::UnknownPost)));
    assert_eq!(b.watch.watched(), 1);
}

fn had(epoch: Epoch, version: u64) -> Option<Position> {
    Some(Position { epoch, version: Version(version) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_seen_more_than_this_pod_never_goes_back() {
    let options = WatchOptions { settle: Duration::from_secs(3600), ..repairs_off() };
    let (_folder, a, b) = embedded(options).await;
    let post = new_post(&a.store).await;
    let _viewer = b.join(post).await;
    // Committed, and this pod does not know: its viewer has seen it on another one.
    a.store.apply(&LikeRequest::anonymous_like(post)).await.unwrap();
    let epoch = b.watch.epoch();
    let joined = b.watch.join(post, had(epoch, 1)).await.unwrap();
    assert_eq!((joined.resumed, joined.state.version), (Resumed::Current, Version(1)));
    assert_eq!(b.version(post), Version(1), "the others are told too");
    // What the database never had is held back for.
    let joined = b.watch.join(post, had(epoch, 5)).await.unwrap();
    assert_eq!((joined.resumed, joined.cursor), (Resumed::Ahead, Version(5)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rings_serve_those_who_come_back_soon() {
    let options = WatchOptions { replay_depth: 4, linger: Duration::ZERO, ..repairs_off() };
    let (_folder, a, b) = embedded(options).await;
    let post = new_post(&a.store).await;
    let first = b.join(post).await;
    let epoch = first.epoch;
    drop(first);
    for _ in 0..6 {
        a.like(post).await.unwrap();
    }
    until("the events arrive, though nobody is there", || b.version(post) == Version(6)).await;
    for (version, resumed, missed) in [
        (6, Resumed::Current, vec![]),
        (3, Resumed::Replayed, vec![4, 5, 6]),
        (2, Resumed::Replayed, vec![3, 4, 5, 6]),
        (1, Resumed::Behind, vec![]),
    ] {
        let joined = b.watch.join(post, had(epoch, version)).await.unwrap();
        let versions: Vec<u64> = joined.missed.iter().map(|event| event.version.0).collect();
        assert_eq!((joined.resumed, versions, joined.cursor), (resumed, missed, Version(6)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_is_noticed_by_quiet_by_busy_and_by_idle_pods() {
    let quick = WatchOptions { quiet: Duration::from_millis(200), ..WatchOptions::default() };
    for anti_entropy in [true, false] {
        let (_folder, a, b) = embedded(WatchOptions { anti_entropy, ..quick.clone() }).await;
        let post = new_post(&a.store).await;
        let before = b.join(post).await;
        a.like(post).await.unwrap();
        until("the event arrives", || b.version(post) == Version(1)).await;
        let epoch = a.store.new_epoch().await.unwrap();
        // `a` watches nothing.
        for pod in [&a, &b] {
            until("it is noticed", || *pod.renewed.lock().unwrap() == [epoch]).await;
            assert_eq!((pod.watch.epoch(), pod.watch.watched()), (epoch, 0));
        }
        let after = b.watch.join(post, had(before.epoch, 1)).await.unwrap();
        assert_eq!((after.epoch, after.resumed, after.state.version), (epoch, Resumed::OtherEpoch, Version(1)));
        drop(before);
        assert_eq!(b.watch.watched(), 1, "a guard of the old epoch leaves nothing");
        a.like(post).await.unwrap();
        until("events flow", || b.version(post) == Version(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_stay_within_their_share_of_the_database() {
    const RATE: u32 = 100;
    let quiet = Duration::from_millis(20);
    let options = WatchOptions { quiet, rows_per_second: RATE, ..WatchOptions::default() };
    let (_folder, a, b) = embedded(options).await;
    let mut joined = Vec::new();
    for _ in 0..20 {
        joined.push(b.join(new_post(&a.store).await).await);
    }
    let rows = || b.watch.counters().anti_entropy_rows.load(Ordering::Relaxed);
    let (before, began) = (rows(), Instant::now());
    until("posts are read again", || rows() > before + 150).await;
    let allowed = began.elapsed().as_secs_f64() * f64::from(RATE);
    // A batch may have been read just before.
    assert!((rows() - before) as f64 <= allowed + 40.0, "{} rows, {allowed} allowed", rows() - before);
}
