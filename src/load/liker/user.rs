//! One liking user's connection: a keep-alive HTTP/1.1 connection, or a WebSocket with STOMP.

use std::io::Write;

use mio::net::TcpStream;
use serde::Deserialize;

use super::Channel;
use crate::domain::PostId;
use crate::load::http::{parse_answer, parse_head};
use crate::load::socket;
use crate::load::target::Target;
use crate::load::wire::{host, masked, upgrade};
use crate::proto::stomp::client::{self, Frames, Incoming};
use crate::proto::ws::{self, Opcode, Role};
use crate::result::Outcome;

/// An open, or opening, connection of a user.
pub(super) struct UserLink {
    pub(super) stream: TcpStream,
    pub(super) connected: bool,
    /// Can take a like.
    pub(super) ready: bool,
    pub(super) outbox: Vec<u8>,
    pub(super) last_read_us: u32,
    pub(super) last_beat_us: u32,
    input: Vec<u8>,
    state: State,
}

enum State {
    Http,
    /// The WebSocket handshake is on its way; then CONNECT is sent.
    Upgrade {
        connect: Vec<u8>,
    },
    Stomp {
        frames: ws::Decoder,
        /// What is known of the like on its way: its reply, its receipt.
        reply: Option<(Outcome, u32)>,
        receipt: bool,
    },
}

/// What came out of bytes that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// The user can take likes now.
    Ready,
    /// The like on its way ended so; its version, or 0.
    Answer(Outcome, u32),
}

/// The connection is over; in words, for nobody but a debugger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Over(pub(super) String);

/// The body of an answer, as far as it matters.
#[derive(Deserialize)]
struct Answer {
    version: u64,
    #[serde(default = "yes")]
    changed: bool,
}

const fn yes() -> bool {
    true
}

/// The receipt of the subscription to replies.
const SUBSCRIBED: &str = "replies";

impl UserLink {
    /// A connection that begins to open; its first bytes are in its outbox.
    pub(super) fn open(channel: Channel, target: &Target, heartbeat_ms: u32, now: u32) -> std::io::Result<Self> {
        let stream = socket::connect(target.addr, None)?;
        let mut outbox = Vec::new();
        let state = match channel {
            Channel::Post => State::Http,
            Channel::Send => {
                upgrade(&target.authority, &target.prefix, &mut outbox);
                State::Upgrade {
                    connect: client::connect(
                        host(&target.authority),
                        heartbeat_ms,
                        heartbeat_ms,
                        target.authorization.as_deref(),
                    ),
                }
            }
        };
        let (last_read_us, last_beat_us) = (now, now);
        let (connected, ready, input) = (false, false, Vec::new());
        Ok(Self { stream, connected, ready, outbox, last_read_us, last_beat_us, input, state })
    }

    /// Puts a like into the outbox.
    pub(super) fn request(&mut self, target: &Target, post: PostId, number: u32, key: Option<&str>) {
        match &mut self.state {
            State::Http => {
                let Target { authority, prefix, authorization, .. } = target;
                let authorization = Target::authorization_line(authorization.as_deref());
                let _ = write!(
                    self.outbox,
                    "POST {prefix}/posts/{post}/likes HTTP/1.1\r\nHost: {authority}\r\n{authorization}"
                );
                if let Some(key) = key {
                    let _ = write!(self.outbox, "Idempotency-Key: {key}\r\n");
                }
                self.outbox.extend_from_slice(b"Content-Length: 0\r\n\r\n");
            }
            State::Stomp { reply, receipt, .. } => {
                (*reply, *receipt) = (None, false);
                let number = number.to_string();
                let frame = client::like(post, false, &number, key, Some(&number));
                self.outbox.extend(masked(Opcode::Text, &frame));
            }
            State::Upgrade { .. } => debug_assert!(false, "a user that is not ready takes no like"),
        }
    }

    /// A client's heart-beat, over STOMP.
    pub(super) fn heartbeat(&mut self) {
        if matches!(self.state, State::Stomp { .. }) {
            self.outbox.extend(masked(Opcode::Text, b"\n"));
        }
    }

    /// Whether silence means that the connection is dead.
    pub(super) const fn beats(&self) -> bool {
        !matches!(self.state, State::Http)
    }

    /// Writes what can be written; true when an HTTP user has just become ready.
    pub(super) fn flush(&mut self) -> Result<bool, Over> {
        let mut ready = false;
        if !self.connected {
            if let Ok(Some(error)) | Err(error) = self.stream.take_error() {
                return Err(Over(socket::word(&error)));
            }
            if self.stream.peer_addr().is_err() {
                return Ok(false);
            }
            self.connected = true;
            ready = matches!(self.state, State::Http);
            self.ready |= ready;
        }
        socket::write_some(&self.stream, &mut self.outbox).map_err(|e| Over(socket::word(&e)))?;
        Ok(ready)
    }

    /// Takes bytes off the wire; `number` is the like on its way. Empty bytes: the peer ended the connection.
    pub(super) fn feed(&mut self, bytes: &[u8], number: Option<u32>) -> Result<Option<News>, Over> {
        match &mut self.state {
            State::Http => self.feed_http(bytes, number),
            _ if bytes.is_empty() => Err(Over("eof".into())),
            State::Upgrade { connect } => {
                self.input.extend_from_slice(bytes);
                let Some((head, used)) = parse_head(&self.input).map_err(|e| Over(e.to_string()))? else {
                    return Ok(None);
                };
                if head.status != 101 {
                    return Err(Over(format!("refused: {}", head.status)));
                }
                self.outbox.extend(masked(Opcode::Text, connect));
                let frames = ws::Decoder::new(Role::Client, ws::Limits::default());
                self.state = State::Stomp { frames, reply: None, receipt: false };
                let rest = self.input.split_off(used);
                self.input = Vec::new();
                self.feed_stomp(&rest, number)
            }
            State::Stomp { .. } => self.feed_stomp(bytes, number),
        }
    }

    fn feed_http(&mut self, bytes: &[u8], number: Option<u32>) -> Result<Option<News>, Over> {
        self.input.extend_from_slice(bytes);
        let answer = parse_answer(&self.input, bytes.is_empty()).map_err(|e| Over(e.to_string()))?;
        let Some((head, body, used)) = answer else {
            return if bytes.is_empty() { Err(Over("eof".into())) } else { Ok(None) };
        };
        self.input.drain(..used);
        // The server closes after this answer: no further like may be sent here.
        self.ready = !head.close;
        if number.is_none() {
            return Err(Over(format!("an answer to nothing: {}", head.status)));
        }
        let (outcome, version) = judge(head.status, &body);
        Ok(Some(News::Answer(outcome, version)))
    }

    fn feed_stomp(&mut self, mut bytes: &[u8], number: Option<u32>) -> Result<Option<News>, Over> {
        let State::Stomp { frames, reply, receipt } = &mut self.state else { return Ok(None) };
        let number = number.map(|number| number.to_string());
        let mut news = None;
        while let Some(event) = frames.next(&mut bytes).map_err(|e| Over(e.reason.into()))? {
            let message = match event {
                ws::Event::Message { data, .. } => data,
                ws::Event::Ping(payload) => {
                    self.outbox.extend(masked(Opcode::Pong, &payload));
                    continue;
                }
                ws::Event::Pong(_) => continue,
                ws::Event::Close { code, reason } => return Err(Over(format!("closed {code:?} {reason}"))),
            };
            for frame in Frames::new(&message) {
                match frame {
                    Incoming::Connected { .. } => {
                        let subscribe = client::subscribe_replies("replies", Some(SUBSCRIBED));
                        self.outbox.extend(masked(Opcode::Text, &subscribe));
                    }
                    Incoming::Receipt { id } if id == SUBSCRIBED => {
                        self.ready = true;
                        news = Some(News::Ready);
                    }
                    Incoming::Receipt { id } if Some(id) == number.as_deref() => *receipt = true,
                    Incoming::Message { correlation_id, status, body, .. }
                        if Some(correlation_id) == number.as_deref() =>
                    {
                        *reply = Some(judge(status.parse().unwrap_or(0), body));
                    }
                    Incoming::Error { receipt_id, .. } if Some(receipt_id) == number.as_deref() => {
                        // The session ends with it, and says that this like was not done.
                        self.ready = false;
                        return Ok(Some(News::Answer(Outcome::Failed, 0)));
                    }
                    Incoming::Error { message, .. } => return Err(Over(format!("ERROR {message}"))),
                    Incoming::HeartBeat | Incoming::Receipt { .. } | Incoming::Message { .. } => {}
                }
            }
        }
        // Done means: its reply is there and, if it succeeded, its receipt too.
        match *reply {
            Some((Outcome::Ok, version)) if *receipt => {
                *reply = None;
                Ok(Some(News::Answer(Outcome::Ok, version)))
            }
            Some((outcome, version)) if outcome != Outcome::Ok => {
                *reply = None;
                Ok(Some(News::Answer(outcome, version)))
            }
            _ => Ok(news),
        }
    }
}

/// What an answer says about its like. An edge's 502 or 504, and any 5xx but 503, leaves open whether it was counted;
/// so does 409, which a repeated like gets while its first try is still on its way.
fn judge(status: u16, body: &[u8]) -> (Outcome, u32) {
    match status {
        200..=299 => match serde_json::from_slice::<Answer>(body) {
            Ok(answer) if answer.changed => (Outcome::Ok, u32::try_from(answer.version).unwrap_or(u32::MAX)),
            Ok(_) => (Outcome::Ok, 0),
            Err(_) => (Outcome::Unknown, 0),
        },
        400..=408 | 410..=499 | 503 => (Outcome::Failed, 0),
        _ => (Outcome::Unknown, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A user's link whose socket leads nowhere.
    fn link(channel: Channel) -> (UserLink, Target, std::net::TcpListener) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        (UserLink::open(channel, &target, 10_000, 0).unwrap(), target, listener)
    }

    const POST: PostId = PostId::new(7).unwrap();

    #[test]
    fn an_http_like_and_its_answer() {
        let (mut link, target, _listener) = link(Channel::Post);
        link.request(&target, POST, 3, Some("k-3"));
        let request = String::from_utf8(link.outbox.clone()).unwrap();
        assert!(request.starts_with("POST /posts/7/likes HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
        assert!(request.ends_with("\r\nIdempotency-Key: k-3\r\nContent-Length: 0\r\n\r\n"), "{request}");
        let body = r#"{"postId":7,"likes":4,"version":4,"changed":true}"#;
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        assert_eq!(link.feed(&answer.as_bytes()[..30], Some(3)), Ok(None));
        assert_eq!(link.feed(&answer.as_bytes()[30..], Some(3)), Ok(Some(News::Answer(Outcome::Ok, 4))));
        assert!(link.feed(b"", None).is_err());
    }

    #[test]
    fn answers_are_judged() {
        let body = br#"{"postId":7,"likes":4,"version":4,"changed":false}"#;
        assert_eq!(judge(200, body), (Outcome::Ok, 0));
        assert_eq!(judge(200, b"<html>"), (Outcome::Unknown, 0));
        for (status, outcome) in [
            (503, Outcome::Failed),
            (404, Outcome::Failed),
            (429, Outcome::Failed),
            (409, Outcome::Unknown),
            (500, Outcome::Unknown),
            (502, Outcome::Unknown),
            (504, Outcome::Unknown),
        ] {
            assert_eq!(judge(status, b"").0, outcome, "{status}");
        }
    }

    fn frame(text: &str) -> bytes::Bytes {
        ws::server_frame(Opcode::Text, text.as_bytes())
    }

    /// A STOMP user that is ready.
    fn stomp() -> (UserLink, Target, std::net::TcpListener) {
        let (mut link, target, listener) = link(Channel::Send);
        assert_eq!(link.feed(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", None), Ok(None));
        assert_eq!(link.feed(&frame("CONNECTED\nversion:1.2\n\n\0"), None), Ok(None));
        assert_eq!(link.feed(&frame("RECEIPT\nreceipt-id:replies\n\n\0"), None), Ok(Some(News::Ready)));
        link.outbox.clear();
        link.request(&target, POST, 9, None);
        assert!(!link.outbox.is_empty());
        (link, target, listener)
    }

    const REPLY: &str =
        "MESSAGE\nsubscription:replies\nmessage-id:1\ndestination:/user/queue/replies\ncorrelation-id:9\n";

    #[test]
    fn a_stomp_like_is_ok_when_reply_and_receipt_are_there_in_any_order() {
        let reply = format!("{REPLY}status:200\n\n{}\0", r#"{"postId":7,"likes":5,"version":5,"changed":true}"#);
        let receipt = "RECEIPT\nreceipt-id:9\n\n\0";
        for (first, second) in [(&*reply, receipt), (receipt, &*reply)] {
            let (mut link, ..) = stomp();
            assert_eq!(link.feed(&frame(first), Some(9)), Ok(None));
            assert_eq!(link.feed(&frame(second), Some(9)), Ok(Some(News::Answer(Outcome::Ok, 5))));
        }
    }

    #[test]
    fn a_stomp_like_that_failed_has_a_reply_and_no_receipt() {
        let (mut link, ..) = stomp();
        let reply = format!("{REPLY}status:503\n\n{{}}\0");
        assert_eq!(link.feed(&frame(&reply), Some(9)), Ok(Some(News::Answer(Outcome::Failed, 0))));
    }
}
