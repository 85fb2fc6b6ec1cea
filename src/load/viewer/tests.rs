//! Viewers against scripted servers: silence, refusals, resumes.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Behind, ViewerOptions, Viewers, visits};
use crate::domain::{LikesChanged, LikesState, PostId, Transport, Update, Version};
use crate::load::config::SseClient;
use crate::load::recorder::{Shared, merge};
use crate::load::target::Target;
use crate::proto::sse;

const POST: PostId = PostId::new(7).unwrap();

fn start(listener: &TcpListener, viewers: u32) -> Viewers {
    start_as(SseClient::Fetch, listener, viewers)
}

fn start_as(client: SseClient, listener: &TcpListener, viewers: u32) -> Viewers {
    let options = ViewerOptions {
        transport: Transport::Sse,
        targets: vec![Target::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap()],
        posts: vec![POST],
        heartbeat: Duration::from_millis(200),
        connect_rate: 500,
        gzip: false,
        client,
        seed: 1,
    };
    let visits = visits(viewers, 0, None, Duration::from_secs(1), 1);
    Viewers::start(&options, visits, &[(0, 0)], 1, &Arc::new(Shared::new())).unwrap()
}

/// The next request: its connection and its head.
fn request(listener: &TcpListener) -> (TcpStream, String) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let head: Vec<_> = lines.by_ref().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
    (stream, head.join("\n"))
}

fn begin(stream: &mut TcpStream, version: u64) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let state = LikesState { post_id: POST, likes: version, version: Version(version) };
    send(stream, &Update::Snapshot(state));
}

fn send(stream: &mut TcpStream, update: &Update) {
    let event = sse::encode(update, Some(&format!("00000001.{}", update.version())));
    stream.write_all(&sse::chunk(event.as_bytes())).unwrap();
}

fn change(version: u64) -> Update {
    let (likes, committed_at) = (version, crate::domain::unix_micros());
    let (version, prev) = (Version(version), Version(version - 1));
    Update::Changed(LikesChanged { post_id: POST, likes, version, prev, committed_at })
}

fn wait_until_all_on(viewers: &Viewers, version: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while viewers.behind(&[version]) != Behind::default() {
        assert!(Instant::now() < deadline, "{:?}", viewers.behind(&[version]));
        std::thread::yield_now();
    }
}

#[test]
fn a_refused_a_broken_and_a_silent_stream_are_each_resumed_from_the_last_id() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let viewers = start(&listener, 1);

    let (mut busy, head) = request(&listener);
    assert!(!head.contains("Last-Event-ID"), "{head}");
    busy.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").unwrap();

    let (mut broken, _) = request(&listener);
    begin(&mut broken, 0);
    send(&mut broken, &change(1));
    wait_until_all_on(&viewers, 1);
    drop(broken);

    let (mut silent, head) = request(&listener);
    assert!(head.contains("Last-Event-ID: 00000001.1"), "{head}");
    begin(&mut silent, 3);
    wait_until_all_on(&viewers, 3);

    // Not a byte for two heartbeats: the viewer gives it up, though the connection stands.
    let (mut last, head) = request(&listener);
    assert!(head.contains("Last-Event-ID: 00000001.3"), "{head}");
    begin(&mut last, 3);
    send(&mut last, &change(4));
    wait_until_all_on(&viewers, 4);

    let (sessions, events, arrivals) = merge(viewers.stop().unwrap());
    let reasons: Vec<_> = sessions.iter().map(|s| s.reason.as_deref().unwrap_or("alive")).collect();
    assert_eq!(reasons, ["refused", "eof", "silent", "alive"]);
    let resumed: Vec<_> = sessions.iter().map(|s| (s.resumed_from, s.joined_us.map(|_| s.joined_version))).collect();
    assert_eq!(resumed, [(None, None), (None, Some(0)), (Some(1), Some(3)), (Some(3), Some(3))]);
    assert_eq!(events.version, [1, 4]);
    assert_eq!(arrivals.version, [0, 1, 3, 3, 4]);
    drop(silent);
}

#[test]
fn events_cut_anywhere_and_events_in_one_segment_are_all_booked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let viewers = start(&listener, 1);
    let (mut stream, _) = request(&listener);
    stream.set_nodelay(true).unwrap();
    begin(&mut stream, 0);
    let mut bytes = Vec::new();
    for version in 1..=40 {
        let event = sse::encode(&change(version), Some(&format!("00000001.{version}")));
        bytes.extend(sse::chunk(event.as_bytes()));
    }
    let (cut, whole) = bytes.split_at(2_000);
    cut.chunks(7).for_each(|piece| stream.write_all(piece).unwrap());
    stream.write_all(whole).unwrap();
    wait_until_all_on(&viewers, 40);
    let (.., arrivals) = merge(viewers.stop().unwrap());
    assert_eq!(arrivals.version, (0..=40).collect::<Vec<_>>());
}

/// Four heartbeat periods with only this on the stream, or until it is given up.
fn beats(stream: &mut TcpStream, beat: &str) {
    for _ in 0..10 {
        if stream.write_all(&sse::chunk(beat.as_bytes())).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(80));
    }
}

#[test]
fn a_native_event_source_comes_back_to_a_broken_stream_waits_in_silence_and_gives_up_when_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let viewers = start_as(SseClient::Native, &listener, 1);
    let (mut broken, _) = request(&listener);
    begin(&mut broken, 0);
    broken.write_all(&sse::chunk(b"retry: 50\n")).unwrap();
    send(&mut broken, &change(1));
    wait_until_all_on(&viewers, 1);
    drop(broken);

    let (mut silent, head) = request(&listener);
    assert!(head.contains("Last-Event-ID: 00000001.1"), "{head}");
    begin(&mut silent, 1);
    // Five heartbeat periods without a byte, and it is still there.
    std::thread::sleep(Duration::from_secs(1));
    send(&mut silent, &change(2));
    wait_until_all_on(&viewers, 2);
    drop(silent);

    let (mut busy, _) = request(&listener);
    busy.write_all(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n").unwrap();
    // Who gave up is behind nothing.
    wait_until_all_on(&viewers, 99);
    let (sessions, ..) = merge(viewers.stop().unwrap());
    let reasons: Vec<_> = sessions.iter().map(|s| s.reason.as_deref().unwrap_or("alive")).collect();
    assert_eq!(reasons, ["eof", "eof", "gave up: refused"]);
}

#[test]
fn comments_keep_a_fetch_client_and_named_events_a_page_that_asked_for_them() {
    for (client, beat, stays) in [
        (SseClient::Fetch, sse::HEARTBEAT, true),
        (SseClient::Watchdog, sse::HEARTBEAT, false),
        (SseClient::NamedHeartbeat, sse::HEARTBEAT, false),
        (SseClient::NamedHeartbeat, "event: heartbeat\ndata: {}\n\n", true),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let viewers = start_as(client, &listener, 1);
        let (mut stream, head) = request(&listener);
        assert_eq!(head.contains("?heartbeat=event "), client == SseClient::NamedHeartbeat, "{head}");
        begin(&mut stream, 0);
        beats(&mut stream, beat);
        if stays {
            send(&mut stream, &change(1));
            wait_until_all_on(&viewers, 1);
        }
        let (sessions, ..) = merge(viewers.stop().unwrap());
        let first = sessions[0].reason.as_deref();
        assert_eq!(first, if stays { None } else { Some("silent") }, "{client:?} {beat:?}");
    }
}
