//! The broker against a real NATS server: in force on return, never in the way of a like, back after an outage.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pushlab::broker::{Broker, BrokerOptions, BrokerTarget, LocalBus};
use pushlab::domain::{LikesChanged, PostId, Version};

use crate::pod_process::PATIENCE;
use crate::proxy::Proxy;
use crate::servers::{NatsServer, until};

/// One pod's end of the broker, and what it received.
struct End {
    broker: Broker,
    received: Arc<Mutex<Vec<LikesChanged>>>,
}

impl End {
    async fn connect(target: &BrokerTarget, options: BrokerOptions) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let on_event = {
            let received = received.clone();
            Arc::new(move |event, _| received.lock().unwrap().push(event))
        };
        Self { broker: Broker::connect(target, options, on_event).await.unwrap(), received }
    }

    fn versions(&self) -> Vec<u64> {
        self.received.lock().unwrap().iter().map(|e| e.version.0).collect()
    }
}

fn target(server: &NatsServer) -> BrokerTarget {
    BrokerTarget::Nats { url: server.url(), name: "test".into() }
}

fn post(id: u64) -> PostId {
    PostId::new(id).unwrap()
}

fn event(post_id: PostId, version: u64) -> LikesChanged {
    LikesChanged { post_id, likes: version, version: Version(version), prev: Version(version - 1), committed_at: 1 }
}

async fn subscribed_on_return(targets: [BrokerTarget; 2]) {
    let (a, b) = (
        End::connect(&targets[0], BrokerOptions::default()).await,
        End::connect(&targets[1], BrokerOptions::default()).await,
    );
    for n in 1..=200 {
        b.broker.subscribe(post(n)).await.unwrap();
        a.broker.publish(event(post(n), n));
    }
    until("all events arrive", || b.versions().len() == 200).await;
    assert!(a.versions().is_empty());
    b.broker.unsubscribe(post(1));
    b.broker.subscribe(post(300)).await.unwrap();
    a.broker.publish(event(post(1), 1));
    a.broker.publish(event(post(300), 300));
    until("the last one arrives", || b.versions().last() == Some(&300)).await;
    assert_eq!(b.versions().len(), 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_in_force_on_return_over_nats() {
    let server = NatsServer::start();
    subscribed_on_return([target(&server), target(&server)]).await;
}

#[tokio::test]
async fn a_subscription_is_in_force_on_return_in_process() {
    let bus = LocalBus::default();
    subscribed_on_return([BrokerTarget::Local(bus.clone()), BrokerTarget::Local(bus)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_never_blocks_publishing_and_ends_by_itself() {
    let mut server = NatsServer::start();
    let options = BrokerOptions { queue: 100, overflow: 10, ..BrokerOptions::default() };
    let (a, b) = (End::connect(&target(&server), options.clone()).await, End::connect(&target(&server), options).await);
    for n in 1..=12 {
        b.broker.subscribe(post(n)).await.unwrap();
    }
    server.kill();
    until("the loss is noticed", || !b.broker.state().borrow().connected && !a.broker.state().borrow().connected).await;

    let started = Instant::now();
    for version in 1..=1_000 {
        for n in 1..=10 {
            a.broker.publish(event(post(n), version));
        }
    }
    assert!(started.elapsed() < PATIENCE, "publishing took {:?}", started.elapsed());
    let counters = a.broker.counters();
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert!(read(&counters.merged) > 0, "{counters:?}");
    // A subscription cannot be in force now: an error in bounded time.
    assert!(b.broker.subscribe(post(13)).await.is_err());
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());

    server.start_again();
    for end in [&a, &b] {
        end.broker.state().wait_for(|state| state.connected && state.missed > 0).await.unwrap();
    }
    a.broker.publish(event(post(1), 1_001));
    until("events flow again", || b.versions().contains(&1_001)).await;
    assert_eq!(read(&b.broker.counters().reconnects), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_cut_off_alone_sends_the_newest_when_it_is_back() {
    let server = NatsServer::start();
    let proxy = Proxy::start(server.port()).await;
    let through = BrokerTarget::Nats { url: proxy.instead_of(&format!("{}/", server.url())), name: "test".into() };
    let ping_interval = Duration::from_millis(200);
    let options = BrokerOptions { queue: 100, overflow: 10, ping_interval, ..BrokerOptions::default() };
    let (a, b) = (End::connect(&through, options.clone()).await, End::connect(&target(&server), options).await);
    for n in 1..=10 {
        b.broker.subscribe(post(n)).await.unwrap();
    }
    // What is sent from now on goes into a connection that nothing leaves, and nobody has said so.
    proxy.freeze();
    for version in 1..=1_000 {
        for n in 1..=10 {
            a.broker.publish(event(post(n), version));
        }
    }
    until("the newest of all ten arrive", || {
        let received = b.received.lock().unwrap();
        (1..=10).all(|n| received.iter().any(|e| e.post_id == post(n) && e.version == Version(1_000)))
    })
    .await;
    let reconnects = |end: &End| end.broker.counters().reconnects.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((reconnects(&a), reconnects(&b)), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_loses_nothing() {
    let server = NatsServer::start();
    let (a, b) = (
        End::connect(&target(&server), BrokerOptions::default()).await,
        End::connect(&target(&server), BrokerOptions::default()).await,
    );
    b.broker.subscribe(post(1)).await.unwrap();
    server.signal(Signal::SIGSTOP);
    for version in 1..=500 {
        a.broker.publish(event(post(1), version));
    }
    server.signal(Signal::SIGCONT);
    until("all arrive", || b.versions().len() >= 500).await;
    assert_eq!(b.versions(), (1..=500).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_event_of_ours_is_counted_and_goes_nowhere() {
    let server = NatsServer::start();
    let end = End::connect(&target(&server), BrokerOptions::default()).await;
    end.broker.subscribe(post(1)).await.unwrap();
    let stranger = async_nats::connect(server.url()).await.unwrap();
    let other_post = serde_json::to_vec(&event(post(2), 1)).unwrap();
    let backwards = serde_json::to_vec(&LikesChanged { prev: Version(5), ..event(post(1), 1) }).unwrap();
    for payload in [b"".to_vec(), b"{".to_vec(), other_post, backwards] {
        stranger.publish("likes.1", payload.into()).await.unwrap();
    }
    stranger.publish("likes.1", serde_json::to_vec(&event(post(1), 7)).unwrap().into()).await.unwrap();
    until("the good one arrives", || end.versions() == [7]).await;
    assert_eq!(end.broker.counters().malformed.load(std::sync::atomic::Ordering::Relaxed), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_sends_what_waits_and_a_missing_server_is_a_clear_error() {
    let server = NatsServer::start();
    let (a, b) = (
        End::connect(&target(&server), BrokerOptions::default()).await,
        End::connect(&target(&server), BrokerOptions::default()).await,
    );
    b.broker.subscribe(post(1)).await.unwrap();
    for version in 1..=1_000 {
        a.broker.publish(event(post(1), version));
    }
    a.broker.drain(Duration::from_secs(5)).await;
    until("all arrive", || b.versions().len() == 1_000).await;

    let nowhere = BrokerTarget::Nats { url: "nats://me:secret@127.0.0.1:1".into(), name: "test".into() };
    let options = BrokerOptions { connect_timeout: Duration::from_millis(300), ..BrokerOptions::default() };
    let error = Broker::connect(&nowhere, options, Arc::new(|_, _| ())).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && error.contains("refused") && !error.contains("secret"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_does_not_take_its_messages_loses_some_and_is_told() {
    let server = NatsServer::start();
    let sender = End::connect(&target(&server), BrokerOptions::default()).await;
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (held, received) = (Mutex::new(held), Arc::new(Mutex::new(Vec::new())));
    let on_event = {
        let received = received.clone();
        Arc::new(move |event: LikesChanged, _| {
            let _ = held.lock().unwrap().recv(); // until `release` is dropped
            received.lock().unwrap().push(event.version.0);
        })
    };
    let options = BrokerOptions { backlog: 4, ..BrokerOptions::default() };
    let slow = Broker::connect(&target(&server), options, on_event).await.unwrap();
    slow.subscribe(post(1)).await.unwrap();
    for version in 1..=100 {
        sender.broker.publish(event(post(1), version));
    }
    let told = || slow.counters().slow.load(std::sync::atomic::Ordering::Relaxed);
    until("it is told", || told() > 0).await;
    // Whoever watches posts reads them again then.
    slow.state().wait_for(|state| state.missed > 0).await.unwrap();
    drop(release);
    until("what was kept arrives", || received.lock().unwrap().len() >= 4).await;
    sender.broker.publish(event(post(1), 101));
    until("events flow again", || received.lock().unwrap().last() == Some(&101)).await;
    println!("{} of 101 events arrived, {} times too slow", received.lock().unwrap().len(), told());
    assert!(received.lock().unwrap().len() < 101);
}
