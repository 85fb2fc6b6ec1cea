//! Reading frames: bytes in, messages and control frames out.

use std::borrow::Cow;

use super::{Error, Limits, Opcode, Role, apply_mask, close};

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

impl Event<'_> {
    /// The same, its data owned.
    #[must_use]
    pub fn into_owned(self) -> Event<'static> {
        match self {
            Event::Message { text, data } => Event::Message { text, data: Cow::Owned(data.into_owned()) },
            Event::Ping(data) => Event::Ping(data),
            Event::Pong(data) => Event::Pong(data),
            Event::Close { code, reason } => Event::Close { code, reason },
        }
    }
}

/// The frame whose payload is being read.
#[derive(Debug, Clone, Copy)]
struct Head {
    fin: bool,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    len: usize,
    read: usize,
}

/// Turns bytes into events. Between messages it holds no heap memory.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    limits: Limits,
    /// The bytes of a header that is not complete.
    partial: [u8; 14],
    partial_len: u8,
    head: Option<Head>,
    /// The message in progress, and whether it is text.
    message: Vec<u8>,
    text: Option<bool>,
    fragments: u32,
    /// How much of `message` is known to be UTF-8.
    valid: usize,
    control: Vec<u8>,
    closed: bool,
}

const NOT_UTF8: Error = Error { code: close::INVALID_DATA, reason: "text is not UTF-8" };
const CUT_CHARACTER: Error = Error { code: close::INVALID_DATA, reason: "text ends inside a character" };

const fn broken(reason: &'static str) -> Error {
    Error { code: close::PROTOCOL, reason }
}

impl Decoder {
    /// At the first byte after the handshake.
    #[must_use]
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            role,
            limits,
            partial: [0; 14],
            partial_len: 0,
            head: None,
            message: Vec::new(),
            text: None,
            fragments: 0,
            valid: 0,
            control: Vec::new(),
            closed: false,
        }
    }

    /// Other limits from the next frame on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Heap memory held, in bytes: zero between messages, else bounded by the limits.
    #[must_use]
    pub fn held(&self) -> usize {
        self.message.capacity() + self.control.capacity()
    }

    /// The next event, its bytes taken off the front of `input`; `None` when the input is used up. After a close frame
    /// everything is ignored.
    ///
    /// # Errors
    /// [`Error`] with the close code to send; the decoder must not be used again.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        loop {
            if self.closed {
                *input = &[];
                return Ok(None);
            }
            if self.head.is_none() {
                let Some(head) = self.read_head(input)? else { return Ok(None) };
                if let Some(event) = self.whole(head, input)? {
                    return Ok(Some(event));
                }
                self.head = Some(head);
            }
            let Some(mut head) = self.head else { continue };
            let take = (head.len - head.read).min(input.len());
            let (piece, rest) = input.split_at(take);
            *input = rest;
            self.read_payload(&mut head, piece)?;
            if head.read < head.len {
                self.head = Some(head);
                return Ok(None);
            }
            self.head = None;
            if let Some(event) = self.finish(head)? {
                return Ok(Some(event));
            }
        }
    }

    /// As [`Decoder::next`] until the input is used up; the events own their data.
    ///
    /// # Errors
    /// [`Error`]; the events before it have been appended.
    pub fn feed(&mut self, mut input: &[u8], events: &mut Vec<Event<'static>>) -> Result<(), Error> {
        while let Some(event) = self.next(&mut input)? {
            events.push(event.into_owned());
        }
        Ok(())
    }

    /// The commonest case without the state in between: one unmasked frame that is a message, all of it here.
    fn whole<'a>(&self, head: Head, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, Error> {
        let simple = head.fin && matches!(head.opcode, Opcode::Text | Opcode::Binary) && head.mask.is_none();
        if !simple || input.len() < head.len {
            return Ok(None);
        }
        let (data, rest) = input.split_at(head.len);
        *input = rest;
        let text = head.opcode == Opcode::Text;
        if text && let Err(error) = std::str::from_utf8(data) {
            return Err(if error.error_len().is_none() { CUT_CHARACTER } else { NOT_UTF8 });
        }
        debug_assert!(self.text.is_none(), "a new message starts only between messages");
        Ok(Some(Event::Message { text, data: Cow::Borrowed(data) }))
    }

    fn read_head(&mut self, input: &mut &[u8]) -> Result<Option<Head>, Error> {
        loop {
            let have = usize::from(self.partial_len);
            let need = header_len(&self.partial[..have]);
            if have == need {
                break;
            }
            // Judge the first two bytes before waiting for more, so that a peer that breaks the rules hears it at once.
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            self.partial[have] = byte;
            self.partial_len += 1;
            match have {
                0 => drop(self.check_first(byte)?),
                1 => self.check_second(byte)?,
                _ => {}
            }
        }
        let header = &self.partial[..usize::from(std::mem::take(&mut self.partial_len))];
        let head = parse_head(header)?;
        self.admit(head)?;
        Ok(Some(head))
    }

    fn check_first(&self, byte: u8) -> Result<Opcode, Error> {
        if byte & 0x70 != 0 {
            return Err(broken("a reserved bit is set"));
        }
        let opcode = opcode(byte).ok_or(broken("unknown opcode"))?;
        match opcode {
            Opcode::Close | Opcode::Ping | Opcode::Pong if byte & 0x80 == 0 => Err(broken("a control frame is split")),
            Opcode::Continuation if self.text.is_none() => Err(broken("nothing to continue")),
            Opcode::Text | Opcode::Binary if self.text.is_some() => Err(broken("the last message is not finished")),
            _ => Ok(opcode),
        }
    }

    fn check_second(&self, byte: u8) -> Result<(), Error> {
        match (self.role, byte & 0x80 != 0) {
            (Role::Server, false) => return Err(broken("a client's frame is not masked")),
            (Role::Client, true) => return Err(broken("a server's frame is masked")),
            _ => {}
        }
        let control = self.partial[0] & 0x08 != 0;
        if control && byte & 0x7f > 125 { Err(broken("a control frame is too long")) } else { Ok(()) }
    }

    /// Checks a data frame against the limits.
    fn admit(&mut self, head: Head) -> Result<(), Error> {
        if (head.opcode as u8) & 0x08 != 0 {
            return Ok(());
        }
        if head.len > self.limits.frame {
            return Err(Error { code: close::TOO_BIG, reason: "the frame is too big" });
        }
        if self.message.len() + head.len > self.limits.message {
            return Err(Error { code: close::TOO_BIG, reason: "the message is too big" });
        }
        self.fragments = if head.opcode == Opcode::Continuation { self.fragments + 1 } else { 1 };
        if self.fragments > self.limits.fragments {
            return Err(Error { code: close::POLICY, reason: "too many fragments" });
        }
        Ok(())
    }

    fn read_payload(&mut self, head: &mut Head, piece: &[u8]) -> Result<(), Error> {
        let control = (head.opcode as u8) & 0x08 != 0;
        let (buffer, limit) = if control { (&mut self.control, 125) } else { (&mut self.message, self.limits.message) };
        crate::proto::reserve(buffer, piece.len(), limit);
        let start = buffer.len();
        buffer.extend_from_slice(piece);
        if let Some(mask) = head.mask {
            apply_mask(&mut buffer[start..], mask, head.read);
        }
        head.read += piece.len();
        if control {
            return Ok(());
        }
        if head.opcode != Opcode::Continuation {
            self.text = Some(head.opcode == Opcode::Text);
        }
        if self.text == Some(true) {
            match std::str::from_utf8(&self.message[self.valid..]) {
                Ok(_) => self.valid = self.message.len(),
                Err(e) if e.error_len().is_none() => self.valid += e.valid_up_to(),
                Err(_) => return Err(NOT_UTF8),
            }
        }
        Ok(())
    }

    fn finish(&mut self, head: Head) -> Result<Option<Event<'static>>, Error> {
        match head.opcode {
            Opcode::Ping => Ok(Some(Event::Ping(std::mem::take(&mut self.control)))),
            Opcode::Pong => Ok(Some(Event::Pong(std::mem::take(&mut self.control)))),
            Opcode::Close => {
                self.closed = true;
                self.message = Vec::new();
                parse_close(&std::mem::take(&mut self.control)).map(Some)
            }
            _ if !head.fin => Ok(None),
            _ => {
                let (data, text) = (std::mem::take(&mut self.message), self.text.take() == Some(true));
                if text && std::mem::take(&mut self.valid) != data.len() {
                    return Err(CUT_CHARACTER);
                }
                Ok(Some(Event::Message { text, data: Cow::Owned(data) }))
            }
        }
    }
}

fn opcode(byte: u8) -> Option<Opcode> {
    Some(match byte & 0x0f {
        0x0 => Opcode::Continuation,
        0x1 => Opcode::Text,
        0x2 => Opcode::Binary,
        0x8 => Opcode::Close,
        0x9 => Opcode::Ping,
        0xA => Opcode::Pong,
        _ => return None,
    })
}

/// How long the header is that starts with these bytes; 2 while that is unknown.
fn header_len(start: &[u8]) -> usize {
    let Some(second) = start.get(1) else { return 2 };
    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if second & 0x80 != 0 { 4 } else { 0 }
}

fn parse_head(header: &[u8]) -> Result<Head, Error> {
    let (fin, masked) = (header[0] & 0x80 != 0, header[1] & 0x80 != 0);
    let (extended, mask) = header[2..].split_at(header.len() - 2 - if masked { 4 } else { 0 });
    let len = match extended.len() {
        0 => u64::from(header[1] & 0x7f),
        _ => extended.iter().fold(0, |value, b| value << 8 | u64::from(*b)),
    };
    let minimal = match extended.len() {
        0 => true,
        2 => len > 125,
        _ => len > 0xffff && len >> 63 == 0,
    };
    if !minimal {
        return Err(broken("a length is not in its shortest form"));
    }
    let len = usize::try_from(len).map_err(|_| Error { code: close::TOO_BIG, reason: "the frame is too big" })?;
    let opcode = opcode(header[0]).ok_or(broken("unknown opcode"))?;
    Ok(Head { fin, opcode, mask: mask.try_into().ok(), len, read: 0 })
}

fn parse_close(payload: &[u8]) -> Result<Event<'static>, Error> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() {
            Ok(Event::Close { code: None, reason: String::new() })
        } else {
            Err(broken("a close code has two bytes"))
        };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(broken("this close code is not to be sent"));
    }
    let reason = std::str::from_utf8(reason);
    let reason = reason.map_err(|_| Error { code: close::INVALID_DATA, reason: "the close reason is not UTF-8" })?;
    Ok(Event::Close { code: Some(code), reason: reason.to_owned() })
}

#[cfg(test)]
mod tests;
