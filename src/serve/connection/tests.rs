//! Take-over and its fallbacks over real sockets, under axum's middleware, with a protocol that echoes.

use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::domain::{Epoch, LikesChanged, PostId, Transport, Update, Version as Number};
use crate::hub::{CloseReason, ConnKey, EngineOptions, Flow, Hub, Subscription};
use crate::proto::sse::{LAST_CHUNK, chunk};

/// `version\n` per update; input is answered by itself in angle brackets. Chunk-framed when the format says so.
#[derive(Debug)]
struct Echo {
    chunked: bool,
}

impl Echo {
    fn frame(&self, text: &str) -> Bytes {
        if self.chunked { chunk(text.as_bytes()) } else { Bytes::copy_from_slice(text.as_bytes()) }
    }
}

impl Protocol for Echo {
    type Format = bool;
    type Reply = ();
    type Guard = Arc<()>;

    fn encode(update: &Update, chunked: &bool) -> Bytes {
        Echo { chunked: *chunked }.frame(&format!("{}\n", update.version()))
    }

    fn feed(&mut self, _: ConnKey, input: &[u8], out: &mut Vec<u8>) -> Flow {
        out.extend_from_slice(&self.frame(&format!("<{}>\n", String::from_utf8_lossy(input))));
        Flow::Continue
    }

    fn reply(&mut self, _: ConnKey, (): (), _: &mut Vec<u8>) -> (Flow, Vec<crate::hub::Change<Self>>) {
        (Flow::Continue, vec![])
    }

    fn sweep(&mut self, _: std::time::Instant, _: std::time::Instant, _: std::time::Instant, _: &mut Vec<u8>) -> Flow {
        Flow::Continue
    }

    fn end(&mut self, _: CloseReason, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.frame("drain\n"));
        out.extend_from_slice(if self.chunked { LAST_CHUNK } else { b"" });
    }

    fn transport(&self) -> Transport {
        if self.chunked { Transport::Sse } else { Transport::Stomp }
    }
}

#[derive(Clone)]
struct App {
    hub: Hub<Echo>,
    guard: Arc<()>,
}

impl App {
    fn take_over(&self, chunked: bool) -> TakeOver<Echo> {
        let protocol = Echo { chunked };
        let subscription = Subscription {
            post: PostId::new(1).unwrap(),
            slot: 0,
            epoch: Epoch(0),
            format: chunked,
            cursor: Number(1),
            first: protocol.frame("snapshot 1\n"),
            alone: false,
            guard: Arc::clone(&self.guard),
        };
        let first = protocol.frame("hello\n");
        TakeOver::new(self.hub.pick().clone(), protocol, vec![subscription], first)
    }

    fn publish(&self, version: u64) {
        let (version, prev) = (Number(version), Number(version - 1));
        let event = LikesChanged { post_id: PostId::new(1).unwrap(), likes: 0, version, prev, committed_at: 0 };
        self.hub.publish(Update::Changed(event), 0);
    }
}

async fn stream(State(app): State<App>) -> Response {
    let take_over = app.take_over(true);
    let mut response = Response::new(take_over.body());
    response.extensions_mut().insert(take_over);
    response
}

async fn lost(State(app): State<App>) -> Response {
    Response::new(app.take_over(true).body())
}

async fn encoded(state: State<App>) -> Response {
    let mut response = stream(state).await;
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("x-none"));
    response
}

async fn socket(State(app): State<App>, upgrade: WebSocketUpgrade) -> Response {
    let mut response = upgrade.on_failed_upgrade(|_| {}).on_upgrade(|_| async {}).into_response();
    response.extensions_mut().insert(app.take_over(false));
    response
}

struct Server {
    app: App,
    address: SocketAddr,
    stats: Arc<Stats>,
    /// How many the application itself holds.
    guards: usize,
    stop: CancellationToken,
    done: tokio::task::JoinHandle<()>,
}

async fn server(options: Options) -> Server {
    let app = App { hub: Hub::start(1, &EngineOptions::default()).unwrap(), guard: Arc::new(()) };
    let router = Router::new()
        .route("/plain", get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.ip().to_string() }))
        .route("/body", post(|body: String| async move { body.to_uppercase() }))
        .route("/stream", get(stream))
        .route("/lost", get(lost))
        .route("/encoded", get(encoded))
        .route("/socket", get(socket))
        .layer(tower_http::timeout::TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(5)))
        .layer(tower_http::cors::CorsLayer::permissive())
        .layer(tower_http::trace::TraceLayer::new_for_http())
        .with_state(app.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stats, stop) = (listener.local_addr().unwrap(), Arc::new(Stats::default()), CancellationToken::new());
    let done = tokio::spawn(serve::<Echo>(listener, router, options, Arc::clone(&stats), stop.clone()));
    Server { guards: Arc::strong_count(&app.guard), app, address, stats, stop, done }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn sse(&self) -> crate::hub::TransportCounters {
        *self.app.hub.counters().of(Transport::Sse)
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

/// Reads until `end` has come; everything read.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    let read = async {
        while !all.ends_with(end.as_bytes()) {
            let n = stream.read_buf(&mut all).await.unwrap();
            assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&all));
        }
    };
    if timeout(PATIENCE, read).await.is_err() {
        panic!("no {end:?} in {:?}", String::from_utf8_lossy(&all));
    }
    String::from_utf8(all).unwrap()
}

/// Everything up to the end, be it a reset.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the end comes in time");
    String::from_utf8(all).unwrap()
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn wire(text: &str) -> String {
    String::from_utf8(chunk(text.as_bytes()).to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_leaves_hyper_after_keep_alive_and_pipelined_requests() {
    let server = server(Options::default()).await;
    let mut client = server.connect().await;
    client.write_all(b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(until(&mut client, "127.0.0.1").await.starts_with("HTTP/1.1 200"));
    client.write_all(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").await.unwrap();
    until(&mut client, "ABC").await;
    let pipelined =
        "GET /plain HTTP/1.1\r\nHost: x\r\n\r\nGET /stream HTTP/1.1\r\nHost: x\r\nOrigin: http://a\r\n\r\nrest";
    client.write_all(pipelined.as_bytes()).await.unwrap();
    let text = until(&mut client, &wire("<rest>\n")).await;
    let (plain, streamed) = text.split_once("127.0.0.1").unwrap();
    assert!(plain.contains("content-length: 9"), "{plain}");
    let (head, body) = streamed.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("access-control-allow-origin"), "{head}");
    assert!(head.contains("transfer-encoding: chunked") && head.contains("connection: close"), "{head}");
    assert!(!head.contains("content-length"), "{head}");
    assert_eq!(body, wire("hello\n") + &wire("snapshot 1\n") + &wire("<rest>\n"));
    server.app.publish(2);
    assert_eq!(until(&mut client, "2\n\r\n").await, wire("2\n"));
    assert_eq!((server.stats.taken_over.load(Ordering::Relaxed), server.sse().fallback), (1, 0));
    server.app.hub.drain(Duration::ZERO);
    assert_eq!(rest(&mut client).await, wire("drain\n") + "0\r\n\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_leaves_hyper_after_the_101_with_bytes_that_came_early() {
    let server = server(Options::default()).await;
    let mut client = server.connect().await;
    let hello = "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearly";
    client.write_all(hello.as_bytes()).await.unwrap();
    let text = until(&mut client, "<early>\n").await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    assert_eq!(body, "hello\nsnapshot 1\n<early>\n");
    client.write_all(b"late").await.unwrap();
    assert_eq!(until(&mut client, "<late>\n").await, "<late>\n");
    server.app.publish(2);
    assert_eq!(until(&mut client, "2\n").await, "2\n");
    drop(client);
    eventually("closed", || server.app.hub.connections(Transport::Stomp) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_take_over_is_possible_an_ordinary_body_carries_the_same_bytes() {
    let server = server(Options::default()).await;
    for (i, request) in ["GET /stream HTTP/1.0", "GET /lost HTTP/1.1", "GET /encoded HTTP/1.1"].into_iter().enumerate()
    {
        let mut client = server.connect().await;
        client.write_all(format!("{request}\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let text = until(&mut client, if i == 0 { "snapshot 1\n" } else { "snapshot 1\n\r\n" }).await;
        assert_eq!(text.contains("transfer-encoding: chunked"), i > 0, "{text}");
        server.app.publish(2 + i as u64);
        until(&mut client, if i == 0 { "2\n" } else { "\n\r\n" }).await;
        assert_eq!(server.sse().fallback, 1 + i as u64, "{request}");
        drop(client);
        eventually("closed", || server.app.hub.connections(Transport::Sse) == 0).await;
        server.app.hub.forget(PostId::new(1).unwrap());
    }
    assert_eq!(server.stats.taken_over.load(Ordering::Relaxed), 0);
    // HEAD: no body, so nothing is subscribed, and the guard goes.
    let mut client = server.connect().await;
    client.write_all(b"HEAD /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(rest(&mut client).await.ends_with("\r\n\r\n"));
    assert_eq!(server.sse().accepted, 3);
    eventually("guards", || Arc::strong_count(&server.app.guard) == server.guards).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_by_preface_shares_one_connection_between_streams_and_requests() {
    let server = server(Options::default()).await;
    let io = TokioIo::new(server.connect().await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let uri = |path: &str| format!("http://{}{path}", server.address);
    let request = Request::get(uri("/stream")).body(String::new()).unwrap();
    let mut streaming = sender.send_request(request).await.unwrap().into_body();
    let mut text = String::new();
    while !text.ends_with("snapshot 1\n") {
        let frame = timeout(PATIENCE, streaming.frame()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    assert_eq!(text, "hello\nsnapshot 1\n");
    let request = Request::post(uri("/body")).body("abc".to_owned()).unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(answer.to_bytes(), "ABC");
    server.app.publish(2);
    assert_eq!(streaming.frame().await.unwrap().unwrap().into_data().unwrap(), "2\n");
    server.app.hub.drain(Duration::ZERO);
    let end = timeout(PATIENCE, streaming.collect()).await.unwrap().unwrap().to_bytes();
    assert_eq!(end, "drain\n");
    server.stop.cancel();
    timeout(PATIENCE, server.done).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_head_is_cut_and_an_idle_connection_is_not() {
    let options = Options { header_read_timeout: Duration::from_millis(300), ..Options::default() };
    let server = server(options).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    until(&mut idle, "127.0.0.1").await;
    for slow in ["", "P", "PR", "GET /plain HTTP/1.1\r\nHost:"] {
        let mut client = server.connect().await;
        client.write_all(slow.as_bytes()).await.unwrap();
        assert_eq!(rest(&mut client).await, "", "{slow:?}");
    }
    assert_eq!(server.stats.slow_heads.load(Ordering::Relaxed), 4);
    idle.write_all(b"GET /plain HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    idle.write_all(b"\r\n").await.unwrap();
    until(&mut idle, "127.0.0.1").await;
    idle.write_all(b"GET").await.unwrap();
    assert_eq!(rest(&mut idle).await, "");
    assert_eq!(server.stats.slow_heads.load(Ordering::Relaxed), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_visits_leave_no_socket_and_no_guard_behind() {
    let server = server(Options::default()).await;
    for _ in 0..50 {
        let visits = (0..20).map(|i| {
            let server = &server;
            async move {
                let mut client = server.connect().await;
                client.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
                if i % 2 == 0 {
                    until(&mut client, "snapshot 1\n\r\n").await;
                }
            }
        });
        futures_util::future::join_all(visits).await;
    }
    eventually("guards", || Arc::strong_count(&server.app.guard) == server.guards).await;
    eventually("connections", || server.app.hub.connections(Transport::Sse) == 0).await;
    let counters = server.sse();
    assert_eq!(counters.accepted, counters.closed_total());
    assert!(counters.accepted >= 500, "{}", counters.accepted);
    // A socket left open here would stay in CLOSE_WAIT (state 08) or ESTABLISHED (01) at our port.
    let port = format!(":{:04X}", server.address.port());
    let is_open = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(1).is_some_and(|local| local.ends_with(&port)) && matches!(fields.get(3), Some(&("01" | "08")))
    };
    eventually("sockets", || {
        std::fs::read_to_string("/proc/self/net/tcp").unwrap().lines().filter(is_open).count() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_idle_connections_and_lets_streams_live_on() {
    let server = server(Options { max_connections: 2, ..Options::default() }).await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    until(&mut idle, "127.0.0.1").await;
    let mut viewer = server.connect().await;
    viewer.write_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    until(&mut viewer, "snapshot 1\n\r\n").await;
    // A stream that was taken over holds no slot; a third ordinary connection is refused.
    let mut second = server.connect().await;
    second.write_all(b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    until(&mut second, "127.0.0.1").await;
    let mut third = server.connect().await;
    assert_eq!(third.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert_eq!(server.stats.refused.load(Ordering::Relaxed), 1);
    server.stop.cancel();
    timeout(PATIENCE, server.done).await.unwrap().unwrap();
    assert_eq!(rest(&mut idle).await, "");
    server.app.publish(2);
    assert_eq!(until(&mut viewer, "2\n\r\n").await, wire("2\n"));
}

#[tokio::test]
async fn what_the_kernel_has_accepted_is_served_before_the_port_closes() {
    let server = server(Options::default()).await;
    // This runtime has one thread, and it is here: nobody accepts meanwhile.
    let waiting = (0..20).map(|_| {
        let mut socket = std::net::TcpStream::connect(server.address).unwrap();
        let ask = b"POST /body HTTP/1.1\r\nhost: t\r\ncontent-length: 4\r\n\r\nlike";
        std::io::Write::write_all(&mut socket, ask).unwrap();
        socket.set_nonblocking(true).unwrap();
        TcpStream::from_std(socket).unwrap()
    });
    let waiting: Vec<_> = waiting.collect();
    server.stop.cancel();
    for mut socket in waiting {
        let answer = until(&mut socket, "LIKE").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    server.done.await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "the port is closed");
}
