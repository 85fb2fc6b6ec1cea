//! Items 28 to 38: SEND, SUBSCRIBE, MESSAGE, ACK.

use super::*;

#[test]
fn stomp_28_send_needs_a_destination_that_exists() {
    for (frame, message) in [
        ("SEND|x:y", "SEND needs the header destination"),
        ("SEND|destination:/topic/posts.7.likes", "no such destination"),
        ("SEND|destination:/topic/other", "no such destination"),
        ("SEND|destination:/app/posts.0.like", "no such destination"),
        ("SEND|destination:/app/posts.*.like", "no such destination"),
        ("SEND|destination:/app/posts.1.love", "no such destination"),
    ] {
        assert_eq!(error(&mut open(), &format!("{frame}||\0")), message, "{frame}");
    }
}

#[test]
fn stomp_30_subscribe_needs_an_id_and_a_destination_that_can_be_had() {
    let mut s = open();
    let shown = feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|receipt:r|last-version:00000001.7.4||\0");
    assert_eq!(shown, "subscribe 1 7 Auto Some((Epoch(1), Version(4)))");
    assert_eq!(show(&s.subscribed(1).unwrap()), "RECEIPT|receipt-id:r||");
    assert_eq!(s.subscribed(1), None);
    for (frame, message) in [
        ("SUBSCRIBE|destination:/topic/posts.7.likes", "SUBSCRIBE needs the header id"),
        ("SUBSCRIBE|id:a", "SUBSCRIBE needs the header destination"),
        ("SUBSCRIBE|id:a|destination:/topic/posts.*.likes", "no such destination"),
    ] {
        assert_eq!(error(&mut open(), &format!("{frame}||\0")), message, "{frame}");
    }
    let many: String = (1..=129).map(|i| format!("SUBSCRIBE|id:{i}|destination:/topic/posts.{i}.likes||\0")).collect();
    assert_eq!(error(&mut open(), &many), "at most 128 subscriptions per session");
}

#[test]
fn stomp_30_a_subscription_that_cannot_be_had_is_an_error() {
    let mut s = open();
    feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|receipt:r||\0");
    let shown = show(&s.refused(1, &Outcome { status: 404, body: "{\"status\":404}".into() }));
    assert_eq!(shown, "ERROR|message:cannot subscribe (404)|receipt-id:r||{\"status\":404} ; Close(Error)");
}

#[test]
fn stomp_30_version_1_0_knows_subscriptions_by_destination() {
    let mut s = session("CONNECT||\0");
    assert_eq!(feed(&mut s, "SUBSCRIBE|destination:/topic/posts.7.likes||\0"), "subscribe 1 7 Auto None");
    let shown = feed(&mut s, "UNSUBSCRIBE|destination:/topic/posts.7.likes|receipt:a:b||\0");
    assert_eq!(shown, "unsubscribe 1 then RECEIPT|receipt-id:a:b||");
    // It may have had an id all the same.
    feed(&mut s, "SUBSCRIBE|id:x|destination:/topic/posts.7.likes||\0");
    assert_eq!(feed(&mut s, "UNSUBSCRIBE|destination:/topic/posts.7.likes||\0"), "unsubscribe 2 then ");
}

#[test]
fn stomp_31_an_id_names_one_subscription_of_a_session() {
    let in_use = "this subscription id is in use";
    let twice = "SUBSCRIBE|id:a|destination:/topic/posts.7.likes||\0".repeat(2);
    assert_eq!(error(&mut open(), &twice), in_use);
    let other = "SUBSCRIBE|id:a|destination:/user/queue/replies||\0SUBSCRIBE|id:a|destination:/topic/posts.7.likes||\0";
    assert_eq!(error(&mut open(), other), in_use);
}

#[test]
fn stomp_32_ack_is_one_of_three_and_auto_by_default() {
    for (ack, mode) in
        [("", "Auto"), ("ack:auto|", "Auto"), ("ack:client|", "Client"), ("ack:client-individual|", "ClientIndividual")]
    {
        let shown = feed(&mut open(), &format!("SUBSCRIBE|id:a|destination:/topic/posts.7.likes|{ack}|\0"));
        assert_eq!(shown, format!("subscribe 1 7 {mode} None"));
    }
    let wrong = "ack must be auto, client or client-individual";
    assert_eq!(error(&mut open(), "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:no||\0"), wrong);
    let replies = "SUBSCRIBE|id:a|destination:/user/queue/replies|ack:client||\0";
    assert_eq!(error(&mut open(), replies), "/user/queue/replies can be subscribed to once, with ack auto");
    let individual = "SUBSCRIBE|destination:/topic/posts.7.likes|ack:client-individual||\0";
    assert_eq!(error(&mut session("CONNECT||\0"), individual), wrong, "1.0 has no such mode");
}

#[test]
fn stomp_33_unsubscribe_needs_the_id_of_a_subscription() {
    let mut s = open();
    feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes||\0");
    assert!(s.subscribed(1).is_some());
    assert_eq!(feed(&mut s, "UNSUBSCRIBE|id:a|receipt:u||\0"), "unsubscribe 1 then RECEIPT|receipt-id:u||");
    let early = "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|last-version:rubbish||\0UNSUBSCRIBE|id:a||\0";
    assert_eq!(feed(&mut s, early), "subscribe 2 7 Auto None ; unsubscribe 2 then ");
    assert_eq!(s.subscribed(2), None, "it left before it had joined");
    assert_eq!(error(&mut open(), "UNSUBSCRIBE|id:b||\0"), "no such subscription");
    let by_destination = "UNSUBSCRIBE|destination:/topic/posts.7.likes||\0";
    assert_eq!(error(&mut open(), by_destination), "UNSUBSCRIBE needs the header id");
}

fn subscribed(ack: &str) -> Session {
    let mut s = open();
    feed(&mut s, &format!("SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:{ack}||\0"));
    for version in 1..=3 {
        assert!(s.message(&update(version), 1).is_some());
    }
    s
}

fn ack(n: u64) -> String {
    format!("ACK|id:1.00000001.7.{n}||\0")
}

const UNKNOWN: &str = "no such message waits to be acknowledged";

#[test]
fn stomp_35_a_message_to_be_acknowledged_says_how() {
    for mode in ["client", "client-individual"] {
        let bytes = subscribed(mode).message(&update(4), 1).unwrap();
        assert!(show(&[Action::Send(bytes)]).contains("|ack:1.00000001.7.4|"));
    }
    let mut auto = open();
    feed(&mut auto, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes||\0");
    assert_eq!(auto.message(&update(1), 1), None, "its bytes are shared and have no such header");
}

#[test]
fn stomp_36_ack_and_nack_name_a_message_that_waits() {
    for bad in [
        "ACK|id:1.00000001.7.4",
        "ACK|id:2.00000001.7.1",
        "ACK|id:1.00000002.7.1",
        "ACK|id:1.00000001.8.1",
        "NACK|id:x",
    ] {
        assert_eq!(error(&mut subscribed("client"), &format!("{bad}||\0")), UNKNOWN, "{bad}");
    }
    assert_eq!(error(&mut subscribed("client"), "ACK|message-id:00000001.7.1||\0"), "ACK needs the header id");
    // Before 1.2 the message-id names it.
    let mut s = session("CONNECT|accept-version:1.1|host:h||\0");
    feed(&mut s, "SUBSCRIBE|id:a|destination:/topic/posts.7.likes|ack:client||\0");
    let _ = s.message(&update(5), 1);
    assert_eq!(feed(&mut s, "ACK|subscription:a|message-id:00000001.7.5|receipt:r||\0"), "RECEIPT|receipt-id:r||");
}

#[test]
fn stomp_37_client_is_cumulative_and_client_individual_is_not() {
    assert_eq!(feed(&mut subscribed("client"), &(ack(2) + &ack(3))), "");
    assert_eq!(error(&mut subscribed("client"), &(ack(2) + &ack(1))), UNKNOWN);
    assert_eq!(feed(&mut subscribed("client-individual"), &(ack(2) + &ack(1))), "");
    assert_eq!(error(&mut subscribed("client-individual"), &(ack(2) + &ack(2))), UNKNOWN);
    // Bounded: of 100 that wait the newest 64 are known, and an ACK of an older one is late, not wrong.
    let mut s = subscribed("client-individual");
    for version in 4..=100 {
        let _ = s.message(&update(version), 1);
    }
    assert_eq!(feed(&mut s, &(ack(1) + &ack(100))), "");
}

#[test]
fn stomp_38_a_nack_counts_as_processed() {
    let nack = |n| ack(n).replace("ACK", "NACK");
    assert_eq!(feed(&mut subscribed("client-individual"), &nack(1)), "", "nothing is redelivered");
    assert_eq!(error(&mut subscribed("client-individual"), &(nack(1) + &ack(1))), UNKNOWN);
    assert_eq!(error(&mut subscribed("client"), &(nack(2) + &ack(1))), UNKNOWN, "as an ACK, it covers all before it");
}
