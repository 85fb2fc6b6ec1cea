//! The session against anything: promises are kept whatever arrives, however it is split.

use proptest::prelude::*;

use super::*;
use crate::proto::stomp::frame::{Decoder, Item, Limits};

/// Pieces of frames, mostly sensible, so that sessions get far.
fn pieces() -> impl Strategy<Value = String> {
    let command = prop::sample::select(vec![
        "SEND",
        "SEND",
        "SUBSCRIBE",
        "SUBSCRIBE",
        "UNSUBSCRIBE",
        "ACK",
        "NACK",
        "BEGIN",
        "COMMIT",
        "ABORT",
        "DISCONNECT",
        "CONNECT",
        "X",
    ]);
    let header = prop::sample::select(vec![
        "destination:/app/posts.7.like",
        "destination:/topic/posts.7.likes",
        "destination:/user/queue/replies",
        "id:a",
        "id:b",
        "id:1.00000001.7.1",
        "ack:client",
        "transaction:t",
        "transaction:u",
        "receipt:r",
        "correlation-id:c",
        "content-length:2",
        "rubbish",
    ]);
    let end = prop::sample::select(vec!["\n\0", "\n\0", "\n\0\n", "\nxy\0", "\n", ""]);
    (command, prop::collection::vec(header, 0..5), end).prop_map(|(command, headers, end)| {
        format!("{command}\n{}{end}", headers.iter().map(|h| format!("{h}\n")).collect::<String>())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_arrives_the_session_keeps_its_promises(list in prop::collection::vec((pieces(), 0u8..5, any::<u16>()), 0..40)) {
        let mut s = fresh();
        let (mut out, mut paused, mut closed, mut last) = (None, false, false, 0);
        let mut step = |actions: Vec<Action>, out: &mut Option<u64>| {
            for action in actions {
                prop_assert!(!closed, "nothing follows a close");
                match action {
                    Action::Like(like) => {
                        prop_assert!(out.is_none() && like.token > last, "one at a time, in order");
                        last = like.token;
                        *out = Some(like.token);
                    }
                    Action::Pause => prop_assert!(!std::mem::replace(&mut paused, true)),
                    Action::Resume => prop_assert!(std::mem::replace(&mut paused, false)),
                    Action::Close(_) => closed = true,
                    Action::Send(bytes) if &bytes[..] != b"\n" => {
                        let mut input = &bytes[..];
                        let item = Decoder::new().next(&mut input, stomp::Version::V12, &Limits::default());
                        prop_assert!(matches!(item, Ok(Some(Item::Frame(_)))) && input.is_empty());
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        step(s.feed(CONNECT), &mut out)?;
        for (piece, act, n) in list {
            let (a, b) = piece.split_at(usize::from(n) % (piece.len() + 1));
            step(s.feed(a.as_bytes()), &mut out)?;
            step(s.feed(b.as_bytes()), &mut out)?;
            prop_assert!(s.pending() <= MAX_PENDING);
            let outcome = Outcome { status: if n % 3 == 0 { 503 } else { 200 }, body: "{}".into() };
            match act {
                0 | 1 => if let Some(token) = out.take() { step(s.outcome(token, &outcome), &mut out)? },
                2 => step(s.subscribed(u32::from(n % 8)).unwrap_or_default(), &mut out)?,
                3 => drop(s.message(&update(u64::from(n)), u32::from(n % 8))),
                _ => step(s.tick(Duration::from_secs(1), Duration::ZERO, Duration::ZERO), &mut out)?,
            }
        }
    }

    #[test]
    fn splits_do_not_matter(list in prop::collection::vec(pieces(), 0..10)) {
        let wire = list.concat();
        let (mut whole, mut bytewise) = (fresh(), fresh());
        let _ = whole.feed(CONNECT);
        let _ = bytewise.feed(CONNECT);
        let one = whole.feed(wire.as_bytes());
        let other: Vec<Action> = wire.as_bytes().iter().flat_map(|b| bytewise.feed(std::slice::from_ref(b))).collect();
        prop_assert_eq!(one, other);
    }
}
