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
    any: bool,
    /// Whether something that is no whole frame was met.
    pub broken: bool,
}

impl<'a> Frames<'a> {
    /// Over the payload of one WebSocket message.
    #[must_use]
    pub fn new(message: &'a [u8]) -> Self {
        Self { rest: message, any: false, broken: false }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Incoming<'a>;

    fn next(&mut self) -> Option<Incoming<'a>> {
        let start = self.rest.iter().position(|b| !matches!(b, b'\n' | b'\r')).unwrap_or(self.rest.len());
        self.rest = &self.rest[start..];
        if self.rest.is_empty() {
            // A message of nothing but line ends is a heart-beat; after a frame they mean nothing.
            return (start > 0 && !std::mem::replace(&mut self.any, true)).then_some(Incoming::HeartBeat);
        }
        self.any = true;
        let frame = split_frame(self.rest).and_then(|(head, body, rest)| {
            self.rest = rest;
            read(head, body)
        });
        if frame.is_none() {
            (self.broken, self.rest) = (true, &[]);
        }
        frame
    }
}

/// The head without its blank line, the body, and what follows the frame.
fn split_frame(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let (mut end, mut length) = (0, None);
    let body = loop {
        let line_end = end + bytes[end..].iter().position(|b| *b == b'\n')?;
        let line = &bytes[end..line_end];
        if line.is_empty() {
            break line_end + 1;
        }
        if let (None, Some(value)) = (length, line.strip_prefix(b"content-length:")) {
            length = Some(std::str::from_utf8(value).ok()?.parse::<usize>().ok()?);
        }
        end = line_end + 1;
    };
    let rest = &bytes[body..];
    let length = match length {
        Some(length) => length,
        None => rest.iter().position(|b| *b == 0)?,
    };
    if rest.get(length) != Some(&0) {
        return None;
    }
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    Some((head, &rest[..length], &rest[length + 1..]))
}

fn read<'a>(head: &'a str, body: &'a [u8]) -> Option<Incoming<'a>> {
    let (command, headers) = head.split_once('\n')?;
    let get = |name: &str| {
        let mut values = headers.split('\n').filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        values.next().unwrap_or("")
    };
    Some(match command {
        "MESSAGE" => {
            let (mut destination, mut subscription, mut message_id) = (None, None, None);
            let (mut correlation_id, mut status) = (None, None);
            for line in headers.split('\n') {
                let Some((name, value)) = line.split_once(':') else { continue };
                let place = match name {
                    "destination" => &mut destination,
                    "subscription" => &mut subscription,
                    "message-id" => &mut message_id,
                    "correlation-id" => &mut correlation_id,
                    "status" => &mut status,
                    _ => continue,
                };
                place.get_or_insert(value);
            }
            Incoming::Message {
                destination: destination.unwrap_or(""),
                subscription: subscription.unwrap_or(""),
                message_id: message_id.unwrap_or(""),
                correlation_id: correlation_id.unwrap_or(""),
                status: status.unwrap_or(""),
                body,
            }
        }
        "CONNECTED" => Incoming::Connected { version: get("version"), heart_beat: get("heart-beat") },
        "RECEIPT" => Incoming::Receipt { id: get("receipt-id") },
        "ERROR" => Incoming::Error { message: get("message"), receipt_id: get("receipt-id"), body },
        _ => return None,
    })
}

/// CONNECT for 1.2, with heart-beats offered in milliseconds (`send`: we can, `want`: we would like) and a token, as `Bearer …`.
#[must_use]
pub fn connect(host: &str, send: u32, want: u32, authorization: Option<&str>) -> Vec<u8> {
    let mut text = format!("CONNECT\naccept-version:1.2,1.1,1.0\nhost:{host}\nheart-beat:{send},{want}\n");
    if let Some(authorization) = authorization {
        text += &format!("Authorization:{authorization}\n");
    }
    finish(text, None)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Epoch, LikesState, Update, Version};
    use crate::proto::stomp::{self, frame};

    #[test]
    fn what_the_server_writes_is_read_without_allocating() {
        let update = Update::Snapshot(LikesState { post_id: PostId::new(7).unwrap(), likes: 3, version: Version(9) });
        let format = frame::Format { epoch: Epoch(1), version: stomp::Version::V12, subscription: Some("0".into()) };
        let wire = [&b"\n"[..], &frame::message(&update, &format), b"RECEIPT\nreceipt-id:r\n\n\0\n"].concat();
        let mut frames = Frames::new(&wire);
        let Some(Incoming::Message { destination, subscription, message_id, body, .. }) = frames.next() else {
            panic!("no message")
        };
        assert_eq!((destination, subscription, message_id), ("/topic/posts.7.likes", "0", "00000001.7.9"));
        assert_eq!(Update::from_json(body).unwrap(), update);
        assert_eq!(frames.next(), Some(Incoming::Receipt { id: "r" }));
        assert_eq!((frames.next(), frames.broken), (None, false));
    }

    #[test]
    fn heart_beats_errors_and_rubbish() {
        assert_eq!(Frames::new(b"\n").collect::<Vec<_>>(), [Incoming::HeartBeat]);
        assert_eq!(Frames::new(b"").count(), 0);
        let error = Incoming::Error { message: "no", receipt_id: "", body: b"why" };
        assert_eq!(Frames::new(b"ERROR\nmessage:no\ncontent-length:3\n\nwhy\0").collect::<Vec<_>>(), [error]);
        let connected = Incoming::Connected { version: "1.2", heart_beat: "0,0" };
        assert_eq!(Frames::new(b"CONNECTED\nversion:1.2\nheart-beat:0,0\n\n\0").collect::<Vec<_>>(), [connected]);
        for bad in
            [&b"x"[..], b"MESSAGE\n\n", b"MESSAGE\ncontent-length:9\n\nx\0", b"FOO\n\n\0", b"\n\0", b"\xff\n\n\0"]
        {
            let mut frames = Frames::new(bad);
            assert_eq!((frames.next(), frames.broken, frames.next()), (None, true, None), "{bad:?}");
        }
    }

    #[test]
    fn what_a_client_writes_is_a_frame() {
        let post = PostId::new(7).unwrap();
        for wire in [
            connect("localhost", 0, 0, Some("Bearer e.y.J")),
            subscribe("0", post, Some("00000001.7.9"), Some("r")),
            subscribe_replies("1", None),
            like(post, false, "c", None, None),
            like(post, true, "c", Some("k"), Some("r")),
            unsubscribe("0", None),
            disconnect(Some("r")),
        ] {
            let mut input = &wire[..];
            let item = frame::Decoder::new().next(&mut input, stomp::Version::V12, &frame::Limits::default());
            let Ok(Some(frame::Item::Frame(frame))) = item else { panic!("{item:?}") };
            assert_eq!(frame::encode(&frame, stomp::Version::V12), wire);
        }
    }
}
