//! What goes in and out of a session.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::domain::{Epoch, PostId, Version};
use crate::proto::stomp::frame::{Format, Frame};

/// What all sessions of a pod have in common.
#[derive(Debug, Clone)]
pub struct Options {
    /// What CONNECTED says in `server`: a name, a version after `/`, a comment after a space.
    pub server: Box<str>,
    /// The database's epoch, part of each message-id.
    pub epoch: Epoch,
    /// How often the server offers to send a heart-beat; zero: never.
    pub heartbeat_send: Duration,
    /// How often the server wants to hear from the client; zero: never.
    pub heartbeat_want: Duration,
    /// How seldom [`super::Session::tick`] may be called; heart-beats are sent this much early.
    pub tick: Duration,
    /// How long a client may take until its CONNECT.
    pub connect_timeout: Duration,
    /// Most subscriptions of a session.
    pub subscriptions: usize,
    /// Most bytes of a frame's body.
    pub body: usize,
    /// Whether a CONNECT must be answered by [`super::Session::authenticated`] before anything else is done.
    pub authenticate: bool,
    /// Whether a 1.2 CONNECT without `host` is refused, as the specification has it. Not so over WebSocket: the handshake
    /// has named the host already, and the commonest client (stompjs) sends none unless the page says so.
    pub require_host: bool,
    /// The conformance mode: SENDs to `/topic/…`, `/queue/…` and `/exchange/…` are relayed, the login is guest/guest.
    pub relay: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            server: "pushlab".into(),
            epoch: Epoch(0),
            heartbeat_send: Duration::from_secs(10),
            heartbeat_want: Duration::from_secs(10),
            tick: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(10),
            subscriptions: 128,
            body: 64 * 1024,
            authenticate: false,
            require_host: true,
            relay: false,
        }
    }
}

/// What a client shows in its CONNECT. Not to be seen in any log.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub Box<str>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// How messages of a subscription are acknowledged. Nothing is redelivered here: the newest state is what counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AckMode {
    /// Not at all.
    #[default]
    Auto,
    /// Up to the one named.
    Client,
    /// Only the one named.
    ClientIndividual,
}

/// What a SEND asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LikeOp {
    /// One more.
    Like,
    /// One less.
    Unlike,
}

/// A SUBSCRIBE to a post's likes. Answer with [`super::Session::subscribed`] or [`super::Session::refused`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// The session's number for it, never used twice.
    pub slot: u32,
    /// The post.
    pub post: PostId,
    /// How its MESSAGEs look.
    pub format: Format,
    /// Auto subscriptions may share bytes; for the others use [`super::Session::message`].
    pub ack: AckMode,
    /// From the header `last-version` (`<epoch>.<version>` or a whole message-id): what the client already has.
    pub last: Option<(Epoch, Version)>,
}

/// A SEND to `/app/posts.{id}.like` or `.unlike`. Answer with [`super::Session::outcome`]. At most one per session is out at a
/// time, so order is kept without anybody else's doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Like {
    /// To be given back with the outcome; ascending.
    pub token: u64,
    /// The post.
    pub post: PostId,
    /// More or less.
    pub op: LikeOp,
    /// The header `idempotency-key`, unchecked.
    pub key: Option<Box<str>>,
    /// The headers `traceparent` and, if there, `tracestate`, unchecked.
    pub trace: Option<Box<(String, Option<String>)>>,
}

/// What became of a like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// As an HTTP status; 2xx is success.
    pub status: u16,
    /// The JSON body a POST would have been answered with (`application/problem+json` unless 2xx).
    pub body: String,
}

impl Outcome {
    /// `application/json`, or `application/problem+json` for a refusal.
    #[must_use]
    pub const fn content_type(&self) -> &'static str {
        if self.status >= 200 && self.status < 300 { "application/json" } else { "application/problem+json" }
    }
}

/// A SEND on its way to every session that has subscribed to its destination (conformance mode).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    /// As the sender wrote it.
    pub destination: String,
    /// The sender's own headers, in their order, without those that concern one hop only.
    pub headers: Vec<(String, String)>,
    /// Any bytes.
    pub body: Vec<u8>,
}

impl From<&Frame> for Relayed {
    fn from(frame: &Frame) -> Self {
        const HOP: [&str; 7] =
            ["destination", "receipt", "transaction", "content-length", "subscription", "message-id", "ack"];
        let own = frame.headers.iter().filter(|(name, _)| !HOP.contains(&name.as_str()));
        let destination = frame.header("destination").unwrap_or_default().to_owned();
        Self { destination, headers: own.cloned().collect(), body: frame.body.clone() }
    }
}

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client sent DISCONNECT.
    Disconnected,
    /// An ERROR frame was sent before.
    Error,
}

/// What the connection has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Find out whose token this is, from `Authorization: Bearer …` or `passcode`; answer with
    /// [`super::Session::authenticated`]. Nothing is read meanwhile.
    Authenticate(Option<Token>),
    /// Send these STOMP bytes as one WebSocket message: text if they are UTF-8, else binary.
    Send(Bytes),
    /// Subscribe it.
    Subscribe(Subscribe),
    /// Unsubscribe it; once no further MESSAGE of it can follow, send `then`.
    Unsubscribe {
        /// Its number.
        slot: u32,
        /// The RECEIPT, if one was asked for.
        then: Option<Bytes>,
    },
    /// Do this like.
    Like(Like),
    /// Hand every relayed SEND to [`super::Session::relayed`] from now on (conformance mode; asked for once).
    Listen,
    /// Relay this to all sessions that listen, this one included.
    Relay(Arc<Relayed>),
    /// Do not read from the socket until [`Action::Resume`]: 16 SENDs wait. What is fed meanwhile is kept.
    Pause,
    /// Read again.
    Resume,
    /// Flush, then close. Nothing follows, and what is fed from now on is ignored.
    Close(End),
}

/// Periods agreed on at CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeartBeat {
    /// The server sends at least this often; zero: need not.
    pub send_every: Duration,
    /// The client promised to send at least this often; zero: did not.
    pub expect_every: Duration,
}
