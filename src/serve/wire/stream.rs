//! An SSE stream after its head: heart-beats, maximum age, last words, and ids that name several posts.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::app::retry_ms;
use super::super::limits::{Lifetime, Seat};
use super::Format;
use crate::domain::{Epoch, PostId, Update, Version};
use crate::hub::Flow;
use crate::proto::sse;

/// How seldom the engine sweeps: heart-beats go out this much early.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// What a heart-beat looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// A comment: no client hands it to the page.
    Comment,
    /// `event: heartbeat`, asked for with `?heartbeat=event`: a page's watchdog can see it.
    Event,
}

/// One SSE stream.
#[derive(Debug)]
pub struct Stream {
    every: Duration,
    beat: Beat,
    lifetime: Lifetime,
    positions: Option<Box<Positions>>,
    _seat: Seat,
}

/// The versions sent on a stream of several posts; slot = index.
#[derive(Debug)]
struct Positions {
    epoch: Epoch,
    posts: Vec<(PostId, Version)>,
}

impl Positions {
    /// The id after a slot has come to this version.
    fn moved(&mut self, slot: u32, version: Version) -> Option<String> {
        self.posts.get_mut(slot as usize)?.1 = version;
        sse::multi_id(self.epoch, &self.posts)
    }
}

impl Stream {
    /// A stream that sends a heart-beat after `every` of silence (zero: never) and ends with its `lifetime`.
    #[must_use]
    pub fn new(every: Duration, beat: Beat, lifetime: Lifetime, seat: Seat) -> Self {
        Self { every, beat, lifetime, positions: None, _seat: seat }
    }

    /// The format of a stream of these posts, in slot order, each with the version its viewer has before its first event
    /// (its snapshot counts as had). Several posts have ids of their own making, as long as an id can name them all.
    pub fn format(&mut self, epoch: Epoch, posts: Vec<(PostId, Version)>) -> Format {
        if posts.len() == 1 {
            return Format::Sse(epoch);
        }
        if sse::multi_id(epoch, &posts).is_some() {
            self.positions = Some(Box::new(Positions { epoch, posts }));
        }
        Format::SseWithoutId
    }

    /// One of the first events of a slot, with `retry:` if given.
    #[must_use]
    pub fn first(&mut self, update: &Update, slot: u32, format: &Format, retry: Option<u64>) -> Bytes {
        let id = match (format, &mut self.positions) {
            (Format::Sse(epoch), _) => Some(sse::single_id(*epoch, update.version())),
            (_, Some(positions)) => positions.moved(slot, update.version()),
            (_, None) => None,
        };
        sse::chunk(sse::encode_with_retry(update, id.as_deref(), retry).as_bytes())
    }

    /// The first bytes of a slot that has nothing to tell yet, so that a proxy passes the head on: no event.
    #[must_use]
    pub fn nothing(retry: Option<u64>) -> Bytes {
        let retry = retry.map(sse::retry).unwrap_or_default();
        sse::chunk(format!("{retry}{}", sse::HEARTBEAT).as_bytes())
    }

    pub(super) fn encode_private(&mut self, update: &Update, slot: u32) -> Option<Bytes> {
        let id = self.positions.as_mut()?.moved(slot, update.version());
        Some(sse::chunk(sse::encode(update, id.as_deref()).as_bytes()))
    }

    pub(super) fn sweep(&mut self, now: Instant, last_write: Instant, out: &mut Vec<u8>) -> Flow {
        if let Some(why) = self.lifetime.over(now) {
            self.end(out);
            return Flow::Close(why);
        }
        if !self.every.is_zero() && now.saturating_duration_since(last_write) + TICK >= self.every {
            out.extend_from_slice(match self.beat {
                Beat::Comment => b"2\r\n:\n\r\n",
                Beat::Event => b"1b\r\nevent: heartbeat\ndata: {}\n\n\r\n",
            });
        }
        Flow::Continue
    }

    /// `retry:` without an event, and the end of the body.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&sse::chunk(sse::retry(retry_ms()).as_bytes()));
        out.extend_from_slice(sse::LAST_CHUNK);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::limits::Seats;
    use super::*;
    use crate::domain::LikesState;

    fn stream(beat: Beat) -> Stream {
        let seat = Seats::new(1).take().unwrap();
        Stream::new(Duration::from_secs(10), beat, Lifetime::default(), seat)
    }

    fn state(post: u64, version: u64) -> Update {
        let state = LikesState { post_id: PostId::new(post).unwrap(), likes: version, version: Version(version) };
        Update::Snapshot(state)
    }

    fn at(post: u64, version: u64) -> (PostId, Version) {
        (PostId::new(post).unwrap(), Version(version))
    }

    fn text(bytes: &[u8]) -> String {
        let (mut decoder, mut input, mut text) = (sse::ChunkDecoder::new(), bytes, Vec::new());
        while let Some(piece) = decoder.next(&mut input).unwrap() {
            text.extend_from_slice(piece);
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn heart_beats_are_whole_chunks_and_come_only_after_silence() {
        let now = Instant::now();
        for (beat, expected) in [(Beat::Comment, ":\n"), (Beat::Event, "event: heartbeat\ndata: {}\n\n")] {
            let (mut stream, mut out) = (stream(beat), Vec::new());
            stream.sweep(now + Duration::from_secs(5), now, &mut out);
            assert!(out.is_empty());
            stream.sweep(now + Duration::from_secs(9), now, &mut out);
            assert_eq!(text(&out), expected);
        }
    }

    #[test]
    fn an_id_names_every_post_of_the_stream_while_it_fits() {
        let mut few = stream(Beat::Comment);
        let epoch = Epoch(1);
        assert_eq!(few.format(epoch, vec![at(1, 5), at(2, 7)]), Format::SseWithoutId);
        assert!(
            text(&few.first(&state(1, 5), 0, &Format::SseWithoutId, Some(900)))
                .starts_with("retry: 900\nid: 00000001;1.5,2.7\n")
        );
        // A replay goes on from what the viewer had: a cut in the middle of it loses nothing.
        assert!(text(&few.first(&state(2, 6), 1, &Format::SseWithoutId, None)).starts_with("id: 00000001;1.5,2.6\n"));
        let update = state(2, 8);
        assert!(text(&few.encode_private(&update, 1).unwrap()).starts_with("id: 00000001;1.5,2.8\n"));

        let mut many = stream(Beat::Comment);
        many.format(epoch, (1..=128).map(|post| at(post, 1)).collect());
        assert!(many.encode_private(&update, 1).is_none());
        assert!(text(&many.first(&state(1, 1), 0, &Format::SseWithoutId, None)).starts_with("data:"));
    }

    #[test]
    fn the_end_is_a_retry_and_the_last_chunk() {
        let mut out = Vec::new();
        stream(Beat::Comment).end(&mut out);
        let text = text(&out);
        assert!(text.starts_with("retry: ") && !text.contains("\n\n") && out.ends_with(sse::LAST_CHUNK));
    }
}
