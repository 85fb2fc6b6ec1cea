//! What the generator and the probe need of a STOMP client: frames to send, and a view of what arrives that allocates
//! nothing.

use crate::domain::PostId;

/// A frame from the server, borrowed, headers still escaped (ours need no escaping).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A heart-beat.
    HeartBeat,
    /// The session is open.
    Connected {
        /// `version`.
        version: &'a str,
        /// `heart-beat`.
        heart_beat: &'a str,
    },
    /// A message.
    Message {
        /// `destination`.
        destination: &'a str,
        /// `subscription`.
        subscription: &'a str,
        /// `message-id`.
        message_id: &'a str,
        /// `correlation-id`, on replies.
        correlation_id: &'a str,
        /// `status`, on replies.
        status: &'a str,
        /// The body.
        body: &'a [u8],
    },
    /// A receipt.
    Receipt {
        /// `receipt-id`.
        id: &'a str,
    },
    /// An error; the server closes after it.
    Error {
        /// `message`.
        message: &'a str,
        /// `receipt-id`, if the culprit had one.
        receipt_id: &'a str,
        /// The body.
        body: &'a [u8],
    },
}

/// The frames in one WebSocket message. Ends at the first byte that is no frame (see [`Frames::broken`]).
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    rest: &'a [u8],
    /// Whether something that is no whole frame was met.
    pub broken: bool,
}

impl<'a> Frames<'a> {
    /// Over the payload of one WebSocket message.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message, broken: false }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Incoming<'a>;

    fn next(&mut self) -> Option<Incoming<'a>> {
        self.broken = !self.rest.is_empty();
        None
    }
}

/// CONNECT for 1.2, with heart-beats offered in milliseconds (`send`: we can, `want`: we would like).
#[must_use]
pub fn connect(host: &str, send: u32, want: u32) -> Vec<u8> {
    let text = format!("CONNECT\naccept-version:1.2,1.1,1.0\nhost:{host}\nheart-beat:{send},{want}\n\n\0");
    text.into_bytes()
}

/// SUBSCRIBE to a post's likes. `last_version` is the message-id of the last MESSAGE, on a resume.
#[must_use]
pub fn subscribe(id: &str, post: PostId, last_version: Option<&str>, receipt: Option<&str>) -> Vec<u8> {
    let mut text = format!("SUBSCRIBE\nid:{id}\ndestination:{}\n", post.topic());
    if let Some(last) = last_version {
        text += &format!("last-version:{last}\n");
    }
    finish(text, receipt)
}

/// SUBSCRIBE to the session's own replies.
#[must_use]
pub fn subscribe_replies(id: &str, receipt: Option<&str>) -> Vec<u8> {
    finish(format!("SUBSCRIBE\nid:{id}\ndestination:{}\n", super::REPLIES), receipt)
}

/// UNSUBSCRIBE.
#[must_use]
pub fn unsubscribe(id: &str, receipt: Option<&str>) -> Vec<u8> {
    finish(format!("UNSUBSCRIBE\nid:{id}\n"), receipt)
}

/// SEND of a like (`unlike` takes one back, which needs a `key`). The outcome carries `correlation_id`.
#[must_use]
pub fn like(post: PostId, unlike: bool, correlation_id: &str, key: Option<&str>, receipt: Option<&str>) -> Vec<u8> {
    let op = if unlike { "unlike" } else { "like" };
    let mut text = format!("SEND\ndestination:{}{post}.{op}\ncorrelation-id:{correlation_id}\n", super::APP_PREFIX);
    if let Some(key) = key {
        text += &format!("idempotency-key:{key}\n");
    }
    finish(text, receipt)
}

/// DISCONNECT.
#[must_use]
pub fn disconnect(receipt: Option<&str>) -> Vec<u8> {
    finish("DISCONNECT\n".to_owned(), receipt)
}

fn finish(mut text: String, receipt: Option<&str>) -> Vec<u8> {
    if let Some(receipt) = receipt {
        text += &format!("receipt:{receipt}\n");
    }
    text += "\n\0";
    text.into_bytes()
}
