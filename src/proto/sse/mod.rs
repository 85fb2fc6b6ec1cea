//! Server-Sent Events: encoding, ids, decoding to the WHATWG letter, and HTTP/1.1 chunks.

mod chunk;
mod decode;
mod id;

pub use chunk::{ChunkDecoder, ChunkError, LAST_CHUNK, chunk};
pub use decode::{Decoder, Error, Event, EventRef};
pub(crate) use id::parse_version;
pub use id::{MAX_ID, Resume, multi_id, parse_last_event_id, single_id};

use crate::domain::Update;

/// What a heart-beat looks like: a comment ended by one LF, so that no client takes it for an empty event.
pub const HEARTBEAT: &str = ":\n";

/// One event: `id: …` if given, then `data: {json}`, then a blank line. The JSON holds no line end; the id must be one
/// of ours ([`single_id`], [`multi_id`]), so neither can start a new field.
#[must_use]
pub fn encode(update: &Update, id: Option<&str>) -> String {
    encode_with_retry(update, id, None)
}

/// As [`encode`], with `retry:` (milliseconds) inside the same event: several clients take a block with only `retry:`
/// for an empty message.
#[must_use]
pub fn encode_with_retry(update: &Update, id: Option<&str>, retry: Option<u64>) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(192);
    if let Some(ms) = retry {
        let _ = writeln!(out, "retry: {ms}");
    }
    if let Some(id) = id {
        debug_assert!(id.len() <= MAX_ID && id.bytes().all(|b| b.is_ascii_graphic()), "ids are short printable ASCII");
        let _ = writeln!(out, "id: {id}");
    }
    let _ = write!(out, "data: {}\n\n", update.to_json());
    out
}

/// The last words of a stream that drains: only `retry:` (milliseconds), ended by one LF, so that it is no event.
#[must_use]
pub fn retry(ms: u64) -> String {
    format!("retry: {ms}\n")
}
