//! The WebSocket handshake and the frames no client library sends (docs/conformance.md has the list).

use std::time::Duration;

use pushlab::proto::ws::{Event, Opcode, client_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::raw::{HANDSHAKE, Raw, request, status};
use super::{PATIENCE, TestPods};
use crate::proxy::Proxy;

/// The handshake with one header replaced, or left out.
fn with<'a>(name: &'a str, value: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let others = HANDSHAKE.into_iter().filter(|(other, _)| *other != name);
    others.chain(value.map(|value| (name, value))).collect()
}

async fn head(pods: &TestPods, line: &str, headers: &[(&str, &str)]) -> String {
    request(pods.addresses[0], line, headers, b"").await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_01_a_missing_or_wrong_key_is_400() {
    let pods = TestPods::start(&[]).await;
    for key in [None, Some(""), Some("c2hvcnQ="), Some("no base64!"), Some("dGhlIHNhbXBsZSBub25jZQ==AAAA")] {
        let head = head(&pods, "GET /stomp", &with("sec-websocket-key", key)).await;
        assert_eq!(status(&head), 400, "{key:?}: {head}");
        assert!(head.contains("application/problem+json"), "{head}");
    }
    for missing in ["connection", "upgrade"] {
        assert_eq!(status(&head(&pods, "GET /stomp", &with(missing, None)).await), 400, "{missing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_02_another_version_is_426_and_the_answer_names_13() {
    let pods = TestPods::start(&[]).await;
    for version in ["12", "8", "0", "x"] {
        let head = head(&pods, "GET /stomp", &with("sec-websocket-version", Some(version))).await;
        assert_eq!(status(&head), 426, "{version}: {head}");
        assert!(head.contains("sec-websocket-version: 13"), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_03_only_get_upgrades_and_only_known_paths() {
    let pods = TestPods::start(&[]).await;
    for method in ["POST", "PUT", "DELETE"] {
        let head = head(&pods, &format!("{method} /stomp"), &HANDSHAKE).await;
        assert_eq!(status(&head), 405, "{head}");
        assert!(head.contains("allow: GET"), "{head}");
    }
    for path in ["/nothing", "/stomp/", "/stomp/info", "/ws/echo"] {
        assert_eq!(status(&head(&pods, &format!("GET {path}"), &HANDSHAKE).await), 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_04_the_newest_subprotocol_offered_is_chosen() {
    let pods = TestPods::start(&[]).await;
    for (offer, chosen) in [
        ("v12.stomp, v11.stomp", Some("v12.stomp")),
        ("v10.stomp, v11.stomp", Some("v11.stomp")),
        ("mqtt, v10.stomp", Some("v10.stomp")),
        ("mqtt", None),
        ("V12.STOMP", None),
    ] {
        let headers: Vec<_> = HANDSHAKE.into_iter().chain([("sec-websocket-protocol", offer)]).collect();
        let head = head(&pods, "GET /stomp", &headers).await;
        match chosen {
            Some(chosen) => {
                assert_eq!(status(&head), 101, "{offer}: {head}");
                assert!(head.contains(&format!("sec-websocket-protocol: {chosen}\r\n")), "{offer}: {head}");
            }
            None => assert_eq!(status(&head), 400, "{offer}: {head}"),
        }
    }
    let head = head(&pods, "GET /stomp", &HANDSHAKE).await;
    assert!(status(&head) == 101 && !head.contains("sec-websocket-protocol"), "none offered: {head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_05_the_subprotocol_bounds_the_stomp_version() {
    let pods = TestPods::start(&[]).await;
    for (subprotocol, accepted, expected) in [
        ("v11.stomp", "1.0,1.1,1.2", "CONNECTED\nversion:1.1\n"),
        ("v12.stomp", "1.0,1.1", "CONNECTED\nversion:1.1\n"),
        ("v10.stomp", "1.1,1.2", "ERROR\nversion:1.0\n"),
    ] {
        let headers: Vec<_> = HANDSHAKE.into_iter().chain([("sec-websocket-protocol", subprotocol)]).collect();
        let connect = format!("CONNECT\naccept-version:{accepted}\nhost:h\n\n\0");
        let frame = client_frame(Opcode::Text, connect.as_bytes(), [5; 4]);
        let (mut socket, head, mut read) = request(pods.addresses[0], "GET /stomp", &headers, &frame).await;
        assert_eq!(status(&head), 101, "{head}");
        while !String::from_utf8_lossy(&read).contains(expected) {
            let n = timeout(PATIENCE, socket.read_buf(&mut read)).await.expect("an answer").unwrap();
            assert!(n > 0, "{subprotocol}: {}", String::from_utf8_lossy(&read));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_06_a_foreign_origin_is_403_before_the_upgrade() {
    let pods = TestPods::start(&["--origin", "http://good.test"]).await;
    for (origin, expected) in [
        (Some("http://evil.test"), 403),
        (Some("null"), 403),
        (Some("http://good.test.evil.test"), 403),
        (Some("http://good.test"), 101),
        (None, 101),
    ] {
        let headers: Vec<_> = HANDSHAKE.into_iter().chain(origin.map(|origin| ("origin", origin))).collect();
        assert_eq!(status(&head(&pods, "GET /stomp", &headers).await), expected, "{origin:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_07_bytes_after_the_handshake_are_frames_and_never_requests() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let smuggled = format!("POST /posts/{post}/likes HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n");
    let mut raw = Raw::open(pods.addresses[0], "/stomp", smuggled.as_bytes()).await;
    assert_eq!(raw.closed().await, Some(1002));
    assert!(raw.next().await.is_none(), "no second answer");
    // Frames that are right may come early.
    let connect = client_frame(Opcode::Text, b"CONNECT\naccept-version:1.2\n\n\0", [9; 4]);
    let mut early = Raw::open(pods.addresses[0], "/stomp", &connect).await;
    assert!(early.text().await.starts_with("CONNECTED"));
    // After a refused handshake the connection still speaks HTTP.
    let bad = with("sec-websocket-key", Some("x"));
    let (mut socket, head, mut read) = request(pods.addresses[0], "GET /stomp", &bad, smuggled.as_bytes()).await;
    assert_eq!(status(&head), 400);
    while !String::from_utf8_lossy(&read).contains("\"changed\":true") {
        let n = timeout(PATIENCE, socket.read_buf(&mut read)).await.expect("the second answer").unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&read));
    }
    assert_eq!(pods.like(0, post).await["likes"], 2, "the one that was smuggled did not count");
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_08_a_thousand_tiny_fragments_end_in_1008() {
    let pods = TestPods::start(&[]).await;
    let mut raw = Raw::open(pods.addresses[0], "/stomp", b"").await;
    let mut wire = Vec::new();
    for n in 0..1000 {
        let mut frame = client_frame(if n == 0 { Opcode::Text } else { Opcode::Continuation }, b"x", [n as u8; 4]);
        frame[0] &= 0x7f;
        wire.extend_from_slice(&frame);
    }
    raw.socket.write_all(&wire).await.unwrap();
    assert_eq!(raw.closed().await, Some(1008));
    // And what is announced as too big ends before it comes.
    let mut raw = Raw::open(pods.addresses[0], "/stomp", b"").await;
    raw.socket.write_all(&[0x82, 0xff, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4]).await.unwrap();
    assert_eq!(raw.closed().await, Some(1009));
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_09_a_ping_flood_is_answered_no_faster_than_it_is_read() {
    let pods = TestPods::start(&[]).await;
    let mut raw = Raw::open(pods.addresses[0], "/stomp", b"").await;
    let ping = client_frame(Opcode::Ping, &[b'p'; 125], [3; 4]);
    let batch = ping.repeat(64);
    let (mut sent, mut pending) = (0_usize, &batch[..]);
    // Nothing is read here, so sooner or later nothing more is taken there: only the kernel's buffers fill.
    while let Ok(Ok(n)) = timeout(Duration::from_millis(500), raw.socket.write(pending)).await {
        sent += n;
        pending = if n == pending.len() { &batch } else { &pending[n..] };
        assert!(sent < 64 << 20, "the pod takes pings without end");
    }
    // Others are served, and each whole ping gets its pong in the end.
    let post = pods.post().await;
    assert_eq!(pods.like(0, post).await["likes"], 1);
    let expected = sent / ping.len();
    let mut pongs = 0;
    while pongs < expected {
        match raw.next().await {
            Some(Event::Pong(data)) => assert_eq!(data, [b'p'; 125]),
            other => panic!("{other:?} after {pongs} of {expected}"),
        }
        pongs += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_10_compression_is_not_agreed_on() {
    let pods = TestPods::start(&[]).await;
    let offer = ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits");
    let headers: Vec<_> = HANDSHAKE.into_iter().chain([offer]).collect();
    let head = head(&pods, "GET /stomp", &headers).await;
    assert!(status(&head) == 101 && !head.contains("sec-websocket-extensions"), "{head}");
    // A compressed frame all the same: RSV1 without an extension.
    let mut raw = Raw::open(pods.addresses[0], "/stomp", b"").await;
    let mut frame = client_frame(Opcode::Text, b"x", [0; 4]);
    frame[0] |= 0x40;
    raw.socket.write_all(&frame).await.unwrap();
    assert_eq!(raw.closed().await, Some(1002));
}

/// Through a proxy that falls silent without closing: what the loss of a network looks like to the pod.
#[tokio::test(flavor = "multi_thread")]
async fn ws_13_a_half_open_peer_is_noticed_by_its_missing_heart_beats() {
    let pods = TestPods::start(&["--heartbeat", "1s"]).await;
    let proxy = Proxy::start(pods.addresses[0].port()).await;
    let through = proxy.instead_of("http://127.0.0.1:1/").replace("http://", "").replace('/', "");
    let connect = client_frame(Opcode::Text, b"CONNECT\naccept-version:1.2\nheart-beat:1000,1000\n\n\0", [6; 4]);
    let mut raw = Raw::open(through.parse().unwrap(), "/stomp", &connect).await;
    assert!(raw.text().await.starts_with("CONNECTED"));
    assert!(pods.metric(0, "pushlab_connections", "stomp").await > 0.5);
    proxy.freeze();
    pods.metric_becomes(0, "pushlab_connections", "stomp", 0.0).await;
    assert!(pods.metric(0, "pushlab_closed_total", "reason=\"read_timeout\"").await > 0.5);
}
