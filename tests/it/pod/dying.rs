//! Pods that die at a named place once a like is committed: before its answer, and in the middle of an update.

use std::os::unix::process::ExitStatusExt;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Next, Sse, Stomp};
use super::{PATIENCE, TestPods};
use crate::pod_process::PodProcess;
use crate::servers::{MariaDb, NatsServer};

/// A pod that dies there and one that does not, with one broker and one database.
async fn two(fail_at: &str) -> (PodProcess, PodProcess, NatsServer) {
    let nats = NatsServer::start();
    let (database, url) = (MariaDb::shared().database().await, nats.url());
    let flags = ["--database-url", &database, "--nats-url", &url];
    let sound = PodProcess::start(&flags);
    (PodProcess::start(&[&flags[..], &["--fail-at", fail_at]].concat()), sound, nats)
}

async fn was_killed(pod: &mut PodProcess) {
    assert_eq!(pod.ended().await.signal(), Some(9), "{}", pod.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_dies_before_its_receipt_has_counted_once_and_told_everybody() {
    let (mut dying, sound, _nats) = two("before-answer:kill").await;
    let pods = TestPods::of(&sound);
    let post = pods.post().await;
    let mut viewer = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    assert_eq!(viewer.json().await["version"], 0);
    let like = format!("SEND\ndestination:/app/posts.{post}.like\nidempotency-key:k\nreceipt:r\n\n\0");
    let mut session = Stomp::open(dying.listen).await;
    session.send(&like).await;
    assert_eq!(session.next().await, Next::Closed(None), "no RECEIPT");
    was_killed(&mut dying).await;
    assert_eq!(viewer.json().await["version"], 1, "the viewers of other pods know");
    // The client comes back elsewhere and, having no RECEIPT, asks again.
    let (mut again, snapshot) = Stomp::watching(sound.listen, post).await;
    assert_eq!(snapshot.json()["likes"], 1);
    again.send(&like).await;
    let (mut receipt, mut outcome) = (None, None);
    while receipt.is_none() || outcome.is_none() {
        let frame = again.frame().await;
        match frame.command.as_str() {
            "RECEIPT" => receipt = Some(frame.header("receipt-id").to_owned()),
            _ => outcome = Some(frame.json()),
        }
    }
    let outcome = outcome.unwrap();
    assert_eq!((receipt.as_deref(), &outcome["likes"], &outcome["version"]), (Some("r"), &1.into(), &1.into()));
    let state = pods.http.get(pods.url(0, &format!("/posts/{post}/likes"))).send().await.unwrap();
    assert_eq!(state.json::<Value>().await.unwrap()["likes"], 1, "it counted once");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_an_update_is_none() {
    let (mut dying, sound, _nats) = two("mid-write:kill").await;
    let pods = TestPods::of(&sound);
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    // One viewer: the pod dies at the first.
    let mut socket = TcpStream::connect(dying.listen).await.unwrap();
    let ask = format!("GET {path} HTTP/1.1\r\nhost: t\r\naccept: text/event-stream\r\n\r\n");
    socket.write_all(ask.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(11).any(|window| window == b"\"version\":0") {
        assert!(timeout(PATIENCE, socket.read_buf(&mut seen)).await.expect("a snapshot").unwrap() > 0);
    }
    pods.like(0, post).await;
    while let Ok(1..) = timeout(PATIENCE, socket.read_buf(&mut seen)).await.expect("its end") {}
    was_killed(&mut dying).await;
    let text = String::from_utf8(seen).unwrap();
    let (whole, half) = text.rsplit_once("\n\n").unwrap();
    assert!(half.contains("id:") && !half.contains("\"version\":1,"), "cut in the middle: {text}");
    assert!(!whole.contains("\"version\":1,"), "{text}");
    // EventSource drops what no blank line ended, and comes back with the id of the last whole event.
    let id = whole.lines().filter_map(|line| line.strip_prefix("id:")).next_back().unwrap().trim();
    let mut back = Sse::try_open(&pods, 0, &path, &[("last-event-id", id)]).await.unwrap();
    assert_eq!(back.until(1).await["likes"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_message_is_none() {
    let (mut dying, sound, _nats) = two("mid-write:kill").await;
    let pods = TestPods::of(&sound);
    let post = pods.post().await;
    let (mut session, snapshot) = Stomp::watching(dying.listen, post).await;
    assert_eq!(snapshot.json()["version"], 0);
    pods.like(0, post).await;
    assert_eq!(session.next().await, Next::Closed(None), "half a frame, then the end");
    was_killed(&mut dying).await;
    assert_eq!(Stomp::watching(sound.listen, post).await.1.json()["version"], 1);
}
