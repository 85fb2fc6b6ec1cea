//! Abuse: each attack gets its documented answer, memory stays within a bound, and other viewers go on seeing every like.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::PATIENCE;
use crate::pod_process::PodProcess;
use crate::servers::NatsServer;

/// What a half-open handshake may cost, in KiB: hyper's first buffer is 8 of them, the connection's task most of the rest. (20 were
/// measured in a debug build; `--max-http-connections` bounds how many there can be.)
const HALF_OPEN_KIB: f64 = 24.0;
/// What all other attacks together may add to a pod's resident memory, in MiB.
const REST_MIB: f64 = 16.0;

/// A viewer that is no attacker: its stream, as text.
struct Witness {
    socket: TcpStream,
    text: String,
}

impl Witness {
    async fn new(address: SocketAddr, post: u64) -> Self {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let ask = format!("GET /posts/{post}/likes HTTP/1.1\r\nhost: t\r\naccept: text/event-stream\r\n\r\n");
        socket.write_all(ask.as_bytes()).await.unwrap();
        let mut witness = Self { socket, text: String::new() };
        witness.sees(0).await;
        witness
    }

    /// Reads on until this version is there.
    async fn sees(&mut self, version: u64) {
        let wanted = format!("\"version\":{version},");
        while !self.text.contains(&wanted) {
            let mut piece = [0; 4096];
            let read = timeout(PATIENCE, self.socket.read(&mut piece)).await.expect("the like is seen").unwrap();
            assert!(read > 0, "the stream ended");
            self.text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
        }
        self.text.clear();
    }
}

/// Likes until told to stop, at least `least` of them; how long each took until its witness saw it.
async fn watch(pod: &PodProcess, stop: &tokio_util::sync::CancellationToken, least: u64) -> Vec<Duration> {
    let post = pod.post().await;
    let mut witness = Witness::new(pod.listen, post).await;
    let client = reqwest::Client::new();
    let mut delays = Vec::new();
    while delays.len() < usize::try_from(least).unwrap() || !stop.is_cancelled() {
        let began = Instant::now();
        let answer = client.post(pod.url(&format!("/posts/{post}/likes"))).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        witness.sees(delays.len() as u64 + 1).await;
        delays.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    delays
}

fn p99(delays: &mut [Duration]) -> Duration {
    delays.sort();
    delays[delays.len() * 99 / 100]
}

/// Handshakes that stop in the middle of their head; done when the pod has closed every one of them.
async fn half_open(address: SocketAddr, handshakes: usize) {
    let mut sockets = Vec::new();
    for _ in 0..handshakes {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET /stomp HTTP/1.1\r\nhost: t\r\nupgrade: webso").await.unwrap();
        sockets.push(socket);
    }
    for mut socket in sockets {
        let closed = timeout(PATIENCE, socket.read_to_end(&mut Vec::new())).await;
        closed.expect("a head that never ends is not waited for").ok();
    }
}

/// A WebSocket by hand, after its 101.
async fn upgraded(address: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let ask = "GET /stomp HTTP/1.1\r\nhost: t\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
               sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: v12.stomp\r\n\r\n";
    socket.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, socket.read_u8()).await.expect("a head").unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    socket
}

/// A frame that announces 1 GiB is answered 1009 (too big) at once, though nothing of it has come.
async fn giant_frame(address: SocketAddr) {
    let mut socket = upgraded(address).await;
    let mut head = vec![0x81, 0xff];
    head.extend((1_u64 << 30).to_be_bytes());
    head.extend([1, 2, 3, 4]);
    socket.write_all(&head).await.unwrap();
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("it is closed");
    assert_eq!((ended.is_ok(), &answer[..1], &answer[2..4]), (true, &[0x88][..], &1009_u16.to_be_bytes()[..]));
}

/// A million headers: 431, and the rest is not read.
async fn million_headers(address: SocketAddr) {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let flood = async {
        write.write_all(b"GET /posts/1 HTTP/1.1\r\nhost: t\r\n").await?;
        let block = "x-header: value\r\n".repeat(1_000);
        for _ in 0..1_000 {
            write.write_all(block.as_bytes()).await?;
        }
        std::io::Result::Ok(())
    };
    let mut answer = Vec::new();
    let mut piece = [0; 1024];
    let listen = async {
        while let Ok(read @ 1..) = read.read(&mut piece).await {
            answer.extend_from_slice(&piece[..read]);
        }
    };
    let (flooded, ()) = timeout(PATIENCE, async { tokio::join!(flood, listen) }).await.expect("it is closed");
    let answer = String::from_utf8_lossy(&answer);
    // A reset may overtake the answer, since it was sent while more was coming.
    assert!(answer.starts_with("HTTP/1.1 431 ") || (answer.is_empty() && flooded.is_err()), "{answer} {flooded:?}");
}

/// A STOMP session over a socket with buffers of this size.
async fn session(address: SocketAddr, buffer: Option<u32>) -> tokio_tungstenite::WebSocketStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes).unwrap();
        socket.set_send_buffer_size(bytes).unwrap();
    }
    let mut request = format!("ws://{address}/stomp").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v12.stomp".parse().unwrap());
    let (mut session, _) = client_async(request, socket.connect(address).await.unwrap()).await.unwrap();
    session.send(Message::text("CONNECT\naccept-version:1.2\nhost:t\n\n\0")).await.unwrap();
    let connected = timeout(PATIENCE, session.next()).await.expect("CONNECTED").unwrap().unwrap();
    assert!(connected.into_text().unwrap().starts_with("CONNECTED"));
    session
}

/// The 129th SUBSCRIBE of ten thousand is answered ERROR, and the session ends.
async fn ten_thousand_subscribes(address: SocketAddr, post: u64) {
    let (mut write, mut read) = session(address, None).await.split();
    let flood = async {
        for n in 0..10_000 {
            let frame = format!("SUBSCRIBE\nid:{n}\ndestination:/topic/posts.{post}.likes\n\n\0");
            if write.send(Message::text(frame)).await.is_err() {
                return;
            }
        }
    };
    let mut answers = Vec::new();
    let listen = async {
        while let Some(Ok(message)) = read.next().await {
            if let Message::Text(text) = message {
                answers.push(text.to_string());
            }
        }
    };
    timeout(PATIENCE, async { tokio::join!(flood, listen) }).await.expect("the session ends");
    let error = answers.iter().find(|text| text.starts_with("ERROR"));
    assert!(error.is_some_and(|text| text.contains("128")), "{:?}", answers.last());
    assert!(answers.iter().filter(|text| text.starts_with("MESSAGE")).count() <= 128);
}

/// SENDs without an end, whose replies nobody reads: after a while the pod reads no more of them, or ends the session.
async fn endless_send(address: SocketAddr, post: u64, time: Duration) -> usize {
    let mut session = session(address, Some(4_096)).await;
    session.send(Message::text("SUBSCRIBE\nid:replies\ndestination:/user/queue/replies\n\n\0")).await.unwrap();
    let (began, mut sent, mut held) = (Instant::now(), 0, false);
    // On until it is held back, and then for the rest of the time.
    while began.elapsed() < time || (!held && began.elapsed() < PATIENCE) {
        let frame = format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:{sent}\n\n\0");
        match timeout(Duration::from_millis(500), session.send(Message::text(frame))).await {
            Ok(Ok(())) => sent += 1,
            Ok(Err(_)) => return sent,
            Err(_) => held = true,
        }
    }
    assert!(held, "the pod read all of {sent} SENDs");
    sent
}

/// The bar is 5,000 half-open handshakes (`PUSHLAB_HALF_OPEN=5000`); what everybody runs is 1,000.
#[tokio::test(flavor = "multi_thread")]
async fn attacks_are_answered_and_cost_nobody_else() {
    let handshakes = std::env::var("PUSHLAB_HALF_OPEN").map_or(1_000, |n| n.parse().unwrap());
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let nats = NatsServer::start();
    let pod = PodProcess::start(&["--nats-url", &nats.url()]);
    let (address, post) = (pod.listen, pod.post().await);
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    let mut before = watch(&pod, &stop, 200).await;
    let rss = pod.rss_mib();

    let stop = tokio_util::sync::CancellationToken::new();
    let mut most_rss = rss;
    let attacks = async {
        let slow = half_open(address, handshakes);
        let others = async {
            giant_frame(address).await;
            million_headers(address).await;
            ten_thousand_subscribes(address, post).await;
            endless_send(address, post, Duration::from_secs(5)).await
        };
        let ((), sent) = tokio::join!(slow, others);
        stop.cancel();
        sent
    };
    let look = async {
        while !stop.is_cancelled() {
            most_rss = most_rss.max(pod.rss_mib());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (sent, mut during, ()) = tokio::join!(attacks, watch(&pod, &stop, 200), look);
    let grown = most_rss - rss;
    println!(
        "{handshakes} half-open handshakes, a frame of 1 GiB, 10^6 headers, 10,000 SUBSCRIBEs, {sent} SENDs unread: \
         like → witness p99 {:?} before, {:?} during; resident {rss:.1} MiB, at most {grown:+.1} MiB",
        p99(&mut before),
        p99(&mut during)
    );
    let bound = REST_MIB + handshakes as f64 * HALF_OPEN_KIB / 1024.0;
    assert!(grown < bound, "{grown:.1} MiB more, {bound:.1} are allowed");
}
