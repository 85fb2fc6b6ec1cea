//! `--fanout relay`: a broker connection per STOMP session.

use pushlab::domain::PostId;
use pushlab::store::{LikeRequest, LikeStore, StoreOptions};

use super::client::{Sse, Stomp};
use super::{PATIENCE, TestPods};
use crate::servers::{MariaDb, NatsServer};

async fn two(database: &str, nats: &str) -> (TestPods, TestPods) {
    let flags = ["--database-url", database, "--nats-url", nats, "--fanout", "relay", "--anti-entropy", "off"];
    tokio::join!(TestPods::start(&flags), TestPods::start(&flags))
}

/// Reads on until this version; versions only rise.
async fn until(session: &mut Stomp, version: u64) -> u64 {
    let mut last = 0;
    while last < version {
        let next = session.frame().await.json()["version"].as_u64().unwrap();
        assert!(next > last, "{next} after {last}");
        last = next;
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn each_session_hears_the_broker_itself_and_a_restart_of_it_heals() {
    let mut nats = NatsServer::start();
    let database = MariaDb::shared().database().await;
    let (a, b) = two(&database, &nats.url()).await;
    let (post, quiet) = (a.post().await, a.post().await);
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(Stomp::watching(b.addresses[0], post).await.0);
    }
    let (mut still, _) = Stomp::watching(b.addresses[0], quiet).await;
    let mut sse = Sse::open(&b, 0, &format!("/posts/{post}/likes")).await;
    sse.json().await;
    b.metric_becomes(0, "pushlab_relay_connections", "", 6.0).await;
    // The hub's own connection watches only what the SSE stream shows.
    b.metric_becomes(0, "pushlab_watched_posts", "", 1.0).await;
    for version in 1..=20_u64 {
        a.like(0, post).await;
        for session in &mut sessions {
            let frame = session.frame().await;
            assert_eq!(
                (frame.json()["version"].as_u64(), frame.json()["prev"].as_u64()),
                (Some(version), Some(version - 1))
            );
        }
    }
    assert_eq!(sse.until(20).await["likes"], 20);

    nats.kill();
    for _ in 0..10 {
        a.like(0, post).await;
    }
    // Committed, and never published by anybody: only a read after the reconnect finds it.
    let store = LikeStore::connect(&database, StoreOptions::default()).await.unwrap();
    store.apply(&LikeRequest::anonymous_like(PostId::new(quiet).unwrap())).await.unwrap();
    nats.start_again();
    for session in &mut sessions {
        assert_eq!(until(session, 30).await, 30);
    }
    assert_eq!(until(&mut still, 1).await, 1, "its only change came while nobody could be told");
    a.like(0, post).await;
    for session in &mut sessions {
        assert_eq!(session.frame().await.json()["prev"], 30, "events again");
    }
    drop((sessions, still));
    b.metric_becomes(0, "pushlab_relay_connections", "", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quick_join_misses_nothing_and_what_is_unsubscribed_comes_no_more() {
    let nats = NatsServer::start();
    let database = MariaDb::shared().database().await;
    let (a, b) = two(&database, &nats.url()).await;
    for _ in 0..30 {
        let post = a.post().await;
        let ((mut session, snapshot), _) = tokio::join!(Stomp::watching(b.addresses[0], post), a.like(0, post));
        let seen = snapshot.json()["version"].as_u64().unwrap();
        assert_eq!(seen.max(if seen == 1 { 1 } else { until(&mut session, 1).await }), 1);
    }
    let (one, two) = (a.post().await, a.post().await);
    let (mut session, _) = Stomp::watching(b.addresses[0], one).await;
    session
        .send(&format!("SUBSCRIBE\nid:two\nlast-version:00000000.5\ndestination:/topic/posts.{two}.likes\n\n\0"))
        .await;
    assert_eq!(session.frame().await.json()["snapshot"], true, "another epoch");
    session.send("UNSUBSCRIBE\nid:likes\nreceipt:r\n\n\0").await;
    assert_eq!(session.frame().await.header("receipt-id"), "r");
    a.like(0, one).await;
    a.like(0, two).await;
    let frame = session.frame().await;
    assert_eq!((frame.header("subscription"), &frame.json()["likes"]), ("two", &1.into()));
    session.send("SUBSCRIBE\nid:again\ndestination:/topic/posts.999999.likes\n\n\0").await;
    assert_eq!(session.frame().await.command, "ERROR");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_broker_a_session_is_refused_and_no_other() {
    let mut nats = NatsServer::start();
    let database = MariaDb::shared().database().await;
    let (_a, b) = two(&database, &nats.url()).await;
    let post = b.post().await;
    nats.kill();
    b.metric_becomes(0, "pushlab_broker_connected", "", 0.0).await;
    let mut session = Stomp::open(b.addresses[0]).await;
    session.send(&format!("SUBSCRIBE\nid:likes\ndestination:/topic/posts.{post}.likes\n\n\0")).await;
    let error = session.frame().await;
    assert!(error.command == "ERROR" && error.body.contains("broker"), "{error:?}");
    b.metric_becomes(0, "pushlab_relay_failures_total", "", 1.0).await;
    let mut sse = Sse::open(&b, 0, &format!("/posts/{post}/likes")).await;
    assert_eq!(sse.json().await["likes"], 0, "the hub serves");
    nats.start_again();
    tokio::time::timeout(PATIENCE, Stomp::watching(b.addresses[0], post)).await.expect("served again");
}
