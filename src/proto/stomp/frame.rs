//! STOMP frames and their bytes, in each version's rules.

mod decode;

pub use decode::{Decoder, Error, ErrorKind, Item, Limits};

use std::sync::Arc;

use bytes::Bytes;

use super::Version;
use crate::domain::{Epoch, Update};

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The command, case-sensitive.
    pub command: String,
    /// The headers in order, unescaped; the first of repeated ones counts.
    pub headers: Vec<(String, String)>,
    /// The body, without the NUL that ends the frame.
    pub body: Vec<u8>,
}

impl Frame {
    /// A frame without a body.
    #[must_use]
    pub fn new(command: &str, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Self { command: command.to_owned(), headers, body: Vec::new() }
    }

    /// The first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

/// The bytes of a frame. A body gets its true `content-length`, whatever the headers say; on commands that may have none
/// it is left out. What a version cannot carry in a header (a line end in 1.0 and in CONNECT) becomes a space, so that no
/// value can start a header of its own.
#[must_use]
pub fn encode(frame: &Frame, version: Version) -> Vec<u8> {
    let mut writer = Writer::new(&frame.command, version);
    for (name, value) in frame.headers.iter().filter(|(name, _)| name != "content-length") {
        writer = writer.header(name, value);
    }
    if frame.body.is_empty() || !may_have_body(&frame.command) { writer.end() } else { writer.body(&frame.body) }
}

/// Whether a command's frames may carry a body.
pub(crate) fn may_have_body(command: &str) -> bool {
    matches!(command, "SEND" | "MESSAGE" | "ERROR")
}

/// Whether a frame's headers are escaped: never those of the frames that negotiate the version.
fn is_escaped(command: &str, version: Version) -> bool {
    version != Version::V10 && !matches!(command, "CONNECT" | "STOMP" | "CONNECTED")
}

/// Writes one frame from front to back.
#[derive(Debug)]
pub(crate) struct Writer {
    out: Vec<u8>,
    /// `None`: headers are not escaped.
    escape: Option<Version>,
}

impl Writer {
    pub(crate) fn new(command: &str, version: Version) -> Self {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(command.as_bytes());
        out.push(b'\n');
        Self { out, escape: is_escaped(command, version).then_some(version) }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.push(name, true);
        self.out.push(b':');
        self.push(value, false);
        self.out.push(b'\n');
        self
    }

    pub(crate) fn maybe(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.header(name, value),
            None => self,
        }
    }

    pub(crate) fn body(self, body: &[u8]) -> Vec<u8> {
        let mut out = self.header("content-length", &body.len().to_string()).out;
        out.push(b'\n');
        out.extend_from_slice(body);
        out.push(0);
        out
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.out.extend_from_slice(b"\n\0");
        self.out
    }

    fn push(&mut self, text: &str, is_name: bool) {
        if !text.bytes().any(|b| matches!(b, b'\\' | b':' | b'\n' | b'\r')) {
            return self.out.extend_from_slice(text.as_bytes());
        }
        for byte in text.bytes() {
            let plain = [byte];
            let written: &[u8] = match (byte, self.escape) {
                (b'\\', Some(_)) => b"\\\\",
                (b':', Some(_)) => b"\\c",
                (b'\n', Some(_)) => b"\\n",
                (b'\r', Some(Version::V12)) => b"\\r",
                (b':', None) if is_name => b" ",
                (b'\n' | b'\r', None) => b" ",
                _ => &plain,
            };
            self.out.extend_from_slice(written);
        }
    }
}

/// How MESSAGEs of one subscription look: equal formats share their bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Format {
    /// The database's epoch.
    pub epoch: Epoch,
    /// The session's version, for escaping.
    pub version: Version,
    /// The subscription's id as the client gave it; `None` in 1.0 when it gave none.
    pub subscription: Option<Arc<str>>,
}

/// The MESSAGE that carries `update`: destination, subscription, message-id `<epoch>.<post>.<version>`, content-type,
/// content-length. Not yet in a WebSocket frame.
#[must_use]
pub fn message(update: &Update, format: &Format) -> Bytes {
    message_with_ack(update, format, None)
}

/// The same with an `ack` header, for subscriptions that acknowledge.
pub(crate) fn message_with_ack(update: &Update, format: &Format, ack: Option<&str>) -> Bytes {
    let post = update.post_id();
    Writer::new("MESSAGE", format.version)
        .header("destination", &post.topic())
        .maybe("subscription", format.subscription.as_deref())
        .header("message-id", &format!("{}.{post}.{}", format.epoch, update.version()))
        .maybe("ack", ack)
        .header("content-type", "application/json")
        .body(update.to_json().as_bytes())
        .into()
}

/// Undoes the escapes of one header name or value; `None` for an escape the version does not know.
fn unescape(text: &str, version: Version) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next()? {
                '\\' => '\\',
                'c' => ':',
                'n' => '\n',
                'r' if version == Version::V12 => '\r',
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests;
