//! STOMP over real WebSockets: what only shows on the wire (docs/conformance.md has the list).

use std::time::Duration;

use pushlab::proto::ws::{Event, Opcode, client_frame};
use tokio::io::AsyncWriteExt;

use super::TestPods;
use super::client::Stomp;
use super::raw::Raw;

const CONNECT: &[u8] = b"CONNECT\naccept-version:1.2\n\n\0";

#[tokio::test(flavor = "multi_thread")]
async fn stomp_01_frames_are_split_over_messages_and_joined_in_one_text_or_binary() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let frames = format!(
        "\n\nCONNECT\r\naccept-version:1.2\r\n\r\n\0\n\
         SUBSCRIBE\nid:q\ndestination:/user/queue/replies\nreceipt:1\n\n\0\r\n\
         SEND\ndestination:/app/posts.{post}.like\nreceipt:2\ncontent-length:3\n\n\0\u{1}\0\0DISCONNECT\nreceipt:3\n\n\0"
    );
    let whole = |opcode| vec![client_frame(opcode, frames.as_bytes(), [7; 4])];
    let bytewise = frames.as_bytes().chunks(1).enumerate();
    let mixed = bytewise.map(|(n, byte)| client_frame([Opcode::Text, Opcode::Binary][n % 2], byte, [n as u8; 4]));
    for messages in [whole(Opcode::Text), whole(Opcode::Binary), mixed.collect()] {
        let mut raw = Raw::open(pods.addresses[0], "/stomp", b"").await;
        raw.socket.write_all(&messages.concat()).await.unwrap();
        assert!(raw.text().await.starts_with("CONNECTED\n"));
        for expected in ["RECEIPT\nreceipt-id:1\n", "MESSAGE\n", "RECEIPT\nreceipt-id:2\n", "RECEIPT\nreceipt-id:3\n"] {
            let text = raw.text().await;
            assert!(text.starts_with(expected), "{text}");
        }
        assert_eq!(raw.closed().await, Some(1000));
    }
    assert_eq!(pods.like(0, post).await["likes"], 4);
}

/// Two periods of a second: one session is silent, the other sends a byte of a frame now and then.
#[tokio::test(flavor = "multi_thread")]
async fn stomp_27_any_byte_is_a_sign_of_life_and_silence_ends_within_two_periods_and_a_second() {
    let pods = TestPods::start(&["--heartbeat", "1s"]).await;
    let connect = b"CONNECT\naccept-version:1.2\nheart-beat:1000,0\n\n\0";
    let (mut silent, mut slow) = (
        Raw::open(pods.addresses[0], "/stomp", &client_frame(Opcode::Text, connect, [1; 4])).await,
        Raw::open(pods.addresses[0], "/stomp", &client_frame(Opcode::Text, connect, [1; 4])).await,
    );
    assert!(silent.text().await.contains("heart-beat:1000,1000"));
    assert!(slow.text().await.starts_with("CONNECTED"));
    // One byte at a time of one WebSocket frame: no message is complete before the last.
    let frame = client_frame(Opcode::Text, b"DISCONNECT\nreceipt:r\n\n\0", [8; 4]);
    let (last, first) = frame.split_last().unwrap();
    let trickle = async {
        for byte in first.chunks(4) {
            slow.socket.write_all(byte).await.unwrap();
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        slow.socket.write_all(&[*last]).await.unwrap();
        assert_eq!(slow.text().await, "RECEIPT\nreceipt-id:r\n\n\0");
    };
    let end = async {
        let error = silent.text().await;
        assert!(error.starts_with("ERROR\nmessage:no heart-beat arrived in time"), "{error}");
        assert_eq!(silent.closed().await, Some(1008));
    };
    tokio::join!(trickle, end);
    pods.metric_becomes(0, "pushlab_connections", "stomp", 0.0).await;
    pods.metric_becomes(0, "pushlab_timeouts_total", "kind=\"heartbeat\"", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stomp_21_connected_does_not_tell_the_exact_version() {
    let pods = TestPods::start(&[]).await;
    let mut raw = Raw::open(pods.addresses[0], "/stomp", &client_frame(Opcode::Text, CONNECT, [1; 4])).await;
    let connected = raw.text().await;
    let server = connected.lines().find_map(|line| line.strip_prefix("server:")).unwrap();
    assert!(server.starts_with("pushlab") && !server.contains(env!("CARGO_PKG_VERSION")), "{server}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stomp_44_an_error_can_be_read_by_a_client_that_is_still_sending() {
    let pods = TestPods::start(&[]).await;
    let mut raw = Raw::open(pods.addresses[0], "/stomp", &client_frame(Opcode::Text, CONNECT, [1; 4])).await;
    assert!(raw.text().await.starts_with("CONNECTED"));
    raw.send(Opcode::Text, b"NOSUCH\nreceipt:r\n\n\0").await;
    // Unread input at the moment of the close would turn it into a reset, and the ERROR would be lost.
    let more = client_frame(Opcode::Text, &b"SEND\ndestination:/app/posts.1.like\n\n\0".repeat(100), [2; 4]);
    for _ in 0..20 {
        if raw.socket.write_all(&more).await.is_err() {
            break;
        }
    }
    let error = raw.text().await;
    assert!(error.starts_with("ERROR\nmessage:unknown command\nreceipt-id:r\n"), "{error}");
    assert_eq!(raw.next().await, Some(Event::Close { code: Some(1002), reason: "see the ERROR frame".into() }));
    assert!(raw.next().await.is_none(), "then the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn stomp_45_errors_tell_no_internals() {
    let pods = TestPods::start(&[]).await;
    let mut stomp = Stomp::open(pods.addresses[0]).await;
    stomp.send("SUBSCRIBE\nid:1\ndestination:/topic/posts.999999.likes\nreceipt:r\n\n\0").await;
    let error = stomp.frame().await;
    assert_eq!((error.command.as_str(), error.header("receipt-id")), ("ERROR", "r"));
    assert_eq!(error.header("content-type"), "application/problem+json");
    assert_eq!(error.header("content-length"), error.body.len().to_string());
    assert_eq!(error.json()["type"], "/problems/unknown-post");
    let body = error.body.to_lowercase();
    assert!(!["sql", "select", "nats", ".rs"].iter().any(|word| body.contains(word)), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stomp_47_rapid_connects_and_disconnects_leave_nothing_behind() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let subscribe = format!("SUBSCRIBE\nid:1\ndestination:/topic/posts.{post}.likes\n\n\0");
    let hello = [CONNECT, subscribe.as_bytes()].concat();
    for _ in 0..10 {
        let visits = (0..20).map(|n| {
            let (address, frame) = (pods.addresses[0], client_frame(Opcode::Text, &hello, [n; 4]));
            async move {
                let mut raw = Raw::open(address, "/stomp", &frame).await;
                match n % 4 {
                    0 => raw.socket.set_zero_linger().unwrap(),
                    1 => assert!(raw.text().await.starts_with("CONNECTED")),
                    2 => raw.send(Opcode::Text, b"DISCONNECT\n\n\0").await,
                    _ => {}
                }
            }
        });
        futures_util::future::join_all(visits).await;
    }
    pods.metric_becomes(0, "pushlab_connections", "stomp", 0.0).await;
    pods.metric_becomes(0, "pushlab_watched_posts", "", 0.0).await;
}
