//! Decoding an event stream to the letter of the WHATWG HTML standard, §9.2.6.

use std::borrow::Cow;

/// An event as dispatched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The last event id in force when it was dispatched; empty when none was ever set.
    pub id: String,
    /// Its type; `message` unless named.
    pub event: String,
    /// Its data lines joined by LF.
    pub data: String,
}

/// As [`Event`], borrowed from the decoder: no allocation per event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRef<'a> {
    /// The last event id in force.
    pub id: &'a str,
    /// Its type; `message` unless named.
    pub event: &'a str,
    /// Its data lines joined by LF.
    pub data: &'a str,
}

/// The stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// One event, or one line, is larger than allowed.
    #[error("an event exceeds the limit of {0} bytes")]
    TooLarge(usize),
}

/// Turns bytes into events.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    max_event: usize,
    line: Vec<u8>,
    data: String,
    event: String,
    /// The id buffer: takes effect when its event is complete.
    pending_id: String,
    id: String,
    started: bool,
    after_cr: bool,
    /// The last `retry:` in milliseconds.
    pub retry: Option<u64>,
    /// Comment lines seen: signs of life.
    pub heartbeats: u64,
}

impl Decoder {
    /// A decoder that gives up on an event of more than `max_event` bytes.
    #[must_use]
    pub fn new(max_event: usize) -> Self {
        Self { max_event, ..Self::default() }
    }

    /// The last event id, to be sent as `Last-Event-ID` on a reconnect; empty when none was set.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        &self.id
    }

    /// Takes bytes off the wire (after HTTP framing) and appends the events that are complete.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; the events before it have been appended.
    pub fn feed(&mut self, input: &[u8], events: &mut Vec<Event>) -> Result<(), Error> {
        self.feed_with(input, |e| {
            events.push(Event { id: e.id.to_owned(), event: e.event.to_owned(), data: e.data.to_owned() });
        })
    }

    /// As [`Decoder::feed`], handing each event to `on_event` instead.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn feed_with(&mut self, mut input: &[u8], mut on_event: impl FnMut(EventRef<'_>)) -> Result<(), Error> {
        while !input.is_empty() {
            if std::mem::take(&mut self.after_cr) && input[0] == b'\n' {
                input = &input[1..];
                continue;
            }
            let Some(end) = input.iter().position(|b| matches!(b, b'\n' | b'\r')) else {
                self.check(input.len())?;
                self.line.extend_from_slice(input);
                return Ok(());
            };
            self.check(end)?;
            self.after_cr = input[end] == b'\r';
            if self.line.is_empty() {
                self.take_line(&input[..end], &mut on_event);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&input[..end]);
                self.take_line(&line, &mut on_event);
                line.clear();
                self.line = line;
            }
            input = &input[end + 1..];
        }
        Ok(())
    }

    fn check(&self, more: usize) -> Result<(), Error> {
        let size = self.line.len() + self.data.len() + self.event.len() + self.pending_id.len() + more;
        if size > self.max_event { Err(Error::TooLarge(self.max_event)) } else { Ok(()) }
    }

    fn take_line(&mut self, mut line: &[u8], on_event: &mut impl FnMut(EventRef<'_>)) {
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch(on_event);
        }
        // A line end ends any broken UTF-8 sequence, so decoding by line equals decoding the stream.
        let line: Cow<'_, str> = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.heartbeats += 1,
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "event" => value.clone_into(&mut self.event),
            "id" if !value.contains('\0') => value.clone_into(&mut self.pending_id),
            "retry" if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) => {
                self.retry = value.parse().ok().or(self.retry);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self, on_event: &mut impl FnMut(EventRef<'_>)) {
        if self.id != self.pending_id {
            self.id.clone_from(&self.pending_id);
        }
        if !self.data.is_empty() {
            self.data.pop();
            let event = if self.event.is_empty() { "message" } else { &self.event };
            on_event(EventRef { id: &self.id, event, data: &self.data });
        }
        self.data.clear();
        self.event.clear();
    }
}

#[cfg(test)]
mod tests;
