//! The server's side of a STOMP connection: bytes in, actions out. Holds no socket, no clock and no data of others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::frame::Format;
use crate::domain::{Epoch, PostId, Update, Version};

/// What all sessions of a pod have in common.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database's epoch, part of each message-id.
    pub epoch: Epoch,
    /// How often the server offers to send a heart-beat; zero: never.
    pub heartbeat_send: Duration,
    /// How often the server wants to hear from the client; zero: never.
    pub heartbeat_want: Duration,
    /// How seldom [`Session::tick`] may be called; heart-beats are sent this much early.
    pub tick: Duration,
    /// How long a client may take until its CONNECT.
    pub connect_timeout: Duration,
    /// Most subscriptions of a session.
    pub subscriptions: usize,
    /// Most bytes of a frame's body.
    pub body: usize,
    /// Whether a 1.1 or 1.2 CONNECT without `host` is refused, as the specification has it.
    pub require_host: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            epoch: Epoch(0),
            heartbeat_send: Duration::from_secs(10),
            heartbeat_want: Duration::from_secs(10),
            tick: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(10),
            subscriptions: 128,
            body: 64 * 1024,
            require_host: true,
        }
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

/// A SUBSCRIBE to a post's likes. Answer with [`Session::subscribed`] or [`Session::refused`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// The session's number for it, never used twice.
    pub slot: u32,
    /// The post.
    pub post: PostId,
    /// How its MESSAGEs look.
    pub format: Format,
    /// Auto subscriptions may share bytes; for the others use [`Session::message`].
    pub ack: AckMode,
    /// From the header `last-version` (`<epoch>.<version>` or a whole message-id): what the client already has.
    pub last: Option<(Epoch, Version)>,
}

/// A SEND to `/app/posts.{id}.like` or `.unlike`. Answer with [`Session::outcome`]. At most one per session is out at a
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
}

/// What became of a like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// As an HTTP status; 2xx is success.
    pub status: u16,
    /// The JSON body a POST would have been answered with (`application/problem+json` unless 2xx).
    pub body: String,
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
    /// Send these STOMP bytes as one WebSocket text message.
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

/// One client's session.
#[derive(Debug)]
pub struct Session {
    options: Arc<Options>,
}

impl Session {
    /// Before CONNECT.
    #[must_use]
    pub fn new(options: Arc<Options>) -> Self {
        Self { options }
    }

    /// Takes the payload of a WebSocket message (or any piece of the byte stream).
    #[must_use]
    pub fn feed(&mut self, input: &[u8]) -> Vec<Action> {
        let _ = (input, self.options.body);
        let error = Bytes::from_static(b"ERROR\nmessage:not built yet\n\n\0");
        vec![Action::Send(error), Action::Close(End::Error)]
    }

    /// The subscription is in force and its snapshot on its way. `None` when the client has unsubscribed meanwhile: then
    /// leave again and send nothing.
    #[must_use]
    pub fn subscribed(&mut self, slot: u32) -> Option<Vec<Action>> {
        let _ = slot;
        None
    }

    /// The subscription cannot be had: ERROR, then close.
    #[must_use]
    pub fn refused(&mut self, slot: u32, outcome: &Outcome) -> Vec<Action> {
        let _ = (slot, outcome);
        Vec::new()
    }

    /// What became of the like with this token.
    #[must_use]
    pub fn outcome(&mut self, token: u64, outcome: &Outcome) -> Vec<Action> {
        let _ = (token, outcome);
        Vec::new()
    }

    /// The MESSAGE for a subscription that is not [`AckMode::Auto`], remembered until acknowledged; `None` for the
    /// others, whose bytes are shared ([`super::frame::message`]).
    #[must_use]
    pub fn message(&mut self, update: &Update, slot: u32) -> Option<Bytes> {
        let _ = (update, slot);
        None
    }

    /// What time asks for: a heart-beat, or an ERROR when the client has been silent for twice its promise or has not
    /// sent CONNECT in time. `age` is since the connection opened, the others since the last read and write.
    #[must_use]
    pub fn tick(&mut self, age: Duration, since_read: Duration, since_write: Duration) -> Vec<Action> {
        let _ = (age, since_read, since_write);
        Vec::new()
    }

    /// The periods agreed on; zero before CONNECT.
    #[must_use]
    pub fn heartbeat(&self) -> HeartBeat {
        HeartBeat::default()
    }

    /// The likes that were received and not yet handed out, for when the peer vanishes: they are still to be done.
    #[must_use]
    pub fn take_pending(&mut self) -> Vec<Like> {
        Vec::new()
    }
}
