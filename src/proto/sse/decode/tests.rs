//! The decoder against the standard's examples, against our encoder, and at every split.

use proptest::prelude::*;

use super::*;
use crate::domain::{LikesChanged, LikesState, PostId, Update, Version};
use crate::proto::sse::{HEARTBEAT, encode, encode_with_retry, retry};

fn decode(parts: &[&[u8]]) -> (Vec<Event>, Decoder) {
    let (mut decoder, mut events) = (Decoder::new(10_000), Vec::new());
    for part in parts {
        decoder.feed(part, &mut events).unwrap();
    }
    (events, decoder)
}

fn data(stream: &str) -> Vec<String> {
    decode(&[stream.as_bytes()]).0.into_iter().map(|e| e.data).collect()
}

fn event(id: &str, event: &str, data: &str) -> Event {
    Event { id: id.into(), event: event.into(), data: data.into() }
}

#[test]
fn the_standards_examples() {
    assert_eq!(data("data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
    let (events, decoder) =
        decode(&[b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"]);
    assert_eq!(events, [event("1", "message", "first event"), event("", "message", "second event")]);
    assert_eq!((decoder.heartbeats, decoder.last_event_id()), (1, ""), "the third is not ended by a blank line");
    assert_eq!(data("data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
    assert_eq!(data("data:test\n\ndata: test\n\n"), ["test", "test"]);
}

#[test]
fn line_ends_byte_order_mark_and_broken_utf8() {
    assert_eq!(data("data: a\rdata: b\r\ndata: c\n\r"), ["a\nb\nc"]);
    assert_eq!(data("\u{feff}data: a\n\n"), ["a"]);
    assert_eq!(data("data: a\n\n\u{feff}data: b\n\n"), ["a"], "only the first one is a mark");
    assert_eq!(decode(&[b"data: \xff\xc3\n\n"]).0[0].data, "\u{fffd}\u{fffd}");
}

#[test]
fn fields_to_the_letter() {
    let (events, decoder) =
        decode(&[b"event: x\nid: 7\nretry: 12\n\nretry: 1x\nid: a\0b\ndata: d\nDATA: no\n foo: x\n\n"]);
    assert_eq!(events, [event("7", "message", "d")], "a block without data resets the type but keeps the id");
    assert_eq!(decoder.retry, Some(12));
    assert_eq!(decode(&[b"event: x\ndata: 1\n\ndata: 2\n\n"]).0, [event("", "x", "1"), event("", "message", "2")]);
}

#[test]
fn an_id_counts_only_when_its_event_is_complete() {
    // The standard keeps an id *buffer* and sets the last event id at the blank line: an event cut off must be sent again.
    let (events, decoder) = decode(&[b"id: 1\ndata: a\n\nid: 2\ndata: b\n"]);
    assert_eq!((events.len(), decoder.last_event_id()), (1, "1"));
}

#[test]
fn heartbeats_and_last_words_are_no_events() {
    let (events, decoder) = decode(&[HEARTBEAT.as_bytes(), retry(700).as_bytes(), HEARTBEAT.as_bytes()]);
    assert_eq!((events.len(), decoder.heartbeats, decoder.retry), (0, 2, Some(700)));
}

#[test]
fn too_much_is_refused() {
    let mut decoder = Decoder::new(100);
    assert_eq!(decoder.feed(&[b'x'; 101], &mut Vec::new()), Err(Error::TooLarge(100)));
    let mut decoder = Decoder::new(100);
    assert_eq!(decoder.feed(&b"data: 123456789\n".repeat(11), &mut Vec::new()), Err(Error::TooLarge(100)));
    let mut decoder = Decoder::new(100);
    assert_eq!(decoder.feed(&b"data: 123456789\n\n".repeat(50), &mut Vec::new()), Ok(()));
}

fn updates() -> impl Strategy<Value = Update> {
    (1u64..1 << 53, any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>()).prop_map(
        |(id, likes, version, prev, snap)| {
            let (post_id, version) = (PostId::new(id).unwrap(), Version(version));
            if snap {
                Update::Snapshot(LikesState { post_id, likes, version })
            } else {
                Update::Changed(LikesChanged { post_id, likes, version, prev: Version(prev), committed_at: likes })
            }
        },
    )
}

proptest! {
    #[test]
    fn what_we_encode_is_what_arrives(list in prop::collection::vec((updates(), prop::option::of("[!-~]{1,128}"), prop::option::of(0u64..9999)), 0..5), at in any::<prop::sample::Index>()) {
        let wire: String = list.iter().map(|(u, id, ms)| match ms {
            Some(_) => encode_with_retry(u, id.as_deref(), *ms) + HEARTBEAT,
            None => encode(u, id.as_deref()),
        }).collect();
        let (a, b) = wire.as_bytes().split_at(at.index(wire.len() + 1));
        let (events, _) = decode(&[a, b]);
        let mut last = String::new();
        prop_assert_eq!(events.len(), list.len());
        for (event, (update, id, _)) in events.iter().zip(&list) {
            last = id.clone().unwrap_or(last);
            prop_assert_eq!((&event.id, event.event.as_str()), (&last, "message"));
            prop_assert_eq!(Update::from_json(event.data.as_bytes()).unwrap(), *update);
        }
    }

    #[test]
    fn splits_do_not_matter(stream in "(data|id|event|retry|:|: |é|[0-9a-z]|\r|\n|\r\n|\0|\u{feff}){0,60}", raw in prop::collection::vec(any::<u8>(), 0..20)) {
        let bytes = [stream.as_bytes(), &raw, b"\n\n"].concat();
        let (whole, one) = decode(&[&bytes]);
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        let (bytewise, other) = decode(&pieces);
        prop_assert_eq!(whole, bytewise);
        prop_assert_eq!((one.last_event_id(), one.retry, one.heartbeats), (other.last_event_id(), other.retry, other.heartbeats));
    }
}
