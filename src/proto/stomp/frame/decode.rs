//! Reading frames: bytes in, frames and heart-beats out, within limits.

use super::{Frame, is_escaped, may_have_body, unescape};
use crate::proto::stomp::Version;

/// What a decoder accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of command and headers together.
    pub head: usize,
    /// Most bytes of one line of the head.
    pub line: usize,
    /// Most headers.
    pub headers: usize,
    /// Most bytes of a body.
    pub body: usize,
}

impl Default for Limits {
    /// 16 KiB, 4 KiB, 32 headers, 64 KiB.
    fn default() -> Self {
        Self { head: 16 * 1024, line: 4 * 1024, headers: 32, body: 64 * 1024 }
    }
}

/// What arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A frame.
    Frame(Frame),
    /// One or more line ends between frames.
    HeartBeat,
}

/// The bytes are no STOMP frame; the stream cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct Error {
    /// Which rule was broken.
    pub kind: ErrorKind,
    /// The `receipt` header of the frame, when it was read far enough.
    pub receipt: Option<String>,
}

/// Which rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// The head is not UTF-8.
    #[error("command and headers must be UTF-8")]
    Utf8,
    /// A header line without a colon, or with an empty name.
    #[error("a header must be a name, a colon and a value")]
    Header,
    /// An escape that the version does not have.
    #[error("undefined escape sequence in a header")]
    Escape,
    /// `content-length` is no number.
    #[error("content-length must be a non-negative decimal number")]
    ContentLength,
    /// No NUL after the body.
    #[error("the body must be followed by NUL")]
    NoNul,
    /// A body where none may be.
    #[error("only SEND, MESSAGE and ERROR frames may have a body")]
    BodyNotAllowed,
    /// A carriage return between frames that no line feed follows.
    #[error("a carriage return must be followed by a line feed")]
    LoneCr,
    /// More than [`Limits::head`].
    #[error("command and headers are too large")]
    HeadTooLarge,
    /// More than [`Limits::line`].
    #[error("a header line is too long")]
    LineTooLong,
    /// More than [`Limits::headers`].
    #[error("too many headers")]
    TooManyHeaders,
    /// More than [`Limits::body`].
    #[error("the body is too large")]
    BodyTooLarge,
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, receipt: None }
    }
}

/// A frame whose body is being read; `left` is known from `content-length`, else the body ends at NUL.
#[derive(Debug)]
struct Partial {
    frame: Frame,
    left: Option<usize>,
}

/// Turns bytes into frames. Between frames it holds no heap memory, within one at most what has arrived of it.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What has arrived of a head that is not complete.
    head: Vec<u8>,
    /// Length so far of the head's last line, and how many lines are complete.
    line: usize,
    lines: usize,
    body: Option<Box<Partial>>,
    /// A CR between frames waits for its LF.
    after_cr: bool,
}

impl Decoder {
    /// At the start of a connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether no frame is half received.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.head.is_empty() && self.body.is_none()
    }

    /// Heap memory held for bytes received, in bytes: zero between frames.
    #[must_use]
    pub fn held(&self) -> usize {
        self.head.capacity() + self.body.as_ref().map_or(0, |b| b.frame.body.capacity())
    }

    /// The next item, its bytes taken off the front of `input`; `None` when the input is used up. Before the version is
    /// agreed on, 1.2 applies (CONNECT is never escaped).
    ///
    /// # Errors
    /// [`Error`]; the decoder must not be used again.
    pub fn next(&mut self, input: &mut &[u8], version: Version, limits: &Limits) -> Result<Option<Item>, Error> {
        if self.body.is_none() {
            if self.head.is_empty() && self.take_line_ends(input)? {
                return Ok(Some(Item::HeartBeat));
            }
            if input.is_empty() {
                return Ok(None);
            }
            let Some(end) = self.find_head_end(input, version, limits)? else {
                crate::proto::reserve(&mut self.head, input.len(), limits.head);
                self.head.extend_from_slice(input);
                *input = &[];
                return Ok(None);
            };
            let (piece, rest) = input.split_at(end);
            *input = rest;
            let frame = if self.head.is_empty() {
                parse_head(piece, version)?
            } else {
                self.head.extend_from_slice(piece);
                parse_head(&std::mem::take(&mut self.head), version)?
            };
            (self.line, self.lines) = (0, 0);
            self.body = Some(Box::new(begin_body(frame, limits)?));
        }
        let Some(mut partial) = self.body.take() else { return Ok(None) };
        match partial.read(input, limits) {
            Ok(true) => Ok(Some(Item::Frame(partial.frame))),
            Ok(false) => {
                self.body = Some(partial);
                Ok(None)
            }
            Err(kind) => Err(Error { kind, receipt: partial.frame.header("receipt").map(str::to_owned) }),
        }
    }

    /// Takes line ends off the front; whether there was one.
    fn take_line_ends(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        let mut any = false;
        while let Some((&byte, rest)) = input.split_first() {
            match byte {
                b'\n' => (self.after_cr, any) = (false, true),
                b'\r' if !self.after_cr => self.after_cr = true,
                _ if self.after_cr => return Err(ErrorKind::LoneCr.into()),
                _ => break,
            }
            *input = rest;
        }
        Ok(any)
    }

    /// Where in `input` the head ends, that is after its blank line.
    fn find_head_end(&mut self, input: &[u8], version: Version, limits: &Limits) -> Result<Option<usize>, ErrorKind> {
        let mut start = 0;
        loop {
            let rest = &input[start..];
            let found = rest.iter().position(|b| *b == b'\n');
            let line = self.line + found.unwrap_or(rest.len());
            // Whichever limit a byte exceeds first, so that the verdict does not depend on how the bytes were split.
            let line_start = self.head.len() + start - self.line;
            if line > limits.line && line_start + limits.line <= limits.head {
                return Err(ErrorKind::LineTooLong);
            }
            if self.head.len() + start + found.map_or(rest.len(), |n| n + 1) > limits.head {
                return Err(ErrorKind::HeadTooLarge);
            }
            let Some(found) = found else {
                self.line = line;
                return Ok(None);
            };
            let end = start + found;
            let last = if end > 0 { input.get(end - 1) } else { self.head.last() };
            if line == 0 || (line == 1 && last == Some(&b'\r') && version == Version::V12) {
                return Ok(Some(end + 1));
            }
            self.lines += 1;
            if self.lines > limits.headers + 1 {
                return Err(ErrorKind::TooManyHeaders);
            }
            self.line = 0;
            start = end + 1;
        }
    }
}

fn parse_head(head: &[u8], version: Version) -> Result<Frame, ErrorKind> {
    let text = std::str::from_utf8(head).map_err(|_| ErrorKind::Utf8)?;
    let mut lines = text.split('\n').map(|line| match version {
        Version::V12 => line.strip_suffix('\r').unwrap_or(line),
        _ => line,
    });
    let command = lines.next().unwrap_or_default();
    let escaped = is_escaped(command, version);
    let mut headers = Vec::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(ErrorKind::Header)?;
        if name.is_empty() {
            return Err(ErrorKind::Header);
        }
        let read = |text: &str| match escaped && text.contains('\\') {
            true => unescape(text, version).ok_or(ErrorKind::Escape),
            false => Ok(text.to_owned()),
        };
        headers.push((read(name)?, read(value)?));
    }
    Ok(Frame { command: command.to_owned(), headers, body: Vec::new() })
}

fn begin_body(frame: Frame, limits: &Limits) -> Result<Partial, Error> {
    let error = |kind| Error { kind, receipt: frame.header("receipt").map(str::to_owned) };
    let left = match frame.header("content-length") {
        None => None,
        Some(text) => {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return Err(error(ErrorKind::ContentLength));
            }
            // A number too large for the machine is too large for us.
            let length = text.parse().unwrap_or(usize::MAX);
            if length > limits.body {
                return Err(error(ErrorKind::BodyTooLarge));
            }
            if length > 0 && !may_have_body(&frame.command) {
                return Err(error(ErrorKind::BodyNotAllowed));
            }
            Some(length)
        }
    };
    Ok(Partial { frame, left })
}

impl Partial {
    /// Reads on; whether the frame is complete.
    fn read(&mut self, input: &mut &[u8], limits: &Limits) -> Result<bool, ErrorKind> {
        let (take, complete) = match self.left {
            Some(left) if left > input.len() => (input.len(), false),
            Some(left) => match input.get(left) {
                None => (left, false),
                Some(0) => (left, true),
                Some(_) => return Err(ErrorKind::NoNul),
            },
            None => match input.iter().position(|b| *b == 0) {
                None => (input.len(), false),
                Some(at) => (at, true),
            },
        };
        if take > 0 && !may_have_body(&self.frame.command) {
            return Err(ErrorKind::BodyNotAllowed);
        }
        if self.frame.body.len() + take > limits.body {
            return Err(ErrorKind::BodyTooLarge);
        }
        crate::proto::reserve(&mut self.frame.body, take, limits.body);
        self.frame.body.extend_from_slice(&input[..take]);
        if let Some(left) = &mut self.left {
            *left -= take;
        }
        *input = &input[take + usize::from(complete)..];
        Ok(complete)
    }
}
