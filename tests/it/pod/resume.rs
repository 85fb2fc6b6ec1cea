//! Coming back, being too slow, and a database that was restored under the feet of the pods.

use std::time::Duration;

use pushlab::store::{LikeStore, StoreOptions};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::client::{Next, Sse, Stomp};
use super::{PATIENCE, TestPods};
use crate::servers::{MariaDb, NatsServer};

fn versions(frames: &[Value]) -> Vec<u64> {
    frames.iter().map(|frame| frame["version"].as_u64().unwrap()).collect()
}

async fn like(pods: &TestPods, post: u64, times: u64) {
    for _ in 0..times {
        pods.like(0, post).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_replay_an_sse_stream_goes_on_where_it_was() {
    let pods = TestPods::start(&["--resume", "replay", "--replay-depth", "4"]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let mut sse = Sse::open(&pods, 0, &path).await;
    sse.next().await;
    like(&pods, post, 2).await;
    sse.json().await;
    let last = sse.next().await.unwrap().id().to_owned();
    drop(sse);
    pods.metric_becomes(0, "pushlab_connections", "sse", 0.0).await;
    like(&pods, post, 3).await;
    let mut again = Sse::try_open(&pods, 0, &path, &[("last-event-id", &last)]).await.unwrap();
    let mut events = Vec::new();
    for version in 3..=5_u64 {
        let event = again.next().await.unwrap();
        assert_eq!(event.0.contains_key("retry"), version == 3, "{event:?}");
        assert!(event.id().ends_with(&format!(".{version}")), "{event:?}");
        assert!(event.json()["snapshot"].is_null() && event.json()["prev"] == version - 1, "{event:?}");
        events.push(event.json());
    }
    like(&pods, post, 1).await;
    assert_eq!((versions(&events), &again.json().await["version"]), (vec![3, 4, 5], &6.into()), "then what is new");
    // Who missed more than is kept gets the state, marked; so does who missed nothing: never silence.
    let epoch = last.split('.').next().unwrap();
    for version in [1, 6] {
        let id = format!("{epoch}.{version}");
        let mut late = Sse::try_open(&pods, 0, &path, &[("last-event-id", &id)]).await.unwrap();
        let json = late.json().await;
        assert_eq!((&json["version"], &json["snapshot"]), (&6.into(), &true.into()));
    }
    for result in ["replayed", "behind", "current", "fresh"] {
        pods.metric_becomes(0, "pushlab_resumes_total", result, 1.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_replay_each_post_of_a_stream_goes_on_where_it_was() {
    let pods = TestPods::start(&["--resume", "replay"]).await;
    let (a, b) = (pods.post().await, pods.post().await);
    let path = format!("/likes?post={a}&post={b}");
    let mut sse = Sse::open(&pods, 0, &path).await;
    sse.next().await;
    sse.next().await;
    like(&pods, a, 1).await;
    let last = sse.next().await.unwrap().id().to_owned();
    drop(sse);
    like(&pods, a, 1).await;
    like(&pods, b, 2).await;
    let mut again = Sse::try_open(&pods, 0, &path, &[("last-event-id", &last)]).await.unwrap();
    // At each moment the id says what the viewer has, so that a cut between two of them loses nothing.
    for (likes, positions) in [(2, [2, 0]), (1, [2, 1]), (2, [2, 2])] {
        let event = again.next().await.unwrap();
        let [of_a, of_b] = positions;
        assert!(event.id().ends_with(&format!(";{a}.{of_a},{b}.{of_b}")), "{event:?}");
        assert_eq!((&event.json()["likes"], &event.json()["snapshot"]), (&likes.into(), &Value::Null));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_replay_a_stomp_subscription_goes_on_where_it_was() {
    let pods = TestPods::start(&["--resume", "replay"]).await;
    let post = pods.post().await;
    let (mut first, _) = Stomp::watching(pods.addresses[0], post).await;
    like(&pods, post, 1).await;
    let last = first.frame().await.header("message-id").to_owned();
    drop(first);
    like(&pods, post, 3).await;
    for (ack, what) in [("auto", "shared bytes"), ("client", "its own")] {
        let mut again = Stomp::open(pods.addresses[0]).await;
        let subscribe = format!(
            "SUBSCRIBE\nid:x\nreceipt:r\nack:{ack}\nlast-version:{last}\ndestination:/topic/posts.{post}.likes\n\n\0"
        );
        again.send(&subscribe).await;
        assert_eq!(again.frame().await.header("receipt-id"), "r");
        for version in 2..=4_u64 {
            let frame = again.frame().await;
            assert!(frame.header("message-id").ends_with(&format!(".{post}.{version}")), "{what}: {frame:?}");
            assert!(frame.json()["snapshot"].is_null() && frame.json()["prev"] == version - 1, "{what}: {frame:?}");
        }
    }
    pods.metric_becomes(0, "pushlab_resumes_total", "stomp", 3.0).await;
    pods.metric_becomes(0, "pushlab_resumes_total", "replayed", 2.0).await;
}

/// A connection whose peer reads nothing of its own accord and whose kernel takes little.
async fn narrow(pods: &TestPods) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(pods.addresses[0]).await.unwrap()
}

async fn stalled_sse(pods: &TestPods, post: u64) -> TcpStream {
    let mut socket = narrow(pods).await;
    let ask = format!("GET /posts/{post}/likes HTTP/1.1\r\nhost: t\r\naccept: text/event-stream\r\n\r\n");
    socket.write_all(ask.as_bytes()).await.unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn with_disconnect_who_is_too_slow_is_told_and_comes_back() {
    let pods = TestPods::start(&["--mailbox", "disconnect", "--mailbox-depth", "20"]).await;
    let post = pods.post().await;
    let mut stalled = stalled_sse(&pods, post).await;
    let mut stomp = Stomp::open_over(narrow(&pods).await).await;
    stomp.send(&format!("SUBSCRIBE\nid:likes\ndestination:/topic/posts.{post}.likes\n\n\0")).await;
    let mut quick = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    quick.next().await;
    pods.metric_becomes(0, "pushlab_connections", "", 3.0).await;
    pods.metric_becomes(0, "pushlab_watched_posts", "", 1.0).await;
    const LIKES: u64 = 250;
    for version in 1..=LIKES {
        pods.like(0, post).await;
        assert_eq!(quick.json().await["version"], version, "nobody else is touched");
    }
    let mut text = Vec::new();
    tokio::time::timeout(PATIENCE, stalled.read_to_end(&mut text)).await.expect("an end").unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("retry: ") && text.ends_with("0\r\n\r\n"), "a clean end: {}", &text[text.len() - 60..]);
    let number = |t: &str| t.split([',', '}']).next().unwrap().parse::<u64>().unwrap();
    let seen: Vec<u64> = text.split("\"version\":").skip(1).map(number).collect();
    assert_eq!(seen, (0..seen.len() as u64).collect::<Vec<_>>(), "nothing is missing before the end");
    let code = loop {
        match stomp.next().await {
            Next::Frame(_) => {}
            Next::Closed(code) => break code,
        }
    };
    assert_eq!(code, Some(1013));
    drop(stomp);
    pods.metric_becomes(0, "pushlab_closed_total", "mailbox_full", 2.0).await;
    assert!(pods.metric(0, "pushlab_skipped_versions_total", "").await < 0.5, "nobody was skipped anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_drop_oldest_who_is_too_slow_loses_the_oldest_and_it_is_counted() {
    let pods = TestPods::start(&["--mailbox", "drop-oldest", "--mailbox-depth", "3"]).await;
    let post = pods.post().await;
    let mut stalled = stalled_sse(&pods, post).await;
    let mut quick = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    quick.next().await;
    pods.metric_becomes(0, "pushlab_connections", "", 2.0).await;
    const LIKES: u64 = 400;
    for version in 1..=LIKES {
        pods.like(0, post).await;
        assert_eq!(quick.json().await["version"], version);
    }
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(&format!("\"version\":{LIKES},")) {
        let n = tokio::time::timeout(PATIENCE, stalled.read(&mut buffer)).await.expect("more").unwrap();
        text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    let number = |t: &str| t.split([',', '}']).next().unwrap().parse::<u64>().unwrap();
    let seen: Vec<u64> = text.split("\"version\":").skip(1).map(number).collect();
    assert_eq!(seen[seen.len() - 3..], [LIKES - 2, LIKES - 1, LIKES], "the newest three waited");
    let missed = LIKES + 1 - seen.len() as u64;
    assert!(missed > 50, "the kernel's buffers held {} of {LIKES}", seen.len());
    pods.metric_becomes(0, "pushlab_skipped_versions_total", "dropped", missed as f64).await;
}

/// An older copy of the database is put in the place of the one that the pods know, while they run.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_sends_nobody_back_until_it_has_a_new_epoch() {
    let (nats, mariadb) = (NatsServer::start(), MariaDb::shared());
    let database = mariadb.database().await;
    let flags = ["--database-url", &database, "--nats-url", &nats.url()];
    let (a, b) = tokio::join!(TestPods::start(&flags), TestPods::start(&flags));
    let post = a.post().await;
    let path = format!("/posts/{post}/likes");
    let mut sse = Sse::open(&b, 0, &path).await;
    let (mut stomp, snapshot) = Stomp::watching(b.addresses[0], post).await;
    let old = snapshot.header("message-id").split('.').next().unwrap().to_owned();
    like(&a, post, 3).await;
    let dump = mariadb.dump(&database);
    like(&a, post, 3).await;
    let last = loop {
        let event = sse.next().await.unwrap();
        if event.json()["version"] == 6 {
            break event.id().to_owned();
        }
    };
    while stomp.frame().await.json()["version"] != 6 {}
    mariadb.restore(&database, &dump);

    // The pods notice that it cannot be, and send nothing lower, neither to those who are there nor to who comes.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while b.metric(0, "pushlab_backward_rows_total", "").await < 0.5 {
        assert!(tokio::time::Instant::now() < deadline, "nobody noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut late = Sse::try_open(&b, 0, &path, &[("last-event-id", &last)]).await.unwrap();
    assert_eq!(late.json().await["version"], 6);
    // `a` watches nothing: it knows only what its viewer says, and that the database is not so far.
    let mut ahead = Sse::try_open(&a, 0, &path, &[("last-event-id", &last)]).await.unwrap();
    a.metric_becomes(0, "pushlab_resumes_total", "ahead", 1.0).await;

    let store = LikeStore::connect(&database, StoreOptions::default()).await.unwrap();
    let new = store.new_epoch().await.unwrap().to_string();
    assert_ne!(new, old);
    for stream in [&mut sse, &mut late, &mut ahead] {
        let event = stream.next().await.unwrap();
        assert!(
            event.0.contains_key("retry") && !event.0.contains_key("data"),
            "sent back, and nothing else: {event:?}"
        );
        // What a slot without news begins with, and the last words, are blocks without data.
        while let Some(event) = stream.next().await {
            assert!(!event.0.contains_key("data"), "{event:?}");
        }
    }
    assert_eq!(stomp.next().await, Next::Closed(Some(1012)));
    for pods in [&a, &b] {
        pods.metric_becomes(0, "pushlab_epochs_total", "", 1.0).await;
        let mut again = Sse::try_open(pods, 0, &path, &[("last-event-id", &last)]).await.unwrap();
        let event = again.next().await.unwrap();
        assert_eq!((event.id(), &event.json()["likes"]), (&*format!("{new}.3"), &3.into()));
        assert_eq!(event.json()["snapshot"], true);
        pods.metric_becomes(0, "pushlab_resumes_total", "other_epoch", 1.0).await;
    }
    let (mut stomp, snapshot) = Stomp::watching(b.addresses[0], post).await;
    assert_eq!(snapshot.header("message-id"), format!("{new}.{post}.3"));
    a.like(0, post).await;
    assert_eq!(stomp.frame().await.header("message-id"), format!("{new}.{post}.4"));
    store.close(Duration::from_secs(1)).await;
}
