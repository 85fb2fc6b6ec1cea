//! A session that has connected and is then told anything: promises are kept, nothing follows a close.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pushlab_fuzz::proto::stomp::session::{Action, Options, Outcome, Session};

fuzz_target!(|data: &[u8]| {
    // Half of the inputs meet the conformance mode, where SENDs come back.
    let relay = data.len() % 2 == 1;
    let mut session = Session::new(Arc::new(Options { relay, ..Options::default() }));
    let connected = session.feed(b"CONNECT\naccept-version:1.2\nhost:h\nheart-beat:1,1\n\n\0");
    assert!(matches!(connected[..], [Action::Send(_)]));
    let (mut out, mut joins, mut closed) = (None, Vec::new(), false);
    // 0xff never occurs in UTF-8: here it parts the input and lets time and outcomes pass.
    for (i, piece) in data.split(|b| *b == 0xff).enumerate() {
        let outcome = Outcome { status: if i % 3 == 0 { 503 } else { 200 }, body: "{}".into() };
        let mut batches = vec![session.feed(piece)];
        if let Some(token) = out.take() {
            batches.push(session.outcome(token, &outcome));
            // What the feed asked for comes after what the outcome answers: at most one like is out.
        }
        if let Some(slot) = joins.pop() {
            batches.push(session.subscribed(slot).unwrap_or_default());
        }
        batches.push(session.tick(Duration::ZERO, Duration::ZERO, Duration::from_secs(9)));
        for action in batches.into_iter().flatten() {
            assert!(!closed, "nothing follows a close");
            match action {
                Action::Relay(relayed) => assert!(session.relayed(i as u64, &relayed).len() <= 128),
                Action::Like(like) => assert!(out.replace(like.token).is_none(), "one like at a time"),
                Action::Subscribe(subscribe) => joins.push(subscribe.slot),
                Action::Close(_) => closed = true,
                _ => {}
            }
        }
    }
});
