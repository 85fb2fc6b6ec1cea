//! Reading frames: bytes in, messages and control frames out.

use std::borrow::Cow;

use super::{Error, Limits, Role};

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message, its fragments joined. Borrowed from the input when it came unmasked in one piece.
    Message {
        /// Whether it is text (then `data` is valid UTF-8).
        text: bool,
        /// Its payload.
        data: Cow<'a, [u8]>,
    },
    /// To be answered with a pong that carries the same payload.
    Ping(Vec<u8>),
    /// An answer to a ping, or unasked.
    Pong(Vec<u8>),
    /// The peer closes; nothing follows. To be answered with [`super::close_answer`].
    Close {
        /// Its code, if it gave one.
        code: Option<u16>,
        /// Its reason.
        reason: String,
    },
}

/// Turns bytes into events.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    limits: Limits,
}

impl Decoder {
    /// At the first byte after the handshake.
    #[must_use]
    pub fn new(role: Role, limits: Limits) -> Self {
        Self { role, limits }
    }

    /// The next event, its bytes taken off the front of `input`; `None` when the input is used up.
    ///
    /// # Errors
    /// [`Error`] with the close code to send; the decoder must not be used again.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        let _ = (self.role, self.limits, input);
        Err(Error { code: super::close::PROTOCOL, reason: "not built yet" })
    }

    /// As [`Decoder::next`] until the input is used up; the events own their data.
    ///
    /// # Errors
    /// [`Error`]; the events before it have been appended.
    pub fn feed(&mut self, mut input: &[u8], events: &mut Vec<Event<'static>>) -> Result<(), Error> {
        while let Some(event) = self.next(&mut input)? {
            events.push(match event {
                Event::Message { text, data } => Event::Message { text, data: Cow::Owned(data.into_owned()) },
                Event::Ping(data) => Event::Ping(data),
                Event::Pong(data) => Event::Pong(data),
                Event::Close { code, reason } => Event::Close { code, reason },
            });
        }
        Ok(())
    }
}
