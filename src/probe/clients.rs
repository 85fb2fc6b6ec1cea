//! The two clients of the probe: a stream over reqwest, a session over tokio-tungstenite.

use futures_util::{SinkExt, StreamExt};
use reqwest::{Client, Response};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{UNTRUSTED, Wrong, by, is_tls, success, unreachable};
use crate::bearer::Bearer;
use crate::domain::{PostId, Update};
use crate::proto::sse;
use crate::proto::stomp::client::{self, Frames, Incoming};

/// A post's stream.
#[derive(Debug)]
pub(crate) struct SseClient {
    response: Response,
    decoder: sse::Decoder,
    events: std::collections::VecDeque<sse::Event>,
    last_id: String,
}

impl SseClient {
    /// Opens the stream and waits for the snapshot, which proves that nothing in between holds it back.
    pub(crate) async fn open(client: &Client, base: &str, post: PostId) -> Result<(Self, String), Wrong> {
        let (stream, _, told) = Self::begin(client, base, post, None).await?;
        Ok((stream, told))
    }

    /// The same for a client that has seen `last_id`, with the first update.
    pub(super) async fn begin(
        client: &Client,
        base: &str,
        post: PostId,
        last_id: Option<&str>,
    ) -> Result<(Self, Update, String), Wrong> {
        let request = client.get(format!("{base}/posts/{post}/likes")).header("accept", "text/event-stream");
        let request = last_id.into_iter().fold(request, |request, id| request.header("last-event-id", id));
        let response = success(request.send().await.map_err(|e| unreachable(&e))?).await?;
        let content_type = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !content_type.starts_with("text/event-stream") {
            return Err(Wrong::new(format!("the answer is {content_type:?}, not text/event-stream")));
        }
        let by = by(&response);
        let (decoder, events) = (sse::Decoder::new(64 * 1024), Default::default());
        let mut stream = Self { response, decoder, events, last_id: String::new() };
        let first = stream.next().await?;
        Ok((stream, first, format!("stream opened{by}, first event at version {}", first.version())))
    }

    /// The id of the last update.
    pub(super) fn last_id(&self) -> &str {
        &self.last_id
    }

    /// The next update.
    pub(crate) async fn next(&mut self) -> Result<Update, Wrong> {
        loop {
            if let Some(event) = self.events.pop_front() {
                self.last_id = event.id;
                let update = Update::from_json(event.data.as_bytes());
                return update.map_err(|e| Wrong::new(format!("an event of another kind: {e}")));
            }
            let chunk = self.response.chunk().await.map_err(|e| unreachable(&e))?;
            let chunk = chunk.ok_or_else(|| {
                Wrong::new("the stream ended").hint("the pod is draining, or something in between ends streams")
            })?;
            let events = &mut self.events;
            let fed = self.decoder.feed_with(&chunk, |e| {
                events.push_back(sse::Event { id: e.id.into(), event: e.event.into(), data: e.data.into() });
            });
            fed.map_err(Wrong::new)?;
        }
    }
}

/// A session with one subscription.
#[derive(Debug)]
pub(crate) struct StompClient {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    updates: std::collections::VecDeque<Update>,
    receipt: bool,
}

impl StompClient {
    /// Opens the session, subscribes and waits for the snapshot.
    pub(crate) async fn open(base: &str, post: PostId, bearer: Option<&Bearer>) -> Result<(Self, String), Wrong> {
        let (scheme, rest) = match base.strip_prefix("https://") {
            Some(rest) => ("wss", rest),
            None => ("ws", base.strip_prefix("http://").unwrap_or(base)),
        };
        let mut request = format!("{scheme}://{rest}/stomp").into_client_request().map_err(Wrong::new)?;
        let offered = HeaderValue::from_static("v12.stomp, v11.stomp, v10.stomp");
        request.headers_mut().insert("sec-websocket-protocol", offered);
        let (socket, response) = connect_async(request).await.map_err(|e| handshake(&e))?;
        let protocol = response.headers().get("sec-websocket-protocol").and_then(|v| v.to_str().ok());
        if protocol != Some("v12.stomp") {
            return Err(Wrong::new(format!("the handshake chose {protocol:?} instead of v12.stomp")));
        }
        let pod = response.headers().get("x-pushlab-pod").and_then(|v| v.to_str().ok());
        let by = pod.map_or_else(String::new, |pod| format!(" by {pod}"));
        let mut session = Self { socket, updates: Default::default(), receipt: false };
        let authorization = bearer.map(Bearer::authorization);
        let host = rest.split(['/', ':']).next().unwrap_or("pushlab");
        session.send(client::connect(host, 0, 10_000, authorization.as_deref())).await?;
        session.send(client::subscribe("probe", post, None, None)).await?;
        let first = session.next().await?;
        Ok((session, format!("session opened{by}, first message at version {}", first.version())))
    }

    /// The next update.
    pub(crate) async fn next(&mut self) -> Result<Update, Wrong> {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return Ok(update);
            }
            self.receive().await?;
        }
    }

    /// DISCONNECT, its RECEIPT, and the closing handshake.
    pub(super) async fn leave(mut self) -> Result<((), String), Wrong> {
        self.send(client::disconnect(Some("bye"))).await?;
        while !self.receipt {
            self.receive().await?;
        }
        let code = loop {
            match self.socket.next().await {
                Some(Ok(Message::Close(frame))) => break frame.map(|f| u16::from(f.code)),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Wrong::new(error)),
                None => return Err(Wrong::new("the connection ended without a close frame")),
            }
        };
        match code {
            Some(1000) | None => Ok(((), "DISCONNECT got its RECEIPT and the close".into())),
            Some(code) => Err(Wrong::new(format!("close code {code}"))),
        }
    }

    async fn send(&mut self, frame: Vec<u8>) -> Result<(), Wrong> {
        let text = String::from_utf8(frame).map_err(Wrong::new)?;
        self.socket.send(Message::text(text)).await.map_err(Wrong::new)
    }

    async fn receive(&mut self) -> Result<(), Wrong> {
        let message = match self.socket.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(Wrong::new(error)),
            None => return Err(Wrong::new("the connection ended")),
        };
        let payload = match &message {
            Message::Text(text) => text.as_bytes(),
            Message::Binary(bytes) => bytes,
            Message::Close(frame) => {
                let told = frame.as_ref().map_or_else(String::new, |f| format!(" with {} {}", f.code, f.reason));
                return Err(Wrong::new(format!("the service closed{told}")));
            }
            _ => return Ok(()),
        };
        let mut frames = Frames::new(payload);
        for frame in &mut frames {
            match frame {
                Incoming::Message { body, .. } => {
                    let update = Update::from_json(body);
                    let update = update.map_err(|e| Wrong::new(format!("a MESSAGE of another kind: {e}")))?;
                    self.updates.push_back(update);
                }
                Incoming::Error { message, body, .. } => {
                    let body = String::from_utf8_lossy(body);
                    return Err(Wrong::new(format!("ERROR {message}: {}", body.trim())));
                }
                Incoming::Receipt { id } => self.receipt = id == "bye",
                Incoming::Connected { .. } | Incoming::HeartBeat => {}
            }
        }
        if frames.broken { Err(Wrong::new("a WebSocket message that is no STOMP frame")) } else { Ok(()) }
    }
}

fn handshake(error: &tungstenite::Error) -> Wrong {
    match error {
        tungstenite::Error::Io(cause) if is_tls(cause) => Wrong::new(cause).hint(UNTRUSTED),
        tungstenite::Error::Io(cause) => {
            Wrong::new(cause).hint("nothing answers there: is the service running, is the port right?")
        }
        tungstenite::Error::Http(response) if response.status() == 503 => {
            Wrong::new("HTTP 503").hint("the pod is not ready, full or draining: see /readyz on its admin port")
        }
        tungstenite::Error::Http(response) => Wrong::new(format!("HTTP {} instead of 101", response.status())),
        other => Wrong::new(other),
    }
}
