//! Likes: seen by every viewer on every pod; failures told to the liker; repeats counted once.

use std::time::Instant;

use futures_util::StreamExt;
use serde_json::json;
use sqlx::{Connection, MySqlConnection};

use super::client::{Next, Sse, Stomp};
use super::{PATIENCE, TestPods};
use crate::servers::MariaDb;

#[tokio::test(flavor = "multi_thread")]
async fn both_transports_see_a_like_with_the_same_body() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut sse = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    let (mut stomp, snapshot) = Stomp::watching(pods.addresses[0], post).await;
    let first = sse.json().await;
    assert_eq!(first, json!({ "postId": post, "likes": 0, "version": 0, "snapshot": true }));
    assert_eq!(snapshot.json(), first);

    let answer = pods.like(0, post).await;
    assert_eq!(answer, json!({ "postId": post, "likes": 1, "version": 1, "changed": true }));
    let event = sse.next().await.unwrap();
    let message = stomp.frame().await;
    assert_eq!(message.body, event.0["data"], "both transports carry the same bytes");
    assert_eq!(event.json()["prev"], 0);
    let (epoch, version) = event.id().split_once('.').unwrap();
    assert_eq!((epoch.len(), version), (8, "1"));
    assert_eq!(message.header("message-id"), format!("{epoch}.{post}.1"));
    assert_eq!(message.header("destination"), format!("/topic/posts.{post}.likes"));
    assert_eq!(message.header("content-length"), message.body.len().to_string());

    stomp.send(&format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:r1\n\n\0")).await;
    let mut seen = [stomp.frame().await, stomp.frame().await, stomp.frame().await].map(|f| (f.command.clone(), f));
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    let commands = seen.each_ref().map(|(command, _)| command.as_str());
    assert_eq!(commands, ["MESSAGE", "MESSAGE", "RECEIPT"], "the change, the outcome on the replies, the receipt");
    assert_eq!(sse.json().await["likes"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_on_one_pod_is_seen_on_another_without_stickiness() {
    let pods = TestPods::start(&["--pods", "3"]).await;
    let post = pods.post().await;
    let mut sse = Sse::open(&pods, 1, &format!("/posts/{post}/likes")).await;
    let (mut stomp, _) = Stomp::watching(pods.addresses[2], post).await;
    assert_eq!(sse.headers["x-pushlab-pod"], "pod-2");
    sse.json().await;
    for version in 1..=20_u64 {
        assert_eq!(pods.like(0, post).await["version"], version);
    }
    assert_eq!(sse.until(20).await["likes"], 20);
    while stomp.frame().await.json()["version"] != 20 {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_joins_while_another_pod_likes_ends_on_the_final_value() {
    let pods = TestPods::start(&["--pods", "2", "--anti-entropy", "off"]).await;
    // PUSHLAB_IT_JOINS=10000 is what the issue asks for.
    let rounds = std::env::var("PUSHLAB_IT_JOINS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    for _ in 0..rounds {
        let post = pods.post().await;
        let path = format!("/posts/{post}/likes");
        let (mut sse, _) = tokio::join!(Sse::open(&pods, 1, &path), pods.like(0, post));
        assert_eq!(sse.until(1).await["likes"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_send_is_told_on_the_replies_and_the_session_goes_on() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let (mut stomp, _) = Stomp::watching(pods.addresses[0], post).await;
    stomp.send("SEND\ndestination:/app/posts.999999.like\nreceipt:r7\ncorrelation-id:c7\n\n\0").await;
    let reply = stomp.frame().await;
    assert_eq!(reply.command, "MESSAGE", "{reply:?}");
    assert_eq!(reply.header("subscription"), "replies");
    assert_eq!((reply.header("status"), reply.header("correlation-id")), ("404", "c7"));
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert_eq!(reply.json()["type"], "/problems/unknown-post");

    stomp.send(&format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:r8\n\n\0")).await;
    let mut receipts = Vec::new();
    for _ in 0..3 {
        let frame = stomp.frame().await;
        if frame.command == "RECEIPT" {
            receipts.push(frame.header("receipt-id").to_owned());
        }
    }
    assert_eq!(receipts, ["r8"], "a failed like has no receipt");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_replies_a_failed_send_ends_the_session_with_an_error() {
    let pods = TestPods::start(&[]).await;
    let mut stomp = Stomp::open(pods.addresses[0]).await;
    stomp.send("SEND\ndestination:/app/posts.999999.like\nreceipt:r7\n\n\0").await;
    let error = stomp.frame().await;
    assert_eq!((error.command.as_str(), error.header("receipt-id")), ("ERROR", "r7"));
    assert!(matches!(stomp.next().await, Next::Closed(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn stomp_42_sends_are_done_in_order_and_the_receipt_of_disconnect_comes_last() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut stomp = Stomp::open(pods.addresses[0]).await;
    for n in 0..100 {
        stomp.send(&format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:{n}\n\n\0")).await;
    }
    stomp.send("DISCONNECT\nreceipt:bye\n\n\0").await;
    for n in 0..100 {
        assert_eq!(stomp.frame().await.header("receipt-id"), n.to_string());
    }
    assert_eq!(stomp.frame().await.header("receipt-id"), "bye");
    assert_eq!(stomp.next().await, Next::Closed(Some(1000)));
    assert_eq!(pods.like(0, post).await["likes"], 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn stomp_43_likes_already_sent_are_done_though_the_peer_vanishes() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut sse = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    let mut stomp = Stomp::open(pods.addresses[0]).await;
    for n in 0..12 {
        stomp.send(&format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:{n}\n\n\0")).await;
    }
    assert_eq!(stomp.frame().await.header("receipt-id"), "0", "so the others have arrived or will");
    drop(stomp);
    assert_eq!(sse.until(12).await["likes"], 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn stomp_33_after_an_unsubscribe_receipt_nothing_of_it_comes() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let (mut stomp, _) = Stomp::watching(pods.addresses[0], post).await;
    stomp.send("UNSUBSCRIBE\nid:likes\nreceipt:u\n\n\0").await;
    let mut frame = stomp.frame().await;
    while frame.command == "MESSAGE" {
        frame = stomp.frame().await;
    }
    assert_eq!(frame.header("receipt-id"), "u");
    pods.like(0, post).await;
    stomp.send(&format!("SUBSCRIBE\nid:again\ndestination:/topic/posts.{post}.likes\n\n\0")).await;
    let next = stomp.frame().await;
    assert_eq!((next.header("subscription"), &next.json()["likes"]), ("again", &json!(1)));
}

/// A thousand clients that reset right after sending, fifty at a time: what was committed reaches the viewers all the
/// same, and no transaction stays open.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_hang_ups_cancel_nothing_between_commit_and_viewer() {
    let url = MariaDb::shared().database().await;
    let pods = TestPods::start(&["--pods", "2", "--anti-entropy", "off", "--database-url", &url]).await;
    let post = pods.post().await;
    let mut sse = Sse::open(&pods, 1, &format!("/posts/{post}/likes")).await;
    let address = pods.addresses[0];
    let clients = futures_util::stream::iter(0..1_000_u64).for_each_concurrent(50, |round| async move {
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        socket.set_zero_linger().unwrap();
        let ask = format!("POST /posts/{post}/likes HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n");
        socket.writable().await.unwrap();
        socket.try_write(ask.as_bytes()).unwrap();
        // Some are gone before the request is read, some while it waits for the lock, some later.
        tokio::time::sleep(std::time::Duration::from_micros(round % 100 * 200)).await;
        drop(socket);
    });
    clients.await;
    // The last one's answer names how many of them counted; it waited for the row like they did.
    let last = pods.like(0, post).await["version"].as_u64().unwrap();
    assert!(last > 100, "only {last} of a thousand came through");
    let settled = sse.until(last).await;
    assert_eq!(settled["likes"], settled["version"]);
    none_open(&url).await;
    // Whatever was still on its way has been published too: the stream ends where the database does.
    let state = pods.http.get(pods.url(0, &format!("/posts/{post}/likes"))).send().await.unwrap();
    let state: serde_json::Value = state.json().await.unwrap();
    assert_eq!(state["likes"], state["version"], "each counted once: {state}");
    if state["version"].as_u64() > Some(last) {
        assert_eq!(sse.until(state["version"].as_u64().unwrap()).await["likes"], state["likes"]);
    }
}

/// Waits until no transaction is open in this database, by the server's own account of it.
async fn none_open(url: &str) {
    let name = url.rsplit('/').next().unwrap();
    let open = "select count(*) from information_schema.innodb_trx t join information_schema.processlist p \
        on p.id = t.trx_mysql_thread_id where p.db = ?";
    let mut watcher = MySqlConnection::connect(url).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (left,): (i64,) = sqlx::query_as(open).bind(name).fetch_one(&mut watcher).await.unwrap();
        if left == 0 {
            return;
        }
        assert!(Instant::now() < deadline, "{left} transactions stay open");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
