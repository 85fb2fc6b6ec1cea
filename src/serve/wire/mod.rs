//! The two transports as the engine sees them: one enum, so that both leave the pod through the same code.

use std::time::Instant;

use bytes::Bytes;

use super::relay::Leave;
use super::watch::WatchGuard;
use crate::domain::{Epoch, Transport, Update};
use crate::hub::{Change, CloseReason, ConnKey, Flow, Protocol};
use crate::proto::sse;
use crate::proto::stomp::frame;
use crate::proto::ws::{Opcode, server_frame};

/// The echo of the conformance mode.
mod echo;
/// WebSocket frames, or none.
pub(super) mod framing;
/// An SSE stream.
mod stream;
/// A STOMP session over WebSocket.
mod talk;

pub use echo::Echo;
pub use stream::{Beat, Stream};
pub(super) use talk::Talk;
pub use talk::TalkReply;

/// One viewer's connection after its handshake.
#[derive(Debug)]
pub enum Wire {
    /// Server-Sent Events in HTTP/1.1 chunks.
    Sse(Stream),
    /// STOMP in WebSocket frames.
    Stomp(Box<talk::Talk>),
    /// Messages sent back (conformance mode).
    Echo(Box<Echo>),
}

/// What ends with a subscription.
#[derive(Debug)]
pub enum Guard {
    /// The pod's watching of the post.
    Watch(WatchGuard),
    /// The session's own, with `--fanout relay`.
    Relay(Leave),
}

/// How an update becomes bytes; viewers with equal formats share them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Format {
    /// An event with the id `<epoch>.<version>`.
    Sse(Epoch),
    /// An event without id: a stream of more posts than an id can name.
    SseWithoutId,
    /// A MESSAGE.
    Stomp(frame::Format),
    /// A MESSAGE without WebSocket frame (conformance mode).
    RawStomp(frame::Format),
}

impl Format {
    /// The complete wire bytes.
    #[must_use]
    pub fn encode(&self, update: &Update) -> Bytes {
        match self {
            Self::Sse(epoch) => {
                let id = sse::single_id(*epoch, update.version());
                sse::chunk(sse::encode(update, Some(&id)).as_bytes())
            }
            Self::SseWithoutId => sse::chunk(sse::encode(update, None).as_bytes()),
            Self::Stomp(format) => server_frame(Opcode::Text, &frame::message(update, format)),
            Self::RawStomp(format) => frame::message(update, format),
        }
    }
}

impl Protocol for Wire {
    type Format = Format;
    type Reply = TalkReply;
    type Guard = Guard;

    fn encode(update: &Update, format: &Format) -> Bytes {
        format.encode(update)
    }

    fn encode_private(&mut self, update: &Update, slot: u32) -> Option<Bytes> {
        match self {
            Self::Sse(stream) => stream.encode_private(update, slot),
            Self::Stomp(talk) => talk.encode_private(update, slot),
            Self::Echo(_) => None,
        }
    }

    fn feed(&mut self, key: ConnKey, input: &[u8], out: &mut Vec<u8>) -> Flow {
        match self {
            // A client that asks again on a connection that streams gets no answer there; its bytes are no harm.
            Self::Sse(_) => Flow::Continue,
            Self::Stomp(talk) => talk.feed(key, input, out),
            Self::Echo(echo) => echo.feed(input, out),
        }
    }

    fn reply(&mut self, key: ConnKey, reply: TalkReply, out: &mut Vec<u8>) -> (Flow, Vec<Change<Self>>) {
        match self {
            Self::Sse(_) | Self::Echo(_) => (Flow::Continue, Vec::new()),
            Self::Stomp(talk) => talk.reply(key, reply, out),
        }
    }

    fn sweep(&mut self, now: Instant, last_read: Instant, last_write: Instant, out: &mut Vec<u8>) -> Flow {
        match self {
            Self::Sse(stream) => stream.sweep(now, last_write, out),
            Self::Stomp(talk) => talk.sweep(now, last_read, last_write, out),
            Self::Echo(_) => Flow::Continue,
        }
    }

    fn end(&mut self, why: CloseReason, out: &mut Vec<u8>) {
        match self {
            Self::Sse(stream) => stream.end(out),
            Self::Stomp(talk) => talk.end(why, out),
            Self::Echo(echo) => echo.end(out),
        }
    }

    fn transport(&self) -> Transport {
        match self {
            Self::Sse(_) => Transport::Sse,
            Self::Stomp(_) | Self::Echo(_) => Transport::Stomp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_viewer_is_small() {
        assert!(size_of::<Wire>() <= 64, "{}", size_of::<Wire>());
        assert!(size_of::<talk::Talk>() <= 400, "{}", size_of::<talk::Talk>());
    }
}
