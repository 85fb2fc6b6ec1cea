//! How a session's bytes travel: in WebSocket frames, shared by `/stomp` and the echo that Autobahn's cases judge, or
//! (conformance mode) as they are over TCP.

use std::borrow::Cow;

use bytes::Bytes;

use super::super::limits;
use crate::hub::CloseReason;
use crate::proto::ws::{self, Opcode, server_frame};

/// One connection's framing.
#[derive(Debug)]
pub(in super::super) enum Framing {
    WebSocket(ws::Decoder),
    Raw,
}

/// What arrived.
#[derive(Debug)]
pub(super) enum Got<'a> {
    /// A message, or any piece of a byte stream.
    Data { text: bool, data: Cow<'a, [u8]> },
    /// To be sent back at this place.
    Answer(Bytes),
    /// The end: to be sent, and why. Nothing may be read after it.
    Close(Bytes, CloseReason),
}

/// What is accepted of a client's frames.
#[must_use]
pub(in super::super) fn limits(conformance: bool) -> ws::Limits {
    if conformance {
        // Autobahn's cases 9.* go to 16 MiB in one frame, or in fragments of 64 bytes.
        let most = limits::CONFORMANCE_MESSAGE;
        return ws::Limits { frame: most, message: most, fragments: u32::MAX };
    }
    ws::Limits { frame: limits::BODY, message: limits::BODY, ..ws::Limits::default() }
}

impl Framing {
    pub(in super::super) fn web_socket(limits: ws::Limits) -> Self {
        Self::WebSocket(ws::Decoder::new(ws::Role::Server, limits))
    }

    /// Other limits from the next frame on.
    pub(super) fn set_limits(&mut self, limits: ws::Limits) {
        if let Self::WebSocket(frames) = self {
            frames.set_limits(limits);
        }
    }

    /// The next thing that arrived, its bytes taken off the front of `input`.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Got<'a>> {
        let Self::WebSocket(frames) = self else {
            let data = std::mem::take(input);
            return (!data.is_empty()).then_some(Got::Data { text: false, data: Cow::Borrowed(data) });
        };
        loop {
            return Some(match frames.next(input) {
                Ok(None) => return None,
                Ok(Some(ws::Event::Message { text, data })) => Got::Data { text, data },
                Ok(Some(ws::Event::Ping(data))) => Got::Answer(server_frame(Opcode::Pong, &data)),
                Ok(Some(ws::Event::Pong(_))) => continue,
                Ok(Some(ws::Event::Close { code, .. })) => Got::Close(ws::close_answer(code), CloseReason::Peer),
                Err(error) => Got::Close(last_frame(error.code, error.reason), CloseReason::Violation),
            });
        }
    }

    /// A message: text if it is UTF-8, else binary.
    pub(super) fn frame(&self, message: &Bytes) -> Bytes {
        match self {
            Self::Raw => message.clone(),
            Self::WebSocket(_) if std::str::from_utf8(message).is_ok() => server_frame(Opcode::Text, message),
            Self::WebSocket(_) => server_frame(Opcode::Binary, message),
        }
    }

    /// The last frame.
    pub(super) fn close(&self, code: u16, reason: &str) -> Bytes {
        match self {
            Self::Raw => Bytes::new(),
            Self::WebSocket(_) => last_frame(code, reason),
        }
    }
}

fn last_frame(code: u16, reason: &str) -> Bytes {
    server_frame(Opcode::Close, &ws::close_payload(code, reason))
}
