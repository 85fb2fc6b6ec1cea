//! SSE to the letter (docs/conformance.md has the list): heads, bytes, resume, and what ends a stream.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pushlab::compare::edges::Edge;
use pushlab::proto::sse::{ChunkDecoder, LAST_CHUNK};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::Sse;
use super::raw::{request, status};
use super::{PATIENCE, TestPods};
use crate::edge::EdgeServer;

const ACCEPT: (&str, &str) = ("accept", "text/event-stream");

/// A stream on a bare socket: its body without chunk framing.
struct Bare {
    socket: TcpStream,
    chunks: ChunkDecoder,
    wire: Vec<u8>,
    text: String,
}

impl Bare {
    async fn open(pods: &TestPods, path: &str) -> Self {
        let (socket, head, wire) = request(pods.addresses[0], &format!("GET {path}"), &[ACCEPT], b"").await;
        assert_eq!(status(&head), 200, "{head}");
        let mut bare = Self { socket, chunks: ChunkDecoder::new(), wire: Vec::new(), text: String::new() };
        bare.take(&wire);
        bare
    }

    fn take(&mut self, bytes: &[u8]) {
        self.wire.extend_from_slice(bytes);
        let mut input = bytes;
        while let Some(piece) = self.chunks.next(&mut input).unwrap() {
            self.text.push_str(std::str::from_utf8(piece).unwrap());
        }
    }

    /// Reads until `end` ends the text.
    async fn until(&mut self, end: &str) -> &str {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self.text.ends_with(end) {
            assert!(self.more().await, "the stream ended: {:?}", self.text);
            assert!(tokio::time::Instant::now() < deadline, "no {end:?} in {:?}", self.text);
        }
        &self.text
    }

    async fn more(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let n = timeout(PATIENCE, self.socket.read(&mut bytes)).await.expect("more in time").unwrap_or(0);
        self.take(&bytes[..n]);
        n > 0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_01_a_stream_is_chunked_typed_and_flushed_event_by_event() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut sse = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    assert_eq!(sse.headers["content-type"], "text/event-stream");
    assert_eq!(sse.headers["transfer-encoding"], "chunked");
    assert!(!sse.headers.contains_key("content-length"));
    sse.json().await;
    for version in 1..=5 {
        pods.like(0, post).await;
        assert_eq!(sse.json().await["version"], version, "it came before the next one was made");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_02_nothing_on_the_way_is_invited_to_keep_or_change_the_stream() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let sse = Sse::try_open(&pods, 0, &path, &[("accept-encoding", "gzip, br, zstd")]).await.unwrap();
    for (name, value) in [
        ("cache-control", "no-store, no-transform"),
        ("x-accel-buffering", "no"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(sse.headers[name], value);
    }
    let vary = sse.headers["vary"].to_str().unwrap().to_lowercase();
    assert!(vary.contains("origin") && vary.contains("accept"), "{vary}");
    assert!(!sse.headers.contains_key("content-encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_03_the_bytes_are_ascii_without_mark_and_cr_and_no_id_can_add_a_line() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut bare = Bare::open(&pods, &format!("/posts/{post}/likes")).await;
    pods.like(0, post).await;
    bare.until("}\n\n").await;
    while !bare.text.contains("\"version\":1") {
        assert!(bare.more().await);
    }
    assert!(bare.text.is_ascii() && !bare.text.contains(['\r', '\0']), "{:?}", bare.text);
    assert!(bare.text.starts_with("retry: "), "no byte-order mark: {:?}", bare.text);
    for injected in
        ["/posts/1%0d%0adata:x/likes", "/posts/1%00/likes", "/likes?post=1%0aid:9", "/likes?post=%EF%BB%BF1"]
    {
        let answer = Sse::try_open(&pods, 0, injected, &[]).await.err().expect("refused");
        assert_eq!(answer.status(), 404, "{injected}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_04_an_event_is_one_data_line_with_one_space_and_a_blank_line() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut bare = Bare::open(&pods, &format!("/posts/{post}/likes")).await;
    let text = bare.until("\n\n").await;
    let lines: Vec<_> = text.trim_end_matches('\n').split('\n').collect();
    assert_eq!(lines.len(), 3, "{text:?}");
    let fields: Vec<_> = lines.iter().map(|line| line.split_once(": ").unwrap()).collect();
    assert_eq!([fields[0].0, fields[1].0, fields[2].0], ["retry", "id", "data"]);
    assert!(fields[2].1.starts_with("{\"postId\":"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_05_an_id_is_short_ascii_and_holds_the_whole_position() {
    let pods = TestPods::start(&[]).await;
    let mut posts = Vec::new();
    for _ in 0..40 {
        posts.push(pods.post().await);
    }
    let path = |count: usize| {
        let list: Vec<_> = posts[..count].iter().map(|post| format!("post={post}")).collect();
        format!("/likes?{}", list.join("&"))
    };
    for (count, has_id) in [(1, true), (8, true), (40, false)] {
        let mut sse = Sse::open(&pods, 0, &path(count)).await;
        for _ in 0..count {
            let event = sse.next().await.unwrap();
            let id = event.id();
            assert_eq!(!id.is_empty(), has_id, "{count} posts: {id}");
            assert!(id.len() <= 128 && id.bytes().all(|b| b.is_ascii_graphic()), "{id}");
            if count > 1 && has_id {
                assert_eq!(id.split(',').count(), count, "all posts, not only the event's: {id}");
            }
        }
    }
    let answer = Sse::try_open(&pods, 0, "/likes", &[]).await.err().expect("refused");
    assert_eq!(answer.status(), 400, "no post");
    let many = format!("/likes?{}", (1..=129).map(|n| format!("post={n}")).collect::<Vec<_>>().join("&"));
    assert_eq!(Sse::try_open(&pods, 0, &many, &[]).await.err().expect("refused").status(), 400, "too many");
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_06_retry_comes_in_the_first_event_and_differs_between_clients() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut waits = Vec::new();
    for _ in 0..8 {
        let event = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await.next().await.unwrap();
        assert!(event.0.contains_key("data"), "not in a block of its own, which some clients take for a message");
        waits.push(event.0["retry"].parse::<u64>().unwrap());
    }
    assert!(waits.iter().all(|ms| (500..=1500).contains(ms)), "{waits:?}");
    assert!(waits.iter().any(|ms| *ms != waits[0]), "those cut off together do not return together: {waits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_07_events_are_unnamed_so_onmessage_sees_them() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut sse = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    pods.like(0, post).await;
    for _ in 0..2 {
        assert!(!sse.next().await.unwrap().0.contains_key("event"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_08_the_first_event_comes_at_once_without_any_change() {
    let pods = TestPods::start(&[]).await;
    let (a, b) = (pods.post().await, pods.post().await);
    let mut sse = Sse::open(&pods, 0, &format!("/likes?post={a}&post={b}")).await;
    for post in [a, b] {
        let json = sse.json().await;
        assert_eq!((&json["postId"], &json["version"], &json["snapshot"]), (&post.into(), &0.into(), &true.into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_09_a_last_event_id_never_fails_a_stream() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    pods.like(0, post).await;
    let path = format!("/posts/{post}/likes");
    let id = Sse::open(&pods, 0, &path).await.next().await.unwrap().id().to_owned();
    let long = "1".repeat(5000);
    for last in [
        "",
        "rubbish",
        "0",
        "00000000.1",
        "ffffffff.99",
        "1;2.3",
        "\u{e9}\u{1f600}",
        "00000000.99999999999999999999",
        &long,
    ] {
        let query = format!("{path}?lastEventId={last}");
        // (The client of these tests sends no header that is not ASCII; a browser would.)
        let header = last.is_ascii().then_some(("last-event-id", last));
        for (path, header) in [(&path, header), (&query, None)] {
            let headers: Vec<_> = header.into_iter().collect();
            let event = Sse::try_open(&pods, 0, path, &headers).await.unwrap().next().await.unwrap();
            assert_eq!((event.id(), &event.json()["snapshot"]), (id.as_str(), &true.into()), "{last:.20?}");
        }
    }
    // The browser's own header is newer than what the page once wrote into the URL.
    let both = format!("{path}?lastEventId=rubbish");
    let mut sse = Sse::try_open(&pods, 0, &both, &[("last-event-id", &id)]).await.unwrap();
    sse.next().await.unwrap();
    pods.metric_becomes(0, "pushlab_resumes_total", "current", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_10_silence_is_broken_by_a_comment_of_one_line() {
    let pods = TestPods::start(&["--heartbeat", "1s"]).await;
    let post = pods.post().await;
    let mut bare = Bare::open(&pods, &format!("/posts/{post}/likes")).await;
    bare.until("}\n\n:\n").await;
    assert!(bare.wire.ends_with(b"2\r\n:\n\r\n"), "a chunk of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_11_a_stream_of_age_ends_between_events_with_a_last_chunk() {
    let pods = TestPods::start(&["--max-age", "1s"]).await;
    let post = pods.post().await;
    let mut bare = Bare::open(&pods, &format!("/posts/{post}/likes")).await;
    while bare.more().await {}
    assert!(bare.wire.ends_with(LAST_CHUNK), "an end, not a break");
    let last = bare.text.rsplit("\n\n").next().unwrap();
    assert!(last.starts_with("retry: ") && last.ends_with('\n'), "{:?}", bare.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_12_a_drain_refuses_new_streams_and_ends_open_ones_with_retry() {
    let pods = TestPods::start(&["--drain-grace", "2s", "--drain", "0"]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let mut bare = Bare::open(&pods, &path).await;
    pods.stop();
    // The token is seen a moment later.
    let refused = loop {
        match Sse::try_open(&pods, 0, &path, &[]).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(answer) => break answer,
        }
    };
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    while bare.more().await {}
    assert!(bare.wire.ends_with(LAST_CHUNK) && bare.text.contains("\n\nretry: "), "{:?}", bare.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_13_no_get_is_ever_answered_204() {
    // 204 stops a native EventSource for good: here only OPTIONS has it.
    let pods = TestPods::start(&["--max-connections", "1"]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let _only = Sse::open(&pods, 0, &path).await;
    for (target, accept, expected) in [
        (path.as_str(), "text/event-stream", 503),
        ("/posts/0/likes", "text/event-stream", 404),
        ("/likes", "text/event-stream", 400),
        ("/likes?post=1", "application/json", 406),
        (path.as_str(), "image/png", 406),
        ("/nothing", "text/event-stream", 404),
    ] {
        let head = request(pods.addresses[0], &format!("GET {target}"), &[("accept", accept)], b"").await.1;
        assert_eq!(status(&head), expected, "{target} {accept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_15_clients_that_vanish_are_forgotten() {
    let pods = TestPods::start(&["--heartbeat", "1s"]).await;
    let post = pods.post().await;
    let mut viewers = Vec::new();
    for n in 0..100 {
        let bare = Bare::open(&pods, &format!("/posts/{post}/likes")).await;
        if n % 2 == 0 {
            // A reset instead of an end.
            bare.socket.set_zero_linger().unwrap();
        }
        viewers.push(bare);
    }
    pods.metric_becomes(0, "pushlab_connections", "sse", 100.0).await;
    drop(viewers);
    pods.metric_becomes(0, "pushlab_connections", "sse", 0.0).await;
    pods.metric_becomes(0, "pushlab_watched_posts", "", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_16_only_origins_on_the_list_are_echoed() {
    let pods = TestPods::start(&["--origin", "http://good.test"]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let good = Sse::try_open(&pods, 0, &path, &[("origin", "http://good.test")]).await.unwrap();
    assert_eq!(good.headers["access-control-allow-origin"], "http://good.test");
    assert_eq!(good.headers["access-control-allow-credentials"], "true");
    for evil in ["http://evil.test", "null", "http://good.test.evil.test", "https://good.test"] {
        let answer = Sse::try_open(&pods, 0, &path, &[("origin", evil)]).await.err().expect("refused");
        assert_eq!(answer.status(), 403, "{evil}");
        let echoed = answer.headers().get("access-control-allow-origin");
        assert!(echoed.is_none_or(|origin| origin != evil && origin != "*"), "{evil}: {echoed:?}");
    }
    let none = Sse::open(&pods, 0, &path).await;
    assert!(!none.headers.contains_key("access-control-allow-origin"), "nothing to say to a program");
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_17_head_options_and_other_methods_are_answered_at_once() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    for path in [format!("/posts/{post}/likes"), format!("/likes?post={post}")] {
        let (mut socket, head, rest) =
            request(pods.addresses[0], &format!("HEAD {path}"), &[ACCEPT, ("connection", "close")], b"").await;
        assert_eq!(status(&head), 200, "{head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        assert!(rest.is_empty() && socket.read(&mut [0; 8]).await.unwrap() == 0, "no body, and the end");
        assert_eq!(status(&request(pods.addresses[0], &format!("OPTIONS {path}"), &[ACCEPT], b"").await.1), 204);
        let head = request(pods.addresses[0], &format!("PATCH {path}"), &[ACCEPT], b"").await.1;
        assert!(status(&head) == 405 && head.contains("allow: "), "{head}");
    }
    let head = request(pods.addresses[0], &format!("POST /likes?post={post}"), &[("content-length", "0")], b"").await.1;
    assert_eq!(status(&head), 405);
    pods.metric_becomes(0, "pushlab_connections", "sse", 0.0).await;
}

/// A stream's body over a connection of its own.
async fn over(address: SocketAddr, path: &str, http2: bool) -> Incoming {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let request = if http2 {
        http::Request::get(format!("http://{address}{path}"))
    } else {
        http::Request::get(path).header("host", address.to_string())
    };
    let request = request.header(ACCEPT.0, ACCEPT.1).body(Empty::<bytes::Bytes>::new()).unwrap();
    let answer = if http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        timeout(PATIENCE, sender.send_request(request)).await
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        timeout(PATIENCE, sender.send_request(request)).await
    };
    let answer = answer.expect("a head at once").unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body()
}

/// Appends what comes to `text` until it holds `part`.
async fn read_until(body: &mut Incoming, text: &mut String, part: &str) {
    while !text.contains(part) {
        let frame = timeout(PATIENCE, body.frame()).await.expect("in time").expect("an open stream").unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_19_a_hundred_streams_and_requests_share_one_http2_connection() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let io = TokioIo::new(TcpStream::connect(pods.addresses[0]).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let path = format!("/posts/{post}/likes");
    let ask = |method: &str| {
        let request = http::Request::builder().method(method).uri(pods.url(0, &path));
        request.header(ACCEPT.0, ACCEPT.1).body(Empty::<bytes::Bytes>::new()).unwrap()
    };
    let mut streams = Vec::new();
    for _ in 0..100 {
        let answer = timeout(PATIENCE, sender.send_request(ask("GET"))).await.expect("in time").unwrap();
        assert_eq!(answer.status(), 200);
        streams.push(answer.into_body());
    }
    // Over HTTP/1.1 a browser would have stopped at six, this like included.
    let liked = timeout(PATIENCE, sender.send_request(ask("POST"))).await.expect("in time").unwrap();
    assert_eq!(liked.status(), 200);
    for body in &mut streams {
        read_until(body, &mut String::new(), "\"version\":1,").await;
    }
    drop((streams, sender));
    pods.metric_becomes(0, "pushlab_connections", "sse", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sse_20_events_pass_nginx_and_haproxy_one_by_one_also_over_http2() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let http2 = |config: &str| config.replace(" backlog=4096;", " backlog=4096 http2;");
    let nginx = EdgeServer::start(Edge::NginxLeastConn, pods.addresses[0], http2);
    let nothing = |config: &str| format!("# as it is\n{config}");
    let haproxy = EdgeServer::start(Edge::HaproxyLeastconn, pods.addresses[0], nothing);
    let mut streams = [
        (over(nginx.address(), &path, true).await, String::new()),
        (over(haproxy.address(), &path, false).await, String::new()),
    ];
    for version in 0..=3 {
        if version > 0 {
            pods.like(0, post).await;
        }
        for (body, text) in &mut streams {
            read_until(body, text, &format!("\"version\":{version},")).await;
        }
    }
}
