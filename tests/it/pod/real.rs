//! Pods with a real MariaDB and a real NATS: across pods, and while one of the servers is away.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::client::{Sse, Stomp};
use super::{PATIENCE, TestPods};
use crate::servers::{MariaDb, NatsServer};

/// Two pods with nothing in common but the servers.
async fn two(database: &str, nats: &str) -> (TestPods, TestPods) {
    let flags = ["--database-url", database, "--nats-url", nats, "--heartbeat", "1s"];
    let other = [&flags[..], &["--pod-name", "pod-2"]].concat();
    tokio::join!(TestPods::start(&flags), TestPods::start(&other))
}

async fn problem(pods: &TestPods, post: u64) -> (u16, Value, Duration) {
    let asked = Instant::now();
    let answer = pods.http.post(pods.url(0, &format!("/posts/{post}/likes"))).send();
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("an answer in bounded time").unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap_or_default(), asked.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_crosses_real_servers_to_both_transports() {
    let nats = NatsServer::start();
    let database = MariaDb::shared().database().await;
    let (a, b) = two(&database, &nats.url()).await;
    let post = a.post().await;
    let mut sse = Sse::open(&b, 0, &format!("/posts/{post}/likes")).await;
    let (mut stomp, _) = Stomp::watching(b.addresses[0], post).await;
    sse.json().await;
    let mut liker = Stomp::open(a.addresses[0]).await;
    for version in 1..=50_u64 {
        if version % 2 == 0 {
            a.like(0, post).await;
        } else {
            liker.send(&format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:{version}\n\n\0")).await;
            assert_eq!(liker.frame().await.header("receipt-id"), version.to_string());
        }
        assert_eq!(sse.json().await["version"], version, "none is skipped");
        assert_eq!(stomp.frame().await.json()["version"], version);
    }
    assert_eq!(b.metric(0, "pushlab_skipped_versions_total", "").await.to_string(), "0");
    // A quick join on the other pod misses nothing, though the subscription is new there.
    for _ in 0..50 {
        let post = a.post().await;
        let path = format!("/posts/{post}/likes");
        let (mut sse, _) = tokio::join!(Sse::open(&b, 0, &path), a.like(0, post));
        assert_eq!(sse.until(1).await["likes"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_away_likers_are_told_and_nothing_is_counted() {
    let nats = NatsServer::start();
    let mut mariadb = MariaDb::start();
    let database = mariadb.database().await;
    let (a, b) = two(&database, &nats.url()).await;
    let post = a.post().await;
    let mut sse = Sse::open(&b, 0, &format!("/posts/{post}/likes")).await;
    let (mut stomp, _) = Stomp::watching(a.addresses[0], post).await;
    sse.json().await;
    let ready = format!("http://{}/readyz", a.admins[0]);
    let becomes_ready = async |wanted: u16| {
        let deadline = Instant::now() + PATIENCE;
        while a.http.get(&ready).send().await.unwrap().status() != wanted {
            assert!(Instant::now() < deadline, "readyz does not become {wanted}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    becomes_ready(200).await;

    // Stopped, it accepts connections and says nothing; killed, it refuses them.
    for (how, status) in [("stopped", 503), ("killed", 503)] {
        if how == "stopped" {
            mariadb.signal(Signal::SIGSTOP)
        } else {
            mariadb.kill()
        }
        becomes_ready(503).await;
        let (found, body, took) = problem(&a, post).await;
        assert_eq!((found, &body["status"]), (status, &json!(status)), "{how}: {body}");
        assert!(took < PATIENCE, "{how}: {took:?}");
        stomp.send(&format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:{how}\n\n\0")).await;
        let reply = stomp.frame().await;
        assert_eq!((reply.command.as_str(), reply.header("status")), ("MESSAGE", "503"), "{how}: {reply:?}");
        if how == "stopped" {
            mariadb.signal(Signal::SIGCONT)
        } else {
            mariadb.start_again()
        }
        becomes_ready(200).await;
    }

    // The same session, the same pod, the same stream.
    stomp.send(&format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:back\n\n\0")).await;
    assert_eq!(sse.json().await["likes"], 1, "what failed was not counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nats_is_away_likes_succeed_and_are_seen_later() {
    let mut nats = NatsServer::start();
    let database = MariaDb::shared().database().await;
    let (a, b) = two(&database, &nats.url()).await;
    let (post, quiet) = (a.post().await, a.post().await);
    let mut sse = Sse::open(&b, 0, &format!("/posts/{post}/likes")).await;
    let mut still = Sse::open(&b, 0, &format!("/posts/{quiet}/likes")).await;
    sse.json().await;
    still.json().await;
    a.like(0, post).await;
    assert_eq!(sse.json().await["likes"], 1);
    nats.kill();
    let asked = Instant::now();
    for likes in 2..=30_u64 {
        assert_eq!(a.like(0, post).await["likes"], likes);
    }
    assert!(asked.elapsed() < PATIENCE, "the broker is not on the way");
    a.like(0, quiet).await;
    // The edge goes on choosing the pods: whoever comes is served, also to a post that nobody watched.
    b.metric_becomes(0, "pushlab_broker_connected", "", 0.0).await;
    let ready = b.http.get(format!("http://{}/readyz", b.admins[0])).send().await.unwrap();
    assert_eq!(ready.status(), 200);
    assert_eq!(ready.json::<Value>().await.unwrap()["degraded"], true);
    let unwatched = a.post().await;
    let mut new = Sse::open(&b, 0, &format!("/posts/{unwatched}/likes")).await;
    assert_eq!(new.json().await["likes"], 0);
    a.like(0, unwatched).await;
    nats.start_again();
    let (seen, one, other) = tokio::join!(sse.until(30), still.until(1), new.until(1));
    assert_eq!((&seen["likes"], &one["likes"], &other["likes"]), (&json!(30), &json!(1), &json!(1)));
    b.metric_becomes(0, "pushlab_late_subscriptions_total", "", 1.0).await;
    a.like(0, unwatched).await;
    assert_eq!(new.until(2).await["prev"], 1, "as an event: the subscription is in force");
    a.like(0, post).await;
    assert_eq!(sse.until(31).await["likes"], 31);
}
