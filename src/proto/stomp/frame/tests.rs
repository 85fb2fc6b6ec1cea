//! Frames against the specification's text (docs/conformance.md has the items), and against themselves at every split.

mod differential;

use proptest::prelude::*;

use super::*;
use crate::domain::{LikesState, PostId};

fn decode(parts: &[&[u8]], version: Version, limits: &Limits) -> (Vec<Item>, Option<ErrorKind>) {
    let (mut decoder, mut items) = (Decoder::new(), Vec::new());
    for part in parts {
        let mut input = *part;
        loop {
            match decoder.next(&mut input, version, limits) {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(error) => return (items, Some(error.kind)),
            }
            assert!(decoder.held() <= limits.head + limits.body, "held {} bytes", decoder.held());
        }
        assert!(input.is_empty());
    }
    (items, None)
}

fn v12(wire: &[u8]) -> (Vec<Item>, Option<ErrorKind>) {
    decode(&[wire], Version::V12, &Limits::default())
}

fn one(wire: &[u8], version: Version) -> Frame {
    match &decode(&[wire], version, &Limits::default()) {
        (items, None) if matches!(items[..], [Item::Frame(_)]) => match items[0].clone() {
            Item::Frame(frame) => frame,
            Item::HeartBeat => unreachable!(),
        },
        other => panic!("not one frame: {other:?}"),
    }
}

fn header(wire: &[u8], version: Version) -> String {
    one(wire, version).headers[0].1.clone()
}

#[test]
fn stomp_01_lines_end_with_lf_or_crlf_and_line_ends_may_stand_between_frames() {
    let frame = one(b"SEND\r\nfoo:bar\r\nFoo:\r\n\r\nbody\0", Version::V12);
    assert_eq!((frame.header("foo"), frame.header("Foo")), (Some("bar"), Some("")), "names are case-sensitive");
    let (items, error) = v12(b"\n\r\n\nDISCONNECT\n\n\0\n\r\n");
    assert_eq!((items.len(), error), (3, None));
    assert_eq!(v12(b"\rDISCONNECT\n\n\0").1, Some(ErrorKind::LoneCr));
    assert_eq!(header(b"SEND\na:x\r\n\n\0", Version::V11), "x\r", "only 1.2 ends lines with CR LF");
}

#[test]
fn stomp_02_a_head_that_is_not_utf8_is_an_error() {
    assert_eq!(v12(b"SEND\na:\xff\n\n\0").1, Some(ErrorKind::Utf8));
    assert_eq!(v12(b"S\xc3ND\n\n\0").1, Some(ErrorKind::Utf8));
    assert_eq!(header("SEND\na:\u{e9}\n\n\0".as_bytes(), Version::V12), "\u{e9}");
}

#[test]
fn stomp_03_escapes_are_undone_in_names_and_values() {
    let frame = one(b"SEND\na\\cb:\\r\\n\\c\\\\\n\n\0", Version::V12);
    assert_eq!(frame.headers[0], ("a:b".into(), "\r\n:\\".into()));
    assert_eq!(header(b"SEND\na:\\n\n\n\0", Version::V10), "\\n", "1.0 has no escapes");
    for command in ["CONNECT", "STOMP", "CONNECTED"] {
        let wire = format!("{command}\na:C:\\temp\n\n\0");
        assert_eq!(header(wire.as_bytes(), Version::V12), "C:\\temp", "nor has {command}");
    }
}

#[test]
fn stomp_04_any_other_escape_is_fatal() {
    for bad in [&b"SEND\na:\\t\n\n\0"[..], b"SEND\na:x\\\n\n\0", b"SEND\na\\:x\n\n\0", b"SEND\na:\\R\n\n\0"] {
        assert_eq!(v12(bad).1, Some(ErrorKind::Escape));
    }
    assert_eq!(decode(&[b"SEND\na:\\r\n\n\0"], Version::V11, &Limits::default()).1, Some(ErrorKind::Escape));
}

#[test]
fn stomp_05_the_same_four_are_escaped_when_sending() {
    let sent = Frame::new("RECEIPT", &[("receipt-id", "a:b\n\r\\")]);
    assert_eq!(encode(&sent, Version::V12), b"RECEIPT\nreceipt-id:a\\cb\\n\\r\\\\\n\n\0");
    assert_eq!(encode(&sent, Version::V10), b"RECEIPT\nreceipt-id:a:b  \\\n\n\0", "1.0 cannot carry a line end");
}

#[test]
fn stomp_06_spaces_are_never_trimmed() {
    let frame = one(b"SEND\nfoo: bar \n baz :\t\n\n\0", Version::V12);
    assert_eq!((frame.header("foo"), frame.header(" baz ")), (Some(" bar "), Some("\t")));
    assert_eq!(encode(&frame, Version::V12), b"SEND\nfoo: bar \n baz :\t\n\n\0", "nor padded");
}

#[test]
fn stomp_07_the_first_of_repeated_headers_wins() {
    assert_eq!(one(b"SEND\na:1\na:2\n\n\0", Version::V12).header("a"), Some("1"));
    assert_eq!(one(b"SEND\ncontent-length:1\ncontent-length:9\n\nx\0", Version::V12).body, b"x");
}

#[test]
fn stomp_08_content_length_counts_octets_and_nul_must_follow() {
    assert_eq!(one(b"SEND\ncontent-length:3\n\n\0\0x\0", Version::V12).body, b"\0\0x");
    for bad in ["-1", "", "x", "+3", " 3", "3 ", "0x3"] {
        let wire = format!("SEND\nreceipt:r\ncontent-length:{bad}\n\nabc\0");
        let mut input = wire.as_bytes();
        let error = Decoder::new().next(&mut input, Version::V12, &Limits::default()).unwrap_err();
        assert_eq!((error.kind, error.receipt.as_deref()), (ErrorKind::ContentLength, Some("r")), "{bad:?}");
    }
    assert_eq!(v12(b"SEND\ncontent-length:2\n\nabc\0").1, Some(ErrorKind::NoNul));
    assert_eq!(v12(b"SEND\ncontent-length:99999999999999999999999\n\n").1, Some(ErrorKind::BodyTooLarge));
}

#[test]
fn stomp_09_a_body_is_sent_with_its_true_length() {
    let frame = Frame { body: b"a\0b".to_vec(), ..Frame::new("SEND", &[("content-length", "99"), ("x", "y")]) };
    assert_eq!(encode(&frame, Version::V12), b"SEND\nx:y\ncontent-length:3\n\na\0b\0");
}

#[test]
fn stomp_10_only_send_message_and_error_have_bodies() {
    assert_eq!(v12(b"SUBSCRIBE\nid:1\n\nbody\0").1, Some(ErrorKind::BodyNotAllowed));
    assert_eq!(v12(b"SUBSCRIBE\ncontent-length:1\n\n").1, Some(ErrorKind::BodyNotAllowed));
    assert_eq!(v12(b"SUBSCRIBE\ncontent-length:0\n\n\0").1, None);
    let frame = Frame { body: b"x".to_vec(), ..Frame::new("RECEIPT", &[("receipt-id", "1")]) };
    assert_eq!(encode(&frame, Version::V12), b"RECEIPT\nreceipt-id:1\n\n\0");
}

#[test]
fn stomp_12_limits_are_held_before_more_is_read() {
    let limits = Limits { head: 40, line: 20, headers: 3, body: 5 };
    let check = |wire: &[u8]| decode(&[wire], Version::V12, &limits).1;
    assert_eq!(check(b"SEND\na:1\nb:1\nc:1\n\n12345\0"), None);
    assert_eq!(check(b"SEND\na:1\nb:1\nc:1\nd:1\n"), Some(ErrorKind::TooManyHeaders));
    assert_eq!(check(b"SEND\n123456789012345678901"), Some(ErrorKind::LineTooLong));
    assert_eq!(check(b"SEND\na:345678901234567\na:345678901234567\n"), Some(ErrorKind::HeadTooLarge));
    assert_eq!(check(b"SEND\n\n123456"), Some(ErrorKind::BodyTooLarge));
    assert_eq!(check(b"SEND\ncontent-length:6\n\n"), Some(ErrorKind::BodyTooLarge));
}

#[test]
fn stomp_13_a_header_has_a_name_and_a_colon() {
    for bad in [&b"SEND\nabc\n\n\0"[..], b"SEND\n:abc\n\n\0", b"SEND\n:\n\n\0"] {
        assert_eq!(v12(bad).1, Some(ErrorKind::Header));
    }
}

#[test]
fn stomp_22_connected_is_not_escaped() {
    assert_eq!(encode(&Frame::new("CONNECTED", &[("a", "x:\\")]), Version::V12), b"CONNECTED\na:x:\\\n\n\0");
}

#[test]
fn stomp_34_a_message_says_what_it_is_about() {
    let update =
        Update::Snapshot(LikesState { post_id: PostId::new(7).unwrap(), likes: 3, version: crate::domain::Version(9) });
    let format = Format { epoch: Epoch(0xa), version: Version::V12, subscription: Some("s:1".into()) };
    let wire = message(&update, &format);
    assert!(
        wire.starts_with(b"MESSAGE\ndestination:/topic/posts.7.likes\nsubscription:s\\c1\nmessage-id:0000000a.7.9\n")
    );
    let frame = one(&wire, Version::V12);
    assert_eq!(frame.header("content-type"), Some("application/json"));
    assert_eq!(Update::from_json(&frame.body).unwrap(), update);
}

fn versions() -> impl Strategy<Value = Version> {
    prop::sample::select(Version::ALL.to_vec())
}

/// Frames a version can carry.
fn frames(version: Version) -> impl Strategy<Value = Frame> {
    let (name, value) = match version {
        Version::V10 => ("[a-zé\\\\]{1,9}", "[ -~é:\\\\]{0,20}"),
        _ => ("[a-zé:\\\\\r\n]{1,9}", "[ -~é:\\\\\r\n]{0,20}"),
    };
    let body = prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b'\n')], 0..40);
    let command = prop::sample::select(vec!["SEND", "MESSAGE", "ERROR", "SUBSCRIBE", "RECEIPT", "ACK"]);
    (command, prop::collection::vec((name, value), 0..6), body).prop_map(move |(command, headers, body)| {
        let body = if may_have_body(command) { body } else { Vec::new() };
        // 1.1 has no escape for CR: a literal one at a line's end is part of the value there, so it stays.
        Frame { command: command.to_owned(), headers, body }
    })
}

fn without_length(mut frame: Frame) -> Frame {
    frame.headers.retain(|(name, _)| name != "content-length");
    frame
}

proptest! {
    #[test]
    fn round_trip_at_any_split((version, list) in versions().prop_flat_map(|v| (Just(v), prop::collection::vec(frames(v), 0..4))), at in any::<prop::sample::Index>()) {
        let wire: Vec<u8> = list.iter().flat_map(|f| encode(f, version)).collect();
        let (a, b) = wire.split_at(at.index(wire.len() + 1));
        let pieces: Vec<&[u8]> = wire.chunks(1).collect();
        for parts in [&[a, b][..], &pieces] {
            let (items, error) = decode(parts, version, &Limits::default());
            let read: Vec<Frame> = items.into_iter().map(|i| match i {
                Item::Frame(frame) => without_length(frame),
                Item::HeartBeat => panic!("no heart-beat was sent"),
            }).collect();
            prop_assert_eq!(error, None);
            prop_assert_eq!(&read, &list);
        }
    }

    #[test]
    fn any_bytes_are_survived_within_limits(version in versions(), text in "((SEND|SUBSCRIBE|CONNECT|content-length|receipt|[a-z0-9]{1,3})|:|\n|\r\n|\r|\\\\|\\\\n|\0|é){0,40}", raw in prop::collection::vec(any::<u8>(), 0..30), at in any::<prop::sample::Index>()) {
        let limits = Limits { head: 60, line: 30, headers: 4, body: 20 };
        let bytes = [text.as_bytes(), &raw].concat();
        let whole = decode(&[&bytes], version, &limits);
        let (a, b) = bytes.split_at(at.index(bytes.len() + 1));
        let split = decode(&[a, b], version, &limits);
        // A run of line ends may come as one heart-beat or two; frames and errors may not differ.
        let frames = |items: &[Item]| items.iter().filter(|i| matches!(i, Item::Frame(_))).cloned().collect::<Vec<_>>();
        prop_assert_eq!((frames(&whole.0), whole.1), (frames(&split.0), split.1));
    }
}
