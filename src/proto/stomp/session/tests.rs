//! The session against the checklist, item by item, then against anything.

use proptest::prelude::*;

use super::*;
use crate::domain::{Epoch, LikesState};

const CONNECT: &[u8] = b"CONNECT\naccept-version:1.2\nhost:h\n\n\0";

fn session(connect: &str) -> Session {
    let mut session = fresh();
    let actions = session.feed(connect.replace('|', "\n").as_bytes());
    assert!(matches!(actions[..], [Action::Send(_)]), "{}", show(&actions));
    session
}

fn fresh() -> Session {
    Session::new(Arc::new(Options { epoch: Epoch(1), ..Options::default() }))
}

fn open() -> Session {
    session("CONNECT|accept-version:1.2|host:h||\0")
}

/// Actions in short: STOMP frames with LF as `|`, without NUL and content-length.
fn show(actions: &[Action]) -> String {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let lines = text.trim_end_matches('\0').split('\n').filter(|line| !line.starts_with("content-"));
        lines.collect::<Vec<_>>().join("|")
    };
    let one = |action: &Action| match action {
        Action::Send(bytes) => text(bytes),
        Action::Subscribe(s) => format!("subscribe {} {} {:?} {:?}", s.slot, s.post, s.ack, s.last),
        Action::Unsubscribe { slot, then } => {
            format!("unsubscribe {slot} then {}", then.as_ref().map_or_else(String::new, |b| text(b)))
        }
        Action::Like(like) => format!("{:?} {} token {}", like.op, like.post, like.token),
        other => format!("{other:?}"),
    };
    actions.iter().map(one).collect::<Vec<_>>().join(" ; ")
}

/// Feeds frames written with `|` for LF and returns the actions in short.
fn feed(session: &mut Session, frames: &str) -> String {
    show(&session.feed(frames.replace('|', "\n").as_bytes()))
}

/// The ERROR's message, which must be followed by the close.
fn error(session: &mut Session, frames: &str) -> String {
    let shown = feed(session, frames);
    let message = shown.rsplit_once("message:").unwrap_or_else(|| panic!("no ERROR in {shown:?}")).1;
    assert!(shown.contains("ERROR|") && shown.ends_with("; Close(Error)"), "{shown}");
    assert_eq!(feed(session, "SEND|destination:/app/posts.1.like||\0"), "", "nothing counts after an ERROR");
    message.split('|').next().unwrap().to_owned()
}

fn ok(session: &mut Session, token: u64) -> String {
    show(&session.outcome(token, &Outcome { status: 200, body: "{}".into() }))
}

fn refuse(session: &mut Session, token: u64) -> String {
    show(&session.outcome(token, &Outcome { status: 404, body: "{}".into() }))
}

#[test]
fn items_14_to_22_connecting() {
    let connected = "CONNECTED|version:1.2|heart-beat:10000,10000|server:pushlab||";
    assert_eq!(feed(&mut fresh(), "STOMP|accept-version:1.0,1.1,1.2|host:any||\0"), connected);
    assert_eq!(feed(&mut fresh(), "|||CONNECT|accept-version:1.2|host:any||\0|"), connected);
    assert_eq!(feed(&mut fresh(), "CONNECT||\0"), connected.replace("1.2", "1.0"), "no accept-version means 1.0");
    assert_eq!(feed(&mut fresh(), "CONNECT|accept-version:1.1,1.0|host:h||\0"), connected.replace("1.2", "1.1"));
    assert_eq!(error(&mut fresh(), "CONNECT|accept-version:1.2||\0"), "CONNECT needs the header host");
    assert_eq!(
        error(&mut fresh(), "SEND|destination:/app/posts.1.like||\0"),
        "the first frame must be CONNECT or STOMP"
    );
    assert_eq!(error(&mut open(), "CONNECT|accept-version:1.2|host:h||\0"), "already connected");
    let shown = feed(&mut fresh(), "CONNECT|accept-version:2.0,3|host:h||\0");
    assert_eq!(
        shown,
        "ERROR|version:1.2,1.1,1.0|message:no common version||supported versions are 1.2,1.1,1.0| ; Close(Error)"
    );
    assert_eq!(error(&mut fresh(), &format!("CONNECT|a:{}", "x".repeat(5000))), "command and headers are too large");
    assert_eq!(error(&mut fresh(), &format!("CONNECT|{}", "a:123456|".repeat(500))), "too many headers");
}

#[test]
fn items_23_to_26_heart_beats() {
    let beat = |header: &str| {
        let h = session(&format!("CONNECT|accept-version:1.2|host:h|{header}|\0")).heartbeat();
        (h.send_every.as_millis(), h.expect_every.as_millis())
    };
    assert_eq!(beat(""), (0, 0));
    assert_eq!(beat("heart-beat:0,0|"), (0, 0));
    assert_eq!(beat("heart-beat:5000,30000|"), (30_000, 10_000));
    assert_eq!(beat("heart-beat:99999999999,1|"), (10_000, u128::from(u32::MAX)));
    for bad in ["1", "1,", "-1,0", "1,2,3", "a,b", "1, 2"] {
        let frame = format!("CONNECT|accept-version:1.2|host:h|heart-beat:{bad}||\0");
        assert_eq!(error(&mut fresh(), &frame), "heart-beat must be two non-negative integers");
    }
    let s = Duration::from_secs;
    let mut session = session("CONNECT|accept-version:1.2|host:h|heart-beat:10000,10000||\0");
    assert_eq!(show(&session.tick(s(9), s(8), s(8))), "");
    assert_eq!(show(&session.tick(s(9), s(9), s(9))), "|", "a second early, as it is asked once a second");
    assert_eq!(show(&session.tick(s(99), s(20), s(0))), "", "twice the period is within the margin");
    let shown = show(&session.tick(s(99), s(21), s(9)));
    assert_eq!(shown, "ERROR|message:no heart-beat arrived in time||no heart-beat arrived in time ; Close(Error)");
    assert_eq!(show(&session.tick(s(99), s(99), s(99))), "");
    assert_eq!(show(&fresh().tick(s(9), s(9), s(9))), "");
    assert!(show(&fresh().tick(s(10), s(1), s(1))).contains("no CONNECT arrived in time"));
}

#[test]
fn items_28_to_35_subscriptions() {
    let mut s = open();
    let shown = feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|receipt:r|last-version:00000001.7.4||\0");
    assert_eq!(shown, "subscribe 1 7 Auto Some((Epoch(1), Version(4)))");
    assert_eq!(show(&s.subscribed(1).unwrap()), "RECEIPT|receipt-id:r||");
    assert_eq!(s.subscribed(1), None);
    assert_eq!(feed(&mut s, "UNSUBSCRIBE|id:a|receipt:u||\0"), "unsubscribe 1 then RECEIPT|receipt-id:u||");
    let shown =
        feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|last-version:rubbish||\0UNSUBSCRIBE|id:a||\0");
    assert_eq!(shown, "subscribe 2 7 Auto None ; unsubscribe 2 then ");
    assert_eq!(s.subscribed(2), None, "it left before it had joined");
    for (frame, message) in [
        ("SUBSCRIBE|destination:/topic/posts.7.likes", "SUBSCRIBE needs the header id"),
        ("SUBSCRIBE|id:a", "SUBSCRIBE needs the header destination"),
        ("SUBSCRIBE|id:a|destination:/topic/posts.*.likes", "no such destination"),
        ("SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:no", "ack must be auto, client or client-individual"),
        (
            "SUBSCRIBE|id:a|destination:/user/queue/replies|ack:client",
            "/user/queue/replies can be subscribed to once, with ack auto",
        ),
        ("UNSUBSCRIBE|id:b", "no such subscription"),
        ("UNSUBSCRIBE|destination:/topic/posts.7.likes", "UNSUBSCRIBE needs the header id"),
        ("SEND|x:y", "SEND needs the header destination"),
        ("SEND|destination:/topic/posts.7.likes", "no such destination"),
        ("SEND|destination:/app/posts.0.like", "no such destination"),
        ("SEND|destination:/app/posts.1.love", "no such destination"),
        ("NOSUCH|a:b", "unknown command"),
        ("send|destination:/app/posts.1.like", "unknown command"),
    ] {
        assert_eq!(error(&mut open(), &format!("{frame}||\0")), message, "{frame}");
    }
    let twice = "SUBSCRIBE|id:a|destination:/topic/posts.7.likes||\0".repeat(2);
    assert_eq!(error(&mut open(), &twice), "this subscription id is in use");
    let many: String = (1..=129).map(|i| format!("SUBSCRIBE|id:{i}|destination:/topic/posts.{i}.likes||\0")).collect();
    assert_eq!(error(&mut open(), &many), "at most 128 subscriptions per session");
}

#[test]
fn a_subscription_that_cannot_be_had_is_an_error() {
    let mut s = open();
    feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|receipt:r||\0");
    let shown = show(&s.refused(1, &Outcome { status: 404, body: "{\"status\":404}".into() }));
    assert_eq!(shown, "ERROR|message:cannot subscribe (404)|receipt-id:r||{\"status\":404} ; Close(Error)");
}

#[test]
fn version_1_0_knows_subscriptions_by_destination() {
    let mut s = session("CONNECT||\0");
    assert_eq!(feed(&mut s, "SUBSCRIBE|destination:/topic/posts.7.likes||\0"), "subscribe 1 7 Auto None");
    let shown = feed(&mut s, "UNSUBSCRIBE|destination:/topic/posts.7.likes|receipt:a:b||\0");
    assert_eq!(shown, "unsubscribe 1 then RECEIPT|receipt-id:a:b||");
}

fn update(version: u64) -> Update {
    Update::Snapshot(LikesState { post_id: PostId::new(7).unwrap(), likes: 1, version: Version(version) })
}

#[test]
fn items_35_to_38_acknowledgement() {
    let subscribed = |ack: &str| {
        let mut s = open();
        feed(&mut s, &format!("SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:{ack}||\0"));
        for version in 1..=3 {
            let bytes = s.message(&update(version), 1).unwrap();
            assert!(show(&[Action::Send(bytes)]).contains(&format!("|ack:1.00000001.7.{version}|")));
        }
        s
    };
    let ack = |n: u64| format!("ACK|id:1.00000001.7.{n}||\0");
    let unknown = "no such message waits to be acknowledged";
    assert_eq!(feed(&mut subscribed("client"), &(ack(2) + &ack(3))), "");
    assert_eq!(error(&mut subscribed("client"), &(ack(2) + &ack(1))), unknown, "client mode is cumulative");
    assert_eq!(feed(&mut subscribed("client-individual"), &(ack(2) + &ack(1).replace("ACK", "NACK"))), "");
    assert_eq!(error(&mut subscribed("client-individual"), &(ack(2) + &ack(2))), unknown);
    for bad in [
        "ACK|id:1.00000001.7.4",
        "ACK|id:2.00000001.7.1",
        "ACK|id:1.00000002.7.1",
        "ACK|id:1.00000001.8.1",
        "NACK|id:x",
    ] {
        assert_eq!(error(&mut subscribed("client"), &format!("{bad}||\0")), unknown, "{bad}");
    }
    assert_eq!(error(&mut subscribed("client"), "ACK|message-id:00000001.7.1||\0"), "ACK needs the header id");
    let mut s = subscribed("client-individual");
    for version in 4..=100 {
        let _ = s.message(&update(version), 1);
    }
    assert_eq!(feed(&mut s, &(ack(1) + &ack(100))), "", "what was forgotten is late, not wrong");
    let mut auto = open();
    feed(&mut auto, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes||\0");
    assert_eq!(auto.message(&update(1), 1), None);
    let mut s = session("CONNECT|accept-version:1.1|host:h||\0");
    feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:client||\0");
    let _ = s.message(&update(5), 1);
    assert_eq!(feed(&mut s, "ACK|subscription:a|message-id:00000001.7.5|receipt:r||\0"), "RECEIPT|receipt-id:r||");
}

#[test]
fn likes_are_done_one_after_the_other_and_get_their_receipt_after_the_commit() {
    let mut s = open();
    let shown = feed(
        &mut s,
        "SEND|destination:/app/posts.7.like|receipt:r1||\0SEND|destination:/app/posts.8.unlike|idempotency-key:k|receipt:r2||body\0",
    );
    assert_eq!(shown, "Like 7 token 1");
    assert_eq!(ok(&mut s, 2), "", "not the one that is out");
    assert_eq!(ok(&mut s, 1), "RECEIPT|receipt-id:r1|| ; Unlike 8 token 2");
    assert_eq!(refuse(&mut s, 2), "ERROR|message:the like was refused (404)|receipt-id:r2||{} ; Close(Error)");
}

#[test]
fn with_a_reply_queue_a_refusal_leaves_the_session_open() {
    let mut s = open();
    let shown = feed(&mut s, "SUBSCRIBE|id:q|destination:/user/queue/replies|receipt:s||\0");
    assert_eq!(shown, "RECEIPT|receipt-id:s||");
    feed(&mut s, "SEND|destination:/app/posts.7.like|correlation-id:c|receipt:r||\0");
    let reply = |n, c, status| {
        format!(
            "MESSAGE|destination:/user/queue/replies|subscription:q|message-id:reply-{n}|correlation-id:{c}|status:{status}||{{}}"
        )
    };
    assert_eq!(ok(&mut s, 1), format!("{} ; RECEIPT|receipt-id:r||", reply(1, "c", 200)));
    feed(&mut s, "SEND|destination:/app/posts.7.like|receipt:r3||\0");
    assert_eq!(refuse(&mut s, 3), reply(3, "r3", 404), "no RECEIPT, and the receipt's value correlates");
    assert_eq!(feed(&mut s, "UNSUBSCRIBE|id:q|receipt:u||\0"), "RECEIPT|receipt-id:u||");
}

#[test]
fn sixteen_likes_wait_then_the_socket_is_not_read() {
    let mut s = session("CONNECT|accept-version:1.2|host:h|heart-beat:1000,0||\0");
    let shown = feed(&mut s, &"SEND|destination:/app/posts.7.like||\0".repeat(20));
    assert_eq!(shown, "Like 7 token 1 ; Pause");
    assert_eq!(feed(&mut s, "SEND|destination:/app/posts.9.li"), "", "kept");
    assert_eq!(feed(&mut s, "ke||\0DISCONNECT|receipt:bye||\0"), "");
    let long = Duration::from_secs(1000);
    assert_eq!(show(&s.tick(long, long, Duration::ZERO)), "", "nothing is read, so silence means nothing");
    for token in 1..=5 {
        let shown = ok(&mut s, token);
        assert_eq!(shown, format!("Like 7 token {}", token + 1));
    }
    // Now the 21st is taken in and the DISCONNECT read: the socket may be read again, though nothing will count.
    assert_eq!(ok(&mut s, 6), "Like 7 token 7 ; Resume");
    for token in 7..=20 {
        ok(&mut s, token);
    }
    assert_eq!(ok(&mut s, 21), "RECEIPT|receipt-id:bye|| ; Close(Disconnected)");
}

#[test]
fn when_the_peer_vanishes_what_was_received_is_still_to_be_done() {
    let mut s = open();
    feed(&mut s, &"SEND|destination:/app/posts.7.like||\0".repeat(3));
    assert_eq!(s.take_pending().iter().map(|l| l.token).collect::<Vec<_>>(), [2, 3]);
    let mut s = open();
    feed(&mut s, &"SEND|destination:/app/posts.7.like||\0".repeat(40));
    assert_eq!(s.take_pending().len(), 39, "also those in input that was not read yet");
}

#[test]
fn items_39_and_40_transactions() {
    let like = "SEND|destination:/app/posts.7.like|transaction:t|receipt:l||\0";
    let mut s = open();
    assert_eq!(feed(&mut s, "BEGIN|transaction:t|receipt:b||\0"), "RECEIPT|receipt-id:b||");
    assert_eq!(feed(&mut s, like), "", "takes effect on COMMIT only");
    assert_eq!(feed(&mut s, "COMMIT|transaction:t|receipt:c||\0"), "Like 7 token 1");
    assert_eq!(ok(&mut s, 1), "RECEIPT|receipt-id:l|| ; RECEIPT|receipt-id:c||");
    assert_eq!(
        feed(&mut s, &format!("BEGIN|transaction:t||\0{like}ABORT|transaction:t|receipt:a||\0")),
        "RECEIPT|receipt-id:a||"
    );
    assert_eq!(feed(&mut s, &format!("BEGIN|transaction:t||\0{like}DISCONNECT||\0")), "Close(Disconnected)");
    let begin = "BEGIN|transaction:t||\0";
    let many: String = (0..5).map(|i| format!("BEGIN|transaction:{i}||\0")).collect();
    for (frames, message) in [
        (begin.repeat(2), "this transaction has already begun"),
        ("BEGIN||\0".to_owned(), "BEGIN needs the header transaction"),
        ("COMMIT|transaction:x||\0".to_owned(), "no such transaction"),
        ("ABORT|transaction:x||\0".to_owned(), "no such transaction"),
        (like.to_owned(), "no such transaction"),
        (format!("{begin}{like}{like}"), "a transaction holds at most one like, as likes do not commit together"),
        (many, "at most 4 transactions at a time"),
    ] {
        assert_eq!(error(&mut open(), &frames), message);
    }
    let mut s = open();
    feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:client||\0BEGIN|transaction:t||\0");
    let _ = s.message(&update(1), 1);
    assert_eq!(feed(&mut s, "ACK|id:1.00000001.7.1|transaction:t|receipt:k||\0"), "");
    assert_eq!(feed(&mut s, "COMMIT|transaction:t||\0"), "RECEIPT|receipt-id:k||");
}

#[test]
fn items_41_to_45_receipts_and_errors() {
    assert_eq!(feed(&mut open(), "DISCONNECT|receipt:r||\0"), "RECEIPT|receipt-id:r|| ; Close(Disconnected)");
    assert_eq!(feed(&mut open(), "DISCONNECT||\0NOSUCH||\0"), "Close(Disconnected)", "frames after it are ignored");
    let shown = feed(&mut open(), "NOSUCH|receipt:a\\cb||\0");
    assert_eq!(shown, "ERROR|message:unknown command|receipt-id:a\\cb||unknown command ; Close(Error)");
    assert_eq!(error(&mut open(), "SEND|a:\\t||\0"), "undefined escape sequence in a header");
    assert_eq!(
        error(&mut open(), &format!("SEND|destination:/app/posts.1.like||{}", "x".repeat(70_000))),
        "the body is too large"
    );
    let shown = feed(&mut open(), "SEND|receipt:r|content-length:x||\0");
    assert!(shown.contains("|receipt-id:r|"), "{shown}");
}

#[test]
fn an_idle_session_is_small() {
    let mut s = open();
    feed(&mut s, "SUBSCRIBE|id:0|destination:/topic/posts.7.likes||\0");
    s.subscribed(1).unwrap();
    feed(&mut s, "SEND|destination:/app/posts.7.like||\0|BEGIN|transaction:t||\0COMMIT|transaction:t||\0");
    ok(&mut s, 2);
    assert!(s.work.is_none() && s.decoder.held() == 0);
    let heap = s.topics.capacity() * size_of::<Topic>() + size_of::<[usize; 3]>();
    assert!(heap <= 100, "{heap} bytes of heap");
    assert!(size_of::<Session>() <= 184, "{} bytes", size_of::<Session>());
}

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
                        let item = Decoder::new().next(&mut input, super::super::Version::V12, &Limits::default());
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
