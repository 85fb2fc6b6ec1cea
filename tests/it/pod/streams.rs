//! Streams: heads, ids, resume, heart-beats, take-over after anything, and who may harm whom.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{Next, Sse, Stomp};
use super::{PATIENCE, TestPods};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_with_a_snapshot_whatever_the_client_had() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    pods.like(0, post).await;
    let mut first = Sse::open(&pods, 0, &path).await;
    for (name, value) in [
        ("cache-control", "no-store, no-transform"),
        ("x-accel-buffering", "no"),
        ("vary", "Accept, Origin"),
        ("transfer-encoding", "chunked"),
        ("x-pushlab-pod", "pod-1"),
    ] {
        assert_eq!(first.headers[name], value);
    }
    assert!(!first.headers.contains_key("content-length"));
    let event = first.next().await.unwrap();
    let retry: u64 = event.0["retry"].parse().unwrap();
    assert!((500..=1500).contains(&retry), "inside the first event: {event:?}");
    let id = event.id().to_owned();
    for last in [id.as_str(), "00000000.1", "ffffffff.99", "rubbish", "", "1;2.3"] {
        let mut again = Sse::try_open(&pods, 0, &path, &[("last-event-id", last)]).await.unwrap();
        let event = again.next().await.unwrap();
        assert_eq!((event.id(), &event.json()["snapshot"]), (id.as_str(), &true.into()), "{last:?}");
        let mut again = Sse::open(&pods, 0, &format!("{path}?lastEventId={last}")).await;
        assert_eq!(again.next().await.unwrap().id(), id);
    }
    pods.metric_becomes(0, "pushlab_resumes_total", "current", 2.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_posts_share_a_stream_and_an_id() {
    let pods = TestPods::start(&["--accel-buffering", "unset"]).await;
    let (a, b) = (pods.post().await, pods.post().await);
    pods.like(0, b).await;
    let mut sse = Sse::open(&pods, 0, &format!("/likes?post={a}&post={b}&post={a}")).await;
    assert!(!sse.headers.contains_key("x-accel-buffering"));
    let id = sse.next().await.unwrap().id().to_owned();
    assert!(id.ends_with(&format!(";{a}.0,{b}.1")), "{id}");
    assert_eq!(sse.json().await["postId"], b);
    pods.like(0, a).await;
    let event = sse.next().await.unwrap();
    assert!(event.id().ends_with(&format!(";{a}.1,{b}.1")) && event.json()["postId"] == a, "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_broken_by_heart_beats_on_both_transports() {
    let pods = TestPods::start(&["--heartbeat", "1s"]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let mut visible = Sse::open(&pods, 0, &format!("{path}?heartbeat=event")).await;
    let first = visible.next().await.unwrap();
    assert_eq!((first.0["event"].as_str(), &first.json()["pod"]), ("heartbeat", &serde_json::json!("pod-1")));
    visible.json().await;
    assert_eq!(visible.next().await.unwrap().0["event"], "heartbeat");
    let mut stomp = Stomp::socket(pods.addresses[0]).await;
    stomp.send("CONNECT\naccept-version:1.2\nhost:t\nheart-beat:0,1000\n\n\0").await;
    let connected = stomp.frame().await;
    assert_eq!(connected.header("heart-beat"), "1000,1000");
    assert!(connected.header("server").ends_with(" pod-1"), "{connected:?}");
    // The comment is one line, so it is the beginning of the next block.
    let mut hidden = Sse::open(&pods, 0, &path).await;
    hidden.next().await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    pods.like(0, post).await;
    let event = hidden.next().await.unwrap();
    assert!(event.0.contains_key("") && event.json()["likes"] == 1, "{event:?}");
    stomp.send(&format!("SUBSCRIBE\nid:1\ndestination:/topic/posts.{post}.likes\n\n\0")).await;
    stomp.frame().await;
    assert!(stomp.beats > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_breaks_the_rules_gets_an_error_and_the_end() {
    let pods = TestPods::start(&[]).await;
    for frames in [
        "SEND\ndestination:/app/posts.1.like\n\n\0",
        "CONNECT\naccept-version:9.9\nhost:t\n\n\0",
        "CONNECT\naccept-version:1.2\nhost:t\n\n\0RUBBISH\n\n\0",
        "CONNECT\naccept-version:1.2\nhost:t\n\n\0SUBSCRIBE\nid:1\ndestination:/queue/other\n\n\0",
        "CONNECT\naccept-version:1.2\nhost:t\n\n\0SUBSCRIBE\nid:1\ndestination:/topic/posts.999999.likes\n\n\0",
    ] {
        let mut stomp = Stomp::socket(pods.addresses[0]).await;
        stomp.send(frames).await;
        let mut frame = stomp.frame().await;
        if frame.command == "CONNECTED" {
            frame = stomp.frame().await;
        }
        assert_eq!(frame.command, "ERROR", "{frames:?}");
        assert!(matches!(stomp.next().await, Next::Closed(Some(_))), "{frames:?}");
    }
    pods.metric_becomes(0, "pushlab_connections", "stomp", 0.0).await;
}

/// The connection carried other requests before, and bytes follow the one that becomes a stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_may_follow_other_requests_on_its_connection() {
    let pods = TestPods::start(&["--origin", "http://good.test"]).await;
    let post = pods.post().await;
    let mut socket = tokio::net::TcpStream::connect(pods.addresses[0]).await.unwrap();
    let ask = format!(
        "GET /posts/{post} HTTP/1.1\r\nhost: t\r\n\r\n\
         POST /posts/{post}/likes HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n\
         GET /posts/{post}/likes HTTP/1.1\r\nhost: t\r\norigin: http://good.test\r\naccept: text/event-stream\r\n\r\n"
    );
    socket.write_all(ask.as_bytes()).await.unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains("\"snapshot\":true}") {
        let n = tokio::time::timeout(PATIENCE, socket.read(&mut buffer)).await.expect("more").unwrap();
        assert!(n > 0, "{text}");
        text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    assert!(text.contains("access-control-allow-origin: http://good.test"), "{text}");
    assert!(text.contains("\"likes\":1,\"version\":1,\"snapshot\":true"), "{text}");
    pods.metric_becomes(0, "pushlab_connections", "sse", 1.0).await;
    assert!(pods.metric(0, "pushlab_fallback_streams_total", "").await < 0.5, "the engine serves it");
    drop(socket);
    pods.metric_becomes(0, "pushlab_connections", "sse", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_14_viewers_that_do_not_read_harm_nobody() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut stalled = Vec::new();
    for _ in 0..50 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut socket = socket.connect(pods.addresses[0]).await.unwrap();
        let ask = format!("GET /posts/{post}/likes HTTP/1.1\r\nhost: t\r\naccept: text/event-stream\r\n\r\n");
        socket.write_all(ask.as_bytes()).await.unwrap();
        stalled.push(socket);
    }
    pods.metric_becomes(0, "pushlab_connections", "sse", 50.0).await;
    let mut sse = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    let (mut stomp, _) = Stomp::watching(pods.addresses[0], post).await;
    const LIKES: u64 = 400;
    for _ in 0..LIKES {
        pods.like(0, post).await;
    }
    assert_eq!(sse.until(LIKES).await["likes"], LIKES);
    while stomp.frame().await.json()["version"] != LIKES {}
    // One that begins to read again gets there, never backwards, over a gap that is counted exactly.
    let mut text = String::new();
    let mut buffer = [0; 4096];
    let last = format!("\"version\":{LIKES},");
    while !text.contains(&last) {
        let n = tokio::time::timeout(PATIENCE, stalled[0].read(&mut buffer)).await.expect("more").unwrap();
        text.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    let version = |t: &str| t.split([',', '}']).next().unwrap().parse::<u64>().unwrap();
    let versions: Vec<u64> = text.split("\"version\":").skip(1).map(version).collect();
    assert!(versions.is_sorted());
    let missed = LIKES + 1 - versions.len() as u64;
    assert!(missed > 100, "the kernel's buffers held {} of {LIKES}", versions.len());
    let skipped = pods.metric(0, "pushlab_skipped_versions_total", "conflated").await;
    assert!(skipped >= missed as f64, "{missed} missed, {skipped} counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_age_is_ended_cleanly() {
    let pods = TestPods::start(&["--max-age", "1s"]).await;
    let post = pods.post().await;
    let mut sse = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    sse.next().await;
    assert!(sse.next().await.unwrap().0.contains_key("retry"));
    assert!(sse.next().await.is_none());
    let mut stomp = Stomp::open(pods.addresses[0]).await;
    assert_eq!(stomp.next().await, Next::Closed(Some(1012)));
}
