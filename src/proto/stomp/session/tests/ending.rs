//! Items 39 to 46: transactions, receipts, errors, and likes on their way.

use super::*;

const LIKE: &str = "SEND|destination:/app/posts.7.like|transaction:t|receipt:l||\0";

#[test]
fn stomp_39_transactions_need_a_name_and_are_bounded() {
    let begin = "BEGIN|transaction:t||\0";
    let many: String = (0..5).map(|i| format!("BEGIN|transaction:{i}||\0")).collect();
    let acks = "ACK|id:1.00000001.7.1|transaction:t||\0".repeat(17);
    for (frames, message) in [
        (begin.repeat(2), "this transaction has already begun"),
        ("BEGIN||\0".to_owned(), "BEGIN needs the header transaction"),
        ("COMMIT||\0".to_owned(), "COMMIT needs the header transaction"),
        ("ABORT||\0".to_owned(), "ABORT needs the header transaction"),
        ("COMMIT|transaction:x||\0".to_owned(), "no such transaction"),
        ("ABORT|transaction:x||\0".to_owned(), "no such transaction"),
        (LIKE.to_owned(), "no such transaction"),
        (format!("{begin}COMMIT|transaction:t||\0{LIKE}"), "no such transaction"),
        (many, "at most 4 transactions at a time"),
    ] {
        assert_eq!(error(&mut open(), &frames), message);
    }
    let mut s = open();
    feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:client||\0");
    let _ = s.message(&update(1), 1);
    assert_eq!(error(&mut s, &format!("{begin}{acks}")), "at most 16 frames in a transaction");
}

#[test]
fn stomp_40_frames_of_a_transaction_take_effect_on_commit_only() {
    let mut s = open();
    assert_eq!(feed(&mut s, "BEGIN|transaction:t|receipt:b||\0"), "RECEIPT|receipt-id:b||");
    assert_eq!(feed(&mut s, LIKE), "");
    assert_eq!(feed(&mut s, "COMMIT|transaction:t|receipt:c||\0"), "Like 7 token 1");
    assert_eq!(ok(&mut s, 1), "RECEIPT|receipt-id:l|| ; RECEIPT|receipt-id:c||");
    let begin = "BEGIN|transaction:t||\0";
    let aborted = format!("{begin}{LIKE}ABORT|transaction:t|receipt:a||\0");
    assert_eq!(feed(&mut s, &aborted), "RECEIPT|receipt-id:a||");
    // DISCONNECT and the peer's disappearance drop what is not committed.
    assert_eq!(feed(&mut s, &format!("{begin}{LIKE}DISCONNECT||\0")), "Close(Disconnected)");
    let mut s = open();
    feed(&mut s, &format!("{begin}{LIKE}"));
    assert!(s.take_pending().is_empty());
    // Likes of several posts do not commit together, so a second one cannot be promised.
    let two = "a transaction holds at most one like, as likes do not commit together";
    assert_eq!(error(&mut open(), &format!("{begin}{LIKE}{LIKE}")), two);
}

#[test]
fn stomp_40_acknowledgements_wait_for_commit_too() {
    for command in ["ACK", "NACK"] {
        let mut s = open();
        feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:client-individual||\0");
        let _ = s.message(&update(1), 1);
        let ack = format!("{command}|id:1.00000001.7.1|transaction:t|receipt:k||\0");
        assert_eq!(feed(&mut s, &format!("BEGIN|transaction:t||\0{ack}ABORT|transaction:t||\0")), "");
        assert_eq!(feed(&mut s, &format!("BEGIN|transaction:t||\0{ack}")), "", "aborted, so it still waits");
        assert_eq!(feed(&mut s, "COMMIT|transaction:t||\0"), "RECEIPT|receipt-id:k||");
        let again = format!("BEGIN|transaction:t||\0{ack}");
        assert_eq!(error(&mut s, &again), "no such message waits to be acknowledged");
    }
}

#[test]
fn stomp_41_every_frame_that_asks_gets_its_receipt() {
    let mut s = open();
    feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:client||\0");
    s.subscribed(1).unwrap();
    for version in 1..=2 {
        let _ = s.message(&update(version), 1);
    }
    let receipt = "RECEIPT|receipt-id:r||";
    for frame in [
        "SUBSCRIBE|id:q|destination:/user/queue/replies",
        "ACK|id:1.00000001.7.1",
        "NACK|id:1.00000001.7.2",
        "BEGIN|transaction:t",
        "COMMIT|transaction:t",
        "UNSUBSCRIBE|id:q",
    ] {
        assert_eq!(feed(&mut s, &format!("{frame}|receipt:r||\0")), receipt, "{frame}");
    }
    feed(&mut s, "BEGIN|transaction:t||\0");
    assert_eq!(feed(&mut s, "ABORT|transaction:t|receipt:r||\0"), receipt);
    assert_eq!(feed(&mut s, "UNSUBSCRIBE|id:a|receipt:r||\0"), format!("unsubscribe 1 then {receipt}"));
    assert_eq!(feed(&mut s, "DISCONNECT|receipt:r||\0"), format!("{receipt} ; Close(Disconnected)"));
    let connected = feed(&mut fresh(), "CONNECT|accept-version:1.2|host:h|receipt:r||\0");
    assert!(connected.starts_with("CONNECTED|") && !connected.contains("RECEIPT"), "not to CONNECT: {connected}");
}

#[test]
fn stomp_41_a_like_gets_its_receipt_after_its_commit() {
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
fn stomp_42_a_disconnect_is_answered_last_and_frames_after_it_are_ignored() {
    let mut s = open();
    let frames = "SEND|destination:/app/posts.7.like|receipt:l||\0DISCONNECT|receipt:r||\0NOSUCH||\0";
    assert_eq!(feed(&mut s, frames), "Like 7 token 1");
    assert_eq!(ok(&mut s, 1), "RECEIPT|receipt-id:l|| ; RECEIPT|receipt-id:r|| ; Close(Disconnected)");
    assert_eq!(feed(&mut open(), "DISCONNECT||\0NOSUCH||\0"), "Close(Disconnected)");
}

#[test]
fn stomp_43_what_was_received_is_done_when_the_peer_has_vanished() {
    let mut s = open();
    feed(&mut s, &"SEND|destination:/app/posts.7.like||\0".repeat(3));
    assert_eq!(s.take_pending().iter().map(|l| l.token).collect::<Vec<_>>(), [2, 3]);
    let mut s = open();
    feed(&mut s, &"SEND|destination:/app/posts.7.like||\0".repeat(40));
    assert_eq!(s.take_pending().len(), 39, "also those in input that was not read yet");
}

#[test]
fn stomp_45_an_error_names_its_culprit_and_its_type() {
    let bytes = match &open().feed(b"NOSUCH\nreceipt:a\\cb\n\n\0")[..] {
        [Action::Send(bytes), Action::Close(End::Error)] => bytes.clone(),
        other => panic!("{}", show(other)),
    };
    let expected = "ERROR\nmessage:unknown command\nreceipt-id:a\\cb\ncontent-type:text/plain\ncontent-length:15\n\nunknown command\0";
    assert_eq!(String::from_utf8_lossy(&bytes), expected);
    // Also when the culprit could not be read to its end.
    let shown = feed(&mut open(), "SEND|receipt:r|content-length:x||\0");
    assert!(shown.contains("|receipt-id:r|"), "{shown}");
    assert_eq!(error(&mut open(), "SEND|a:\\t||\0"), "undefined escape sequence in a header");
    let big = format!("SEND|destination:/app/posts.1.like||{}", "x".repeat(70_000));
    assert_eq!(error(&mut open(), &big), "the body is too large");
}

#[test]
fn stomp_46_an_unknown_command_is_an_error() {
    for command in ["NOSUCH|a:b", "send|destination:/app/posts.1.like", "MESSAGE|a:b", "RECEIPT|receipt-id:1"] {
        assert_eq!(error(&mut open(), &format!("{command}||\0")), "unknown command", "{command}");
    }
}
