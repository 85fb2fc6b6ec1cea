//! The two write channels as simple clients: one like on its way, the next after its answer.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::Door;
use crate::domain::PostId;
use crate::proto::stomp::client::{self, Frames, Incoming};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a like came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Counted, with this version.
    Counted(u64),
    /// Kept, to be counted.
    Pending,
    /// Not counted: come again.
    Refused,
}

/// A caller's connection.
#[derive(Debug)]
pub(super) enum Client {
    Http { connection: SendRequest<Empty<Bytes>>, host: String },
    Stomp { socket: Box<WebSocketStream<MaybeTlsStream<TcpStream>>>, likes: u64 },
}

impl Client {
    pub(super) async fn connect(door: Door, address: &str) -> anyhow::Result<Self> {
        timeout(PATIENCE, Self::open(door, address)).await.context("no connection in time")?
    }

    async fn open(door: Door, address: &str) -> anyhow::Result<Self> {
        if door == Door::Http {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (connection, driver) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(driver);
            return Ok(Self::Http { connection, host: address.into() });
        }
        let mut request = format!("ws://{address}/stomp").into_client_request()?;
        request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("v12.stomp"));
        let (mut socket, _) = connect_async(request).await?;
        socket.send(text(client::connect(address, 0, 0, None))?).await?;
        socket.send(text(client::subscribe_replies("replies", Some("subscribed")))?).await?;
        loop {
            let message = next(&mut socket).await?;
            for frame in Frames::new(&message) {
                match frame {
                    Incoming::Receipt { id: "subscribed" } => {
                        return Ok(Self::Stomp { socket: Box::new(socket), likes: 0 });
                    }
                    Incoming::Error { message, .. } => bail!("the session was refused: {message}"),
                    _ => {}
                }
            }
        }
    }

    pub(super) async fn like(&mut self, post: PostId) -> anyhow::Result<Answer> {
        let (status, body) = timeout(PATIENCE, self.ask(post)).await.context("no answer in time")??;
        match status {
            200 | 202 => {
                #[derive(Deserialize)]
                struct Body {
                    version: Option<u64>,
                    changed: Option<bool>,
                }
                let body: Body = serde_json::from_slice(&body)?;
                ensure!(body.changed != Some(false), "a like changed nothing");
                Ok(body.version.map_or(Answer::Pending, Answer::Counted))
            }
            503 => Ok(Answer::Refused),
            _ => bail!("status {status}: {}", String::from_utf8_lossy(&body)),
        }
    }

    /// Status and body of the answer.
    async fn ask(&mut self, post: PostId) -> anyhow::Result<(u16, Vec<u8>)> {
        match self {
            Self::Http { connection, host } => {
                let request = Request::post(format!("/posts/{post}/likes")).header(header::HOST, host.as_str());
                let answer = connection.send_request(request.body(Empty::new())?).await?;
                let status = answer.status().as_u16();
                Ok((status, answer.into_body().collect().await?.to_bytes().to_vec()))
            }
            Self::Stomp { socket, likes } => {
                *likes += 1;
                let number = likes.to_string();
                socket.send(text(client::like(post, false, &number, None, Some(&number)))?).await?;
                let (mut outcome, mut receipt) = (None, false);
                loop {
                    let message = next(socket).await?;
                    for frame in Frames::new(&message) {
                        match frame {
                            Incoming::Receipt { id } if id == number => receipt = true,
                            Incoming::Message { correlation_id, status, body, .. } if correlation_id == number => {
                                outcome = Some((status.parse().context("a reply without a status")?, body.to_vec()));
                            }
                            Incoming::Error { message, .. } => bail!("ERROR {message}"),
                            _ => {}
                        }
                    }
                    match outcome.take() {
                        Some((status, body)) if receipt || status >= 300 => return Ok((status, body)),
                        other => outcome = other,
                    }
                }
            }
        }
    }
}

fn text(frame: Vec<u8>) -> anyhow::Result<Message> {
    Ok(Message::text(String::from_utf8(frame)?))
}

async fn next(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> anyhow::Result<Vec<u8>> {
    loop {
        match socket.next().await.context("the pod closed")?? {
            Message::Text(text) => return Ok(text.as_bytes().to_vec()),
            Message::Binary(bytes) => return Ok(bytes.to_vec()),
            Message::Close(close) => bail!("the pod closed: {close:?}"),
            _ => {}
        }
    }
}
