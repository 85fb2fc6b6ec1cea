//! The decoder against rules, against itself at every split, and against tungstenite.

use proptest::prelude::*;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{Frame as Theirs, FrameHeader};

use super::super::{client_frame, close_answer, close_payload, server_frame};
use super::*;

type Decoded = (Vec<Event<'static>>, Option<u16>);

fn decode(role: Role, limits: Limits, parts: &[&[u8]]) -> Decoded {
    let (mut decoder, mut events) = (Decoder::new(role, limits), Vec::new());
    for part in parts {
        let result = decoder.feed(part, &mut events);
        assert!(decoder.held() <= limits.message + 125, "held {} bytes", decoder.held());
        if let Err(error) = result {
            return (events, Some(error.code));
        }
    }
    (events, None)
}

fn server(parts: &[&[u8]]) -> Decoded {
    decode(Role::Server, Limits::default(), parts)
}

/// A masked frame with all bits chosen.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = client_frame(Opcode::Text, payload, [1, 2, 3, 4]);
    frame[0] = first;
    frame
}

fn text(data: &str) -> Event<'static> {
    Event::Message { text: true, data: Cow::Owned(data.as_bytes().to_vec()) }
}

#[test]
fn fragments_join_around_a_ping() {
    let wire = [raw(0x01, "gr\u{fc}".as_bytes()), raw(0x89, b"?"), raw(0x80, "\u{df}e".as_bytes())].concat();
    assert_eq!(server(&[&wire]), (vec![Event::Ping(b"?".to_vec()), text("gr\u{fc}\u{df}e")], None));
}

#[test]
fn a_character_may_be_split_over_fragments_but_not_broken() {
    let wire = [raw(0x01, b"\xc3"), raw(0x80, b"\xbc")].concat();
    assert_eq!(server(&[&wire]), (vec![text("\u{fc}")], None));
    assert_eq!(server(&[&raw(0x81, b"\xc3")]).1, Some(1007));
    // Fails at the first wrong byte, not at the end of the message.
    assert_eq!(server(&[&raw(0x01, b"\xc3\x28")]).1, Some(1007));
    assert_eq!(server(&[&raw(0x82, b"\xff")]).1, None, "binary is not checked");
    assert_eq!(decode(Role::Client, Limits::default(), &[&[0x81, 1, 0xff]]).1, Some(1007));
}

/// Found by the fuzz target: the reason depended on whether the frame came in one piece.
#[test]
fn a_cut_character_is_called_so_however_the_bytes_are_split() {
    for wire in [b"\x81\x01\xf4", b"\x81\x01\xff"] {
        let read = |parts: &[&[u8]]| {
            let mut decoder = Decoder::new(Role::Client, Limits::default());
            parts.iter().find_map(|part| decoder.feed(part, &mut Vec::new()).err()).expect("no UTF-8")
        };
        assert_eq!(read(&[wire]), read(&[&wire[..1], &wire[1..2], &wire[2..]]));
    }
}

#[test]
fn each_broken_rule_has_its_code() {
    let cases: &[(&str, Vec<u8>, u16)] = &[
        ("reserved bit", raw(0xc1, b""), 1002),
        ("unknown opcode", raw(0x83, b""), 1002),
        ("unknown control opcode", raw(0x8b, b""), 1002),
        ("split ping", raw(0x09, b""), 1002),
        ("long ping", raw(0x89, &[0; 126]), 1002),
        ("nothing to continue", raw(0x80, b""), 1002),
        ("text inside text", [raw(0x01, b""), raw(0x81, b"")].concat(), 1002),
        ("not masked", server_frame(Opcode::Text, b"x").to_vec(), 1002),
        ("length 5 in two bytes", vec![0x82, 0xfe, 0, 5, 0, 0, 0, 0], 1002),
        ("length 5 in eight bytes", vec![0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0], 1002),
        ("length 2^63", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002),
        ("close with one byte", raw(0x88, b"x"), 1002),
        ("close 1005", raw(0x88, &close_payload(1005, "")), 1002),
        ("close 999", raw(0x88, &close_payload(999, "")), 1002),
        ("close reason", raw(0x88, &[0x03, 0xe8, 0xff]), 1007),
        ("big frame, from its header alone", vec![0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0], 1009),
        ("big message", [raw(0x02, &[0; 40_000]), raw(0x80, &[0; 40_000])].concat(), 1009),
        ("fragments", [vec![raw(0x02, b"")], vec![raw(0x00, b""); 64]].concat().concat(), 1008),
    ];
    for (name, wire, code) in cases {
        assert_eq!(server(&[wire]).1, Some(*code), "{name}");
    }
    let masked = client_frame(Opcode::Text, b"x", [1; 4]);
    assert_eq!(decode(Role::Client, Limits::default(), &[&masked]).1, Some(1002));
}

#[test]
fn after_a_close_nothing_counts() {
    let wire = [raw(0x88, &close_payload(1000, "bye")), raw(0xff, b"rubbish")].concat();
    assert_eq!(server(&[&wire]), (vec![Event::Close { code: Some(1000), reason: "bye".into() }], None));
    assert_eq!(server(&[&raw(0x88, b"")]).0, [Event::Close { code: None, reason: String::new() }]);
    assert_eq!(&close_answer(Some(1000))[..], [0x88, 2, 0x03, 0xe8]);
    assert_eq!(close_payload(1000, &"\u{fc}".repeat(100)).len(), 124, "cut between characters");
}

#[test]
fn an_idle_decoder_is_small_and_holds_no_heap() {
    let (mut decoder, mut events) = (Decoder::new(Role::Server, Limits::default()), Vec::new());
    decoder.feed(&raw(0x82, &[7; 5000]), &mut events).unwrap();
    assert_eq!((events.len(), decoder.held()), (1, 0));
    assert!(size_of::<Decoder>() <= 168, "{}", size_of::<Decoder>());
}

#[test]
fn what_a_server_sends_is_read_without_a_copy() {
    let wire = server_frame(Opcode::Text, b"hello");
    let mut input = &wire[..];
    let event = Decoder::new(Role::Client, Limits::default()).next(&mut input).unwrap();
    assert!(matches!(event, Some(Event::Message { data: Cow::Borrowed(b"hello"), text: true })));
}

/// Frames as tungstenite writes them: a sequence of messages, some in fragments, with pings between.
fn theirs(mask: bool) -> impl Strategy<Value = (Vec<u8>, Vec<Event<'static>>)> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..200),
        1 => prop::collection::vec(any::<u8>(), 65_000..66_000),
    ];
    let message = (any::<bool>(), ".{0,40}", payload, any::<prop::sample::Index>(), any::<bool>(), any::<bool>());
    prop::collection::vec(message, 0..6).prop_map(move |messages| {
        let (mut wire, mut events) = (Vec::new(), Vec::new());
        let mut put = |payload: &[u8], opcode, fin| {
            let header =
                FrameHeader { is_final: fin, opcode, mask: mask.then_some([9, 8, 7, 6]), ..FrameHeader::default() };
            let frame = Theirs::from_payload(header, payload.to_vec().into());
            frame.format(&mut wire).unwrap();
        };
        for (is_text, string, bytes, at, split, ping) in messages {
            let data = if is_text { string.into_bytes() } else { bytes };
            let opcode = OpCode::Data(if is_text { Data::Text } else { Data::Binary });
            let at = if split { at.index(data.len() + 1) } else { data.len() };
            put(&data[..at], opcode, !split);
            if ping {
                put(b"ping", OpCode::Control(Control::Ping), true);
                events.push(Event::Ping(b"ping".to_vec()));
            }
            if split {
                put(&data[at..], OpCode::Data(Data::Continue), true);
            }
            let message = Event::Message { text: is_text, data: Cow::Owned(data) };
            let place = events.len() - usize::from(ping && !split);
            events.insert(place, message);
        }
        (wire, events)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn tungstenites_frames_are_read_at_any_split((wire, events) in theirs(true), at in any::<prop::sample::Index>()) {
        let limits = Limits { frame: 1 << 17, message: 1 << 17, fragments: 8 };
        let (a, b) = wire.split_at(at.index(wire.len() + 1));
        prop_assert_eq!(decode(Role::Server, limits, &[a, b]), (events.clone(), None));
        if wire.len() < 2000 {
            let bytes: Vec<&[u8]> = wire.chunks(1).collect();
            prop_assert_eq!(decode(Role::Server, limits, &bytes), (events, None));
        }
    }

    #[test]
    fn and_on_the_clients_side((wire, events) in theirs(false), at in any::<prop::sample::Index>()) {
        let limits = Limits { frame: 1 << 17, message: 1 << 17, fragments: 8 };
        let (a, b) = wire.split_at(at.index(wire.len() + 1));
        prop_assert_eq!(decode(Role::Client, limits, &[a, b]), (events, None));
    }

    #[test]
    fn our_frames_are_tungstenites_byte_for_byte(data in prop::collection::vec(any::<u8>(), 0..300), long in any::<bool>(), mask: [u8; 4]) {
        let data = if long { data.repeat(300) } else { data };
        let mut theirs = Vec::new();
        Theirs::message(data.clone(), OpCode::Data(Data::Binary), true).format(&mut theirs).unwrap();
        prop_assert_eq!(&server_frame(Opcode::Binary, &data)[..], &theirs[..]);
        let mut frame = Theirs::message(data.clone(), OpCode::Data(Data::Binary), true);
        frame.header_mut().mask = Some(mask);
        theirs.clear();
        frame.format(&mut theirs).unwrap();
        prop_assert_eq!(client_frame(Opcode::Binary, &data, mask), theirs);
    }

    #[test]
    fn any_bytes_are_survived_and_splits_do_not_matter(bytes in prop::collection::vec(any::<u8>(), 0..300), server in any::<bool>(), at in any::<prop::sample::Index>()) {
        let role = if server { Role::Server } else { Role::Client };
        let limits = Limits { frame: 100, message: 150, fragments: 3 };
        let whole = decode(role, limits, &[&bytes]);
        let (a, b) = bytes.split_at(at.index(bytes.len() + 1));
        prop_assert_eq!(decode(role, limits, &[a, b]), whole);
    }
}
