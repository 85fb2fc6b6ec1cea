//! A viewer's side of both transports without sockets: bytes in, updates out, and what to send meanwhile.

use std::io::Write;

use flate2::write::GzDecoder;

use super::http::{Head, parse_head};
use super::target::Target;
use crate::domain::{PostId, Transport};
use crate::proto::sse::ChunkDecoder;
use crate::proto::stomp::client::{self, Frames, Incoming};
use crate::proto::ws::{self, Opcode, Role};
use crate::proto::{sse, stomp};

/// Largest event, frame and message accepted.
const LARGEST: usize = 64 * 1024;
/// The id of a viewer's only subscription.
const SUBSCRIPTION: &str = "0";
/// Sec-WebSocket-Key: any 16 bytes in base64; the answer is not verified by a client that opened the socket itself.
const KEY: &str = "cHVzaGxhYiBsb2FkICEhIQ==";

/// Why a connection ended, as [`crate::result::Session::reason`] says it, and how long the server asks to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    /// `eof`, `reset`, `silent`, `refused`, `error`, or the server's own word.
    pub(super) reason: String,
    /// The server's wish in ms, from `Retry-After` or `retry:`.
    pub(super) retry_ms: Option<u32>,
}

impl Ended {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_ms: None }
    }
}

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) transport: Transport,
    pub(super) authority: &'a str,
    pub(super) prefix: &'a str,
    /// `Authorization`, for a service that asks for it.
    pub(super) authorization: Option<&'a str>,
    pub(super) post: PostId,
    /// The last id seen by the previous connection; empty: none.
    pub(super) last_id: &'a str,
    /// Heart-beat period offered and wanted over STOMP, in ms.
    pub(super) heartbeat_ms: u32,
    /// Whether a compressed stream is accepted.
    pub(super) gzip: bool,
    /// Whether heartbeats are asked for as named events (SSE).
    pub(super) named_beats: bool,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Wire {
    state: State,
    /// The pod that answered.
    pub(super) pod: Option<String>,
    /// Whether an answer's head has come, whatever it said.
    pub(super) answered: bool,
    /// Heartbeats that came as named events.
    pub(super) named_beats: u64,
}

#[derive(Debug)]
enum State {
    /// Waiting for the response head; what to do then.
    Head {
        bytes: Vec<u8>,
        next: Next,
    },
    Sse {
        chunks: Option<ChunkDecoder>,
        /// Bytes that follow, when the answer told its length (a stream that ends at once).
        left: Option<usize>,
        inflate: Option<Box<GzDecoder<Vec<u8>>>>,
        events: sse::Decoder,
    },
    Stomp {
        frames: ws::Decoder,
        subscribe: Vec<u8>,
    },
}

#[derive(Debug)]
enum Next {
    Sse,
    Stomp { connect: Vec<u8>, subscribe: Vec<u8> },
}

impl Wire {
    /// A new connection; the bytes to send as soon as it is open are appended to `out`.
    pub(super) fn open(ask: &Ask<'_>, out: &mut Vec<u8>) -> Self {
        let Ask { authority, prefix, authorization, post, last_id, .. } = ask;
        let authorization = *authorization;
        let next = match ask.transport {
            Transport::Sse => {
                let query = if ask.named_beats { "?heartbeat=event" } else { "" };
                let _ = write!(
                    out,
                    "GET {prefix}/posts/{post}/likes{query} HTTP/1.1\r\nHost: {authority}\r\nAccept: text/event-stream\r\n\
                     Cache-Control: no-cache\r\n{}",
                    Target::authorization_line(authorization)
                );
                if ask.gzip {
                    out.extend_from_slice(b"Accept-Encoding: gzip\r\n");
                }
                if !last_id.is_empty() {
                    let _ = write!(out, "Last-Event-ID: {last_id}\r\n");
                }
                out.extend_from_slice(b"\r\n");
                Next::Sse
            }
            Transport::Stomp => {
                upgrade(authority, prefix, out);
                let last = Some(*last_id).filter(|id| !id.is_empty());
                Next::Stomp {
                    connect: client::connect(host(authority), ask.heartbeat_ms, ask.heartbeat_ms, authorization),
                    subscribe: client::subscribe(SUBSCRIPTION, *post, last, None),
                }
            }
        };
        Self { state: State::Head { bytes: Vec::new(), next }, pod: None, answered: false, named_beats: 0 }
    }

    /// Takes bytes off the wire. `on_update(body, id)` is called for each event or MESSAGE; what has to be sent back is
    /// appended to `out`.
    ///
    /// # Errors
    /// [`Ended`]: the connection is over.
    pub(super) fn feed(
        &mut self,
        mut input: &[u8],
        out: &mut Vec<u8>,
        mut on_update: impl FnMut(&[u8], &str),
    ) -> Result<(), Ended> {
        if let State::Head { bytes, next } = &mut self.state {
            bytes.extend_from_slice(input);
            let Some((head, used)) = parse_head(bytes).map_err(|e| Ended::new(format!("error: {e}")))? else {
                return Ok(());
            };
            self.answered = true;
            self.pod.clone_from(&head.pod);
            let rest = bytes.split_off(used);
            self.state = begin(&head, next, out)?;
            return self.feed(&rest, out, on_update);
        }
        let beats = &mut self.named_beats;
        let mut on_event = |event: sse::EventRef<'_>| match event.event {
            "heartbeat" => *beats += 1,
            _ => on_update(event.data.as_bytes(), event.id),
        };
        match &mut self.state {
            State::Sse { chunks: None, left, inflate, events } => {
                let take = left.map_or(input.len(), |left| left.min(input.len()));
                read_events(&input[..take], inflate, events, &mut on_event)?;
                *left = left.map(|left| left - take);
                if *left == Some(0) { Err(Ended { reason: "eof".into(), retry_ms: wish(events) }) } else { Ok(()) }
            }
            State::Sse { chunks: Some(chunks), inflate, events, .. } => {
                while let Some(piece) = chunks.next(&mut input).map_err(|e| Ended::new(format!("error: {e}")))? {
                    read_events(piece, inflate, events, &mut on_event)?;
                }
                let ended = Ended { reason: "eof".into(), retry_ms: wish(events) };
                if chunks.is_end() { Err(ended) } else { Ok(()) }
            }
            State::Stomp { frames, subscribe } => loop {
                let event = frames.next(&mut input).map_err(|e| Ended::new(format!("error: {}", e.reason)))?;
                match event {
                    None => return Ok(()),
                    Some(ws::Event::Message { data, .. }) => read_frames(&data, subscribe, out, &mut on_update)?,
                    Some(ws::Event::Ping(payload)) => out.extend(masked(Opcode::Pong, &payload)),
                    Some(ws::Event::Pong(_)) => {}
                    Some(ws::Event::Close { code, reason }) => {
                        let code = code.map_or_else(String::new, |code| format!(" {code}"));
                        return Err(Ended::new(format!("closed{code} {reason}").trim_end().to_owned()));
                    }
                }
            },
            State::Head { .. } => unreachable!("handled above"),
        }
    }

    /// The reason when the peer ended the TCP connection.
    pub(super) fn eof(&self) -> Ended {
        match &self.state {
            State::Sse { events, .. } => Ended { reason: "eof".into(), retry_ms: wish(events) },
            _ => Ended::new("eof"),
        }
    }

    /// A STOMP client's heart-beat; SSE has none in this direction.
    pub(super) fn heartbeat(&self, out: &mut Vec<u8>) {
        if matches!(self.state, State::Stomp { .. }) {
            out.extend(masked(Opcode::Text, b"\n"));
        }
    }
}

/// The wish in the last `retry:`.
fn wish(events: &sse::Decoder) -> Option<u32> {
    events.retry.map(|ms| u32::try_from(ms).unwrap_or(u32::MAX))
}

/// A client's frame.
pub(super) fn masked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    ws::client_frame(opcode, payload, rand::random())
}

/// The request that turns a connection into a WebSocket with STOMP.
pub(super) fn upgrade(authority: &str, prefix: &str, out: &mut Vec<u8>) {
    let protocol = stomp::Version::V12.subprotocol();
    let _ = write!(
        out,
        "GET {prefix}/stomp HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
}

/// The STOMP virtual host: the authority without its port (a colon in a header would need escaping).
pub(super) fn host(authority: &str) -> &str {
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

/// The response head is there.
fn begin(head: &Head, next: &mut Next, out: &mut Vec<u8>) -> Result<State, Ended> {
    let refused = |reason: &str| Ended {
        reason: reason.into(),
        retry_ms: head.retry_after_s.map(|seconds| seconds.saturating_mul(1_000)),
    };
    match next {
        Next::Sse if head.status != 200 => Err(refused("refused")),
        Next::Sse if !head.content_type.starts_with("text/event-stream") => {
            Err(Ended::new(format!("error: content-type {}", head.content_type)))
        }
        Next::Sse => Ok(State::Sse {
            chunks: head.chunked.then(ChunkDecoder::new),
            left: head.length,
            inflate: head.gzip.then(|| Box::new(GzDecoder::new(Vec::new()))),
            events: sse::Decoder::new(LARGEST),
        }),
        Next::Stomp { .. } if head.status != 101 => Err(refused("refused")),
        Next::Stomp { connect, subscribe } => {
            out.extend(masked(Opcode::Text, connect));
            let frames = ws::Decoder::new(Role::Client, ws::Limits::default());
            Ok(State::Stomp { frames, subscribe: std::mem::take(subscribe) })
        }
    }
}

fn read_events(
    piece: &[u8],
    inflate: &mut Option<Box<GzDecoder<Vec<u8>>>>,
    events: &mut sse::Decoder,
    on_event: &mut impl FnMut(sse::EventRef<'_>),
) -> Result<(), Ended> {
    let mut read = |bytes: &[u8]| {
        let fed = events.feed_with(bytes, &mut *on_event);
        fed.map_err(|e| Ended::new(format!("error: {e}")))
    };
    let Some(inflate) = inflate else { return read(piece) };
    // Both steps give out whatever the sender flushed so far.
    let inflated = inflate.write_all(piece).and_then(|()| inflate.flush());
    inflated.map_err(|e| Ended::new(format!("error: gzip: {e}")))?;
    let bytes = std::mem::take(inflate.get_mut());
    read(&bytes)
}

fn read_frames(
    message: &[u8],
    subscribe: &[u8],
    out: &mut Vec<u8>,
    on_update: &mut impl FnMut(&[u8], &str),
) -> Result<(), Ended> {
    let mut frames = Frames::new(message);
    for frame in &mut frames {
        match frame {
            Incoming::Message { message_id, body, .. } => on_update(body, message_id),
            Incoming::Connected { .. } => out.extend(masked(Opcode::Text, subscribe)),
            Incoming::Error { message, .. } => return Err(Ended::new(format!("error: {message}"))),
            Incoming::HeartBeat | Incoming::Receipt { .. } => {}
        }
    }
    if frames.broken { Err(Ended::new("error: not a STOMP frame")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{LikesState, Update, Version};

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\
                        X-Pushlab-Pod: pod-2\r\n\r\n";

    fn ask(transport: Transport, last_id: &str) -> Ask<'_> {
        let post = PostId::new(7).unwrap();
        Ask {
            transport,
            authority: "here:1",
            prefix: "/p",
            authorization: None,
            post,
            last_id,
            heartbeat_ms: 10_000,
            gzip: false,
            named_beats: false,
        }
    }

    fn snapshot(version: u64) -> String {
        let state = LikesState { post_id: PostId::new(7).unwrap(), likes: version, version: Version(version) };
        sse::encode(&Update::Snapshot(state), Some(&format!("00000001.{version}")))
    }

    /// Feeds `bytes` in pieces of `size`; returns (ids seen, bytes sent back, end).
    fn feed(wire: &mut Wire, bytes: &[u8], size: usize) -> (Vec<String>, Vec<u8>, Result<(), Ended>) {
        let (mut ids, mut out) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(size) {
            if let Err(ended) = wire.feed(piece, &mut out, |_, id| ids.push(id.to_owned())) {
                return (ids, out, Err(ended));
            }
        }
        (ids, out, Ok(()))
    }

    #[test]
    fn an_sse_stream_however_it_is_cut() {
        let mut request = Vec::new();
        let one = Wire::open(&ask(Transport::Sse, "00000001.4"), &mut request);
        let request = String::from_utf8(request).unwrap();
        assert!(request.starts_with("GET /p/posts/7/likes HTTP/1.1\r\nHost: here:1\r\nAccept: text/event-stream\r\n"));
        assert!(request.ends_with("\r\nLast-Event-ID: 00000001.4\r\n\r\n"));
        drop(one);
        let mut bytes = HEAD.as_bytes().to_vec();
        bytes.extend(sse::chunk(snapshot(5).as_bytes()));
        bytes.extend(sse::chunk(sse::HEARTBEAT.as_bytes()));
        bytes.extend(sse::chunk(snapshot(6).as_bytes()));
        bytes.extend(sse::chunk(sse::retry(700).as_bytes()));
        bytes.extend(sse::LAST_CHUNK);
        for size in [1, 2, 3, 7, 50, 1_000] {
            let mut wire = Wire::open(&ask(Transport::Sse, ""), &mut Vec::new());
            let (ids, out, end) = feed(&mut wire, &bytes, size);
            assert_eq!(ids, ["00000001.5", "00000001.6"], "pieces of {size}");
            assert_eq!(end, Err(Ended { reason: "eof".into(), retry_ms: Some(700) }));
            assert_eq!((wire.pod.as_deref(), out.len()), (Some("pod-2"), 0));
        }
    }

    #[test]
    fn a_compressed_stream_is_read_as_it_is_flushed() {
        let head = HEAD.replace("X-Pushlab-Pod: pod-2", "Content-Encoding: gzip");
        let mut wire = Wire::open(&Ask { gzip: true, ..ask(Transport::Sse, "") }, &mut Vec::new());
        assert_eq!(feed(&mut wire, head.as_bytes(), 10).2, Ok(()));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        for version in 5..8 {
            gzip.write_all(snapshot(version).as_bytes()).unwrap();
            gzip.flush().unwrap();
            let bytes = std::mem::take(gzip.get_mut());
            assert_eq!(feed(&mut wire, &sse::chunk(&bytes), 9).0, [format!("00000001.{version}")]);
        }
    }

    #[test]
    fn a_stream_that_told_its_length_ends_with_it() {
        for body in ["", "retry: 652\n\n"] {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {}\r\n\r\n", body.len());
            let mut wire = Wire::open(&ask(Transport::Sse, ""), &mut Vec::new());
            let end = feed(&mut wire, (head + body).as_bytes(), 5).2;
            assert_eq!(end, Err(Ended { reason: "eof".into(), retry_ms: (!body.is_empty()).then_some(652) }));
        }
    }

    #[test]
    fn a_refusal_carries_the_servers_wish() {
        for transport in Transport::ALL {
            let mut wire = Wire::open(&ask(transport, ""), &mut Vec::new());
            let answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n";
            let end = feed(&mut wire, answer, 20).2;
            assert_eq!(end, Err(Ended { reason: "refused".into(), retry_ms: Some(2_000) }));
        }
    }

    #[test]
    fn a_stomp_session_connects_then_subscribes_and_answers_pings() {
        let mut request = Vec::new();
        let mut wire = Wire::open(&ask(Transport::Stomp, "00000001.7.4"), &mut request);
        assert!(request.starts_with(b"GET /p/stomp HTTP/1.1\r\n"));
        let (_, out, _) = feed(&mut wire, b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 1_000);
        assert_eq!(sent(&out), ["CONNECT\naccept-version:1.2,1.1,1.0\nhost:here\nheart-beat:10000,10000\n\n\0"]);
        let connected = ws::server_frame(Opcode::Text, b"CONNECTED\nversion:1.2\nheart-beat:10000,10000\n\n\0");
        let (_, out, _) = feed(&mut wire, &connected, 7);
        let subscribe = "SUBSCRIBE\nid:0\ndestination:/topic/posts.7.likes\nlast-version:00000001.7.4\n\n\0";
        assert_eq!(sent(&out), [subscribe]);
        let (_, out, _) = feed(&mut wire, &ws::server_frame(Opcode::Ping, b"?"), 7);
        assert_eq!(sent(&out), ["?"]);
        let mut beat = Vec::new();
        wire.heartbeat(&mut beat);
        assert_eq!(sent(&beat), ["\n"]);
        let message = "MESSAGE\nsubscription:0\nmessage-id:00000001.7.9\ndestination:/topic/posts.7.likes\n\
                       content-length:2\n\n{}\0";
        let (ids, ..) = feed(&mut wire, &ws::server_frame(Opcode::Text, message.as_bytes()), 11);
        assert_eq!(ids, ["00000001.7.9"]);
        let close = ws::server_frame(Opcode::Close, &ws::close_payload(1012, "draining"));
        assert_eq!(feed(&mut wire, &close, 3).2, Err(Ended::new("closed 1012 draining")));
    }

    /// The payloads of a client's frames.
    fn sent(mut bytes: &[u8]) -> Vec<String> {
        let (mut decoder, mut payloads) = (ws::Decoder::new(Role::Server, ws::Limits::default()), Vec::new());
        while let Some(event) = decoder.next(&mut bytes).unwrap() {
            payloads.push(match event {
                ws::Event::Message { data, .. } => String::from_utf8(data.into_owned()).unwrap(),
                ws::Event::Ping(data) | ws::Event::Pong(data) => String::from_utf8(data).unwrap(),
                ws::Event::Close { reason, .. } => reason,
            });
        }
        payloads
    }
}
