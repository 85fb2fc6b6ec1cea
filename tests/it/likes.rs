//! From the like to the hub's door, over several pods: nothing is lost at a join, in an outage, or when callers hang up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use pushlab::broker::{Broker, BrokerOptions, BrokerTarget, LocalBus};
use pushlab::domain::{PostId, Update, Version};
use pushlab::serve::likes::Likes;
use pushlab::serve::watch::{JoinError, Sink, Watch, WatchOptions};
use pushlab::store::{LikeRequest, LikeStore, StoreError, StoreOptions};
use tokio::task::JoinSet;

use crate::proxy::Proxy;
use crate::servers::{MariaDb, NatsServer, until};

/// A pod without sockets.
pub(crate) struct Pod {
    pub(crate) store: LikeStore,
    likes: Likes,
    pub(crate) broker: Broker,
    pub(crate) watch: Watch,
    pub(crate) updates: Arc<Mutex<Vec<(Update, u64)>>>,
    forgotten: Arc<AtomicU64>,
}

impl Pod {
    pub(crate) async fn new(store: &LikeStore, target: &BrokerTarget, options: WatchOptions) -> Self {
        let updates = Arc::new(Mutex::new(Vec::new()));
        let forgotten = Arc::new(AtomicU64::new(0));
        let sink = Sink {
            publish: Box::new({
                let updates = updates.clone();
                move |update, gap| updates.lock().unwrap().push((update, gap))
            }),
            forget: Box::new({
                let forgotten = forgotten.clone();
                move |_| _ = forgotten.fetch_add(1, Ordering::Relaxed)
            }),
        };
        let (watch, broker) =
            Watch::start(store.clone(), target, BrokerOptions::default(), sink, options).await.unwrap();
        Self {
            store: store.clone(),
            likes: Likes::new(store.clone(), broker.clone()),
            broker,
            watch,
            updates,
            forgotten,
        }
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
    LikeStore::connect(&url, StoreOptions { max_connections: 8, ..StoreOptions::default() }).await.unwrap()
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
    let store = LikeStore::connect(&url, StoreOptions::default()).await.unwrap();
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
                let (joined, liked) = tokio::join!(b.watch.join(post), a.like(post));
                let (state, guard) = joined.unwrap();
                (post, state.version, liked.unwrap(), guard)
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
    let (_, _guard) = b.watch.join(post).await.unwrap();
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
    let (_, _guard) = b.watch.join(post).await.unwrap();
    server.kill();
    for version in 1..=20 {
        assert_eq!(a.like(post).await, Ok(Version(version)));
    }
    // Nobody new can be served now: the edge asks another pod.
    let other = new_post(&store).await;
    assert!(matches!(b.watch.join(other).await, Err(JoinError::Broker(_))));
    server.start_again();
    until("the newest arrives", || b.version(post) == Version(20)).await;
    assert!(b.watch.join(other).await.is_ok());
    assert_eq!(a.like(post).await, Ok(Version(21)));
    until("events flow again", || b.version(post) == Version(21)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_lost_inside_nats_is_sent_and_read_again() {
    let (mut server, store) = (NatsServer::start(), mariadb().await);
    let options = WatchOptions { settle: Duration::from_secs(3600), ..repairs_off() };
    let (a, b) = two_pods(&store, &over(&server), options).await;
    let (post, other) = (new_post(&store).await, new_post(&store).await);
    let (_, _guards) = (b.watch.join(post).await.unwrap(), b.watch.join(other).await.unwrap());
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
    let (_, _guard) = b.watch.join(post).await.unwrap();
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
        let (_, _guards) = (b.watch.join(post).await.unwrap(), b.watch.join(witness).await.unwrap());
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
    let (_, _guard) = b.watch.join(post).await.unwrap();
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
        joins.spawn(async move { watch.join(post).await.unwrap() });
    }
    let joined = joins.join_all().await;
    assert_eq!(b.watch.watched(), 1);
    a.like(post).await.unwrap();
    until("the event arrives once", || b.version(post) == Version(1)).await;
    assert_eq!(b.updates.lock().unwrap().len(), 1);
    let (state, guard) = b.watch.join(post).await.unwrap();
    assert_eq!(state.version, Version(1), "the known state, without a read");
    drop((joined, guard));
    until("the post is left", || b.watch.watched() == 0 && b.forgotten.load(Ordering::Relaxed) == 1).await;
    a.like(post).await.unwrap();
    assert_eq!(b.version(post), Version(1));
    assert_eq!(b.watch.join(post).await.unwrap().0.version, Version(2));

    let nobody = PostId::new(4711).unwrap();
    assert!(matches!(b.watch.join(nobody).await, Err(JoinError::UnknownPost)));
    assert_eq!(b.watch.watched(), 1);
}
