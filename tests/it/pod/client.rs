//! An SSE client over reqwest and a STOMP client over tungstenite, as simple as they can be.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use reqwest::header::{ACCEPT, HeaderMap};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async};

use super::{PATIENCE, TestPods};

/// A block of the stream: its fields, comments under the empty name.
#[derive(Debug, Default)]
pub(super) struct Event(pub(super) BTreeMap<String, String>);

impl Event {
    pub(super) fn id(&self) -> &str {
        self.0.get("id").map_or("", String::as_str)
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.0["data"]).unwrap()
    }
}

/// An open stream.
pub(super) struct Sse {
    response: reqwest::Response,
    text: String,
    ended: bool,
    /// The answer's headers.
    pub(super) headers: HeaderMap,
}

impl Sse {
    pub(super) async fn open(pods: &TestPods, pod: usize, path: &str) -> Self {
        Self::try_open(pods, pod, path, &[]).await.unwrap()
    }

    pub(super) async fn try_open(
        pods: &TestPods,
        pod: usize,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, reqwest::Response> {
        let mut request = pods.http.get(pods.url(pod, path)).header(ACCEPT, "text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = timeout(PATIENCE, request.send()).await.expect("an answer").unwrap();
        if response.status() != 200 {
            return Err(response);
        }
        let headers = response.headers().clone();
        assert_eq!(headers["content-type"], "text/event-stream");
        Ok(Self { response, text: String::new(), ended: false, headers })
    }

    /// The next block; `None` when the stream has ended cleanly. What follows the last blank line is a block too.
    pub(super) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let event = fields(block);
                self.text = rest.to_owned();
                return Some(event);
            }
            if self.ended {
                let left = std::mem::take(&mut self.text);
                return (!left.is_empty()).then(|| fields(&left));
            }
            match timeout(PATIENCE, self.response.chunk()).await.expect("an event in time").unwrap() {
                Some(piece) => self.text.push_str(std::str::from_utf8(&piece).unwrap()),
                None => self.ended = true,
            }
        }
    }

    /// The JSON of the next event.
    pub(super) async fn json(&mut self) -> Value {
        self.next().await.expect("an event").json()
    }

    /// Reads on until this version.
    pub(super) async fn until(&mut self, version: u64) -> Value {
        loop {
            let json = self.json().await;
            if json["version"].as_u64() >= Some(version) {
                return json;
            }
        }
    }
}

fn fields(block: &str) -> Event {
    let field = |line: &str| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        (name.to_owned(), value.strip_prefix(' ').unwrap_or(value).to_owned())
    };
    Event(block.lines().map(field).collect())
}

/// A STOMP frame.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frame {
    pub(super) command: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

impl Frame {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A session.
pub(super) struct Stomp {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    frames: VecDeque<Frame>,
    /// Heart-beats seen.
    pub(super) beats: u32,
}

/// What a session brings next.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    Frame(Frame),
    /// The close code.
    Closed(Option<u16>),
}

impl Stomp {
    /// A WebSocket without CONNECT.
    pub(super) async fn socket(address: SocketAddr) -> Self {
        Self::socket_over(TcpStream::connect(address).await.unwrap()).await
    }

    async fn socket_over(socket: TcpStream) -> Self {
        let address = socket.peer_addr().unwrap();
        let mut request = format!("ws://{address}/stomp").into_client_request().unwrap();
        let offer = "v10.stomp, v12.stomp, v11.stomp".parse().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", offer);
        let handshake = client_async(request, MaybeTlsStream::Plain(socket));
        let (socket, response) = timeout(PATIENCE, handshake).await.expect("a handshake").unwrap();
        assert_eq!(response.headers()["sec-websocket-protocol"], "v12.stomp");
        Self { socket, frames: VecDeque::new(), beats: 0 }
    }

    /// A connected session without heart-beats.
    pub(super) async fn open(address: SocketAddr) -> Self {
        Self::open_over(TcpStream::connect(address).await.unwrap()).await
    }

    /// The same over a socket of the test's own making.
    pub(super) async fn open_over(socket: TcpStream) -> Self {
        let mut session = Self::socket_over(socket).await;
        session.send("CONNECT\naccept-version:1.2\nhost:test\nheart-beat:0,0\n\n\0").await;
        assert_eq!(session.frame().await.command, "CONNECTED");
        session
    }

    /// The same, subscribed to a post's likes as `likes` and to its replies as `replies`; the snapshot.
    pub(super) async fn watching(address: SocketAddr, post: u64) -> (Self, Frame) {
        let mut session = Self::open(address).await;
        session.send("SUBSCRIBE\nid:replies\ndestination:/user/queue/replies\n\n\0").await;
        session.send(&format!("SUBSCRIBE\nid:likes\ndestination:/topic/posts.{post}.likes\n\n\0")).await;
        let snapshot = session.frame().await;
        assert_eq!((snapshot.command.as_str(), snapshot.header("subscription")), ("MESSAGE", "likes"));
        (session, snapshot)
    }

    /// Vanishes by a reset.
    pub(super) fn reset(self) {
        if let MaybeTlsStream::Plain(stream) = self.socket.get_ref() {
            stream.set_zero_linger().unwrap();
        }
    }

    pub(super) async fn send(&mut self, frame: &str) {
        self.socket.send(Message::text(frame)).await.unwrap();
    }

    pub(super) async fn next(&mut self) -> Next {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Next::Frame(frame);
            }
            match timeout(PATIENCE, self.socket.next()).await.expect("a message in time") {
                Some(Ok(Message::Text(text))) => self.read(&text),
                Some(Ok(Message::Close(frame))) => return Next::Closed(frame.map(|f| f.code.into())),
                Some(Ok(other)) => panic!("{other:?}"),
                Some(Err(_)) | None => return Next::Closed(None),
            }
        }
    }

    pub(super) async fn frame(&mut self) -> Frame {
        match self.next().await {
            Next::Frame(frame) => frame,
            Next::Closed(code) => panic!("closed with {code:?}"),
        }
    }

    fn read(&mut self, mut text: &str) {
        loop {
            while let Some(rest) = text.strip_prefix('\n') {
                self.beats += 1;
                text = rest;
            }
            if text.is_empty() {
                return;
            }
            let (head, rest) = text.split_once("\n\n").expect("a head");
            let (body, rest) = rest.split_once('\0').expect("a NUL");
            let (command, lines) = head.split_once('\n').unwrap_or((head, ""));
            let header = |line: &str| line.split_once(':').map(|(k, v)| (k.to_owned(), v.to_owned())).unwrap();
            self.frames.push_back(Frame {
                command: command.to_owned(),
                headers: lines.lines().map(header).collect(),
                body: body.to_owned(),
            });
            text = rest;
        }
    }
}
