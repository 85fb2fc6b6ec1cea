//! The conformance mode: any topic is a plain broadcast topic.

use super::*;

fn relaying(connect: &str) -> Session {
    connected(Session::new(Arc::new(Options { relay: true, ..Options::default() })), connect)
}

fn open() -> Session {
    relaying("CONNECT|accept-version:1.2|host:/|login:guest|passcode:guest||\0")
}

fn relay(destination: &str, headers: &[(&str, &str)], body: &[u8]) -> Relayed {
    let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Relayed { destination: destination.into(), headers, body: body.to_vec() }
}

fn messages(session: &mut Session, sent: u64, relayed: &Relayed) -> String {
    let messages = session.relayed(sent, relayed);
    show(&messages.into_iter().map(Action::Send).collect::<Vec<_>>())
}

#[test]
fn stomp_29_headers_of_a_send_pass_through_in_order() {
    let send =
        "SEND|destination:/queue/a|x:1|receipt:r|y:\\n|x:2|content-type:text/plain|ack:no|transaction:t||hello\0";
    let mut s = open();
    let shown = feed(&mut s, &format!("BEGIN|transaction:t||\0{send}COMMIT|transaction:t||\0"));
    let headers = r#"[("x", "1"), ("y", "\n"), ("x", "2"), ("content-type", "text/plain")]"#;
    assert_eq!(shown, format!("relay /queue/a {headers} hello ; RECEIPT|receipt-id:r||"));
    feed(&mut s, "SUBSCRIBE|id:0|destination:/queue/a||\0");
    let relayed = relay("/queue/a", &[("x", "1"), ("y", "\n"), ("x", "2")], b"hello");
    let shown = messages(&mut s, 9, &relayed);
    assert_eq!(shown, "MESSAGE|destination:/queue/a|subscription:0|message-id:relay.1.9|x:1|y:\\n|x:2||hello");
}

#[test]
fn stomp_34_a_message_has_the_sends_destination_and_a_name_of_its_own() {
    let mut s = open();
    let subscribe = |id| format!("SUBSCRIBE|id:{id}|destination:/topic/a|receipt:{id}||\0");
    assert_eq!(feed(&mut s, &subscribe("a")), "Listen ; RECEIPT|receipt-id:a||");
    assert_eq!(feed(&mut s, &subscribe("b")), "RECEIPT|receipt-id:b||", "asked for once");
    let shown = messages(&mut s, 1, &relay("/topic/a", &[], b""));
    assert_eq!(
        shown,
        "MESSAGE|destination:/topic/a|subscription:a|message-id:relay.1.1|| ; MESSAGE|destination:/topic/a|subscription:b|message-id:relay.2.1||"
    );
    assert_eq!(messages(&mut s, 2, &relay("/topic/b", &[], b"")), "");
    assert_eq!(feed(&mut s, "UNSUBSCRIBE|id:a|receipt:u||\0"), "RECEIPT|receipt-id:u||");
    assert!(!messages(&mut s, 3, &relay("/topic/a", &[], b"")).contains("subscription:a"));
    assert_eq!(error(&mut s, "UNSUBSCRIBE|id:a||\0"), "no such subscription");
}

#[test]
fn stomp_11_a_body_is_any_bytes_and_keeps_the_type_it_came_with() {
    let mut s = open();
    feed(&mut s, "SUBSCRIBE|id:0|destination:/topic/a||\0");
    let wire = s.relayed(1, &relay("/topic/a", &[], b"\0\xff")).remove(0);
    assert!(wire.ends_with(b"message-id:relay.1.1\ncontent-length:2\n\n\0\xff\0"), "no type is made up for it");
    let wire = s.relayed(2, &relay("/topic/a", &[("content-type", "text/plain")], b"a")).remove(0);
    assert!(wire.ends_with(b"content-type:text/plain\ncontent-length:1\n\na\0"));
}

#[test]
fn relayed_messages_are_acknowledged_by_their_rules() {
    let acked = |mode: &str, frames: &str| {
        let mut s = open();
        feed(&mut s, &format!("SUBSCRIBE|id:0|destination:/queue/a|ack:{mode}||\0"));
        for sent in 1..=3 {
            let shown = messages(&mut s, sent, &relay("/queue/a", &[], b""));
            assert!(shown.contains(&format!("|ack:relay.1.{sent}|")), "{shown}");
        }
        feed(&mut s, frames)
    };
    let ack = |n: u64| format!("ACK|id:relay.1.{n}|receipt:{n}||\0");
    assert_eq!(acked("client", &(ack(2) + &ack(3))), "RECEIPT|receipt-id:2|| ; RECEIPT|receipt-id:3||");
    assert!(acked("client", &(ack(2) + &ack(1))).contains("no such message waits"));
    assert!(acked("client-individual", &(ack(2) + &ack(1))).ends_with("RECEIPT|receipt-id:1||"));
    assert!(acked("client", &ack(4)).contains("no such message waits"));
    assert!(acked("client", "ACK|id:relay.7.1||\0").contains("no such message waits"));
    let mut s = relaying("CONNECT|accept-version:1.1||\0");
    feed(&mut s, "SUBSCRIBE|id:0|destination:/queue/a|ack:client||\0");
    assert!(!messages(&mut s, 1, &relay("/queue/a", &[], b"")).contains("|ack:"), "1.1 names the message-id");
    let shown = feed(&mut s, "ACK|subscription:0|message-id:relay.1.1|receipt:r||\0");
    assert_eq!(shown, "RECEIPT|receipt-id:r||");
}

#[test]
fn version_1_0_subscribes_to_any_topic_by_destination() {
    let mut s = relaying("CONNECT|login:guest|passcode:guest||\0");
    assert_eq!(feed(&mut s, "SUBSCRIBE|destination:/queue/a||\0"), "Listen");
    let shown = messages(&mut s, 1, &relay("/queue/a", &[("k", "a:b\nc")], b"x"));
    assert_eq!(shown, "MESSAGE|destination:/queue/a|message-id:relay.1.1|k:a:b c||x");
    assert_eq!(feed(&mut s, "UNSUBSCRIBE|destination:/queue/a|receipt:u||\0"), "RECEIPT|receipt-id:u||");
    assert_eq!(messages(&mut s, 2, &relay("/queue/a", &[], b"x")), "");
    feed(&mut s, "SUBSCRIBE|id:x|destination:/queue/a||\0");
    assert_eq!(feed(&mut s, "UNSUBSCRIBE|destination:/queue/a|receipt:u||\0"), "RECEIPT|receipt-id:u||");
}

#[test]
fn a_relayed_transaction_is_all_or_nothing() {
    let send = |n: u32| format!("SEND|destination:/queue/a|transaction:t||{n}\0");
    let two = format!("BEGIN|transaction:t||\0{}{}", send(1), send(2));
    let mut s = open();
    assert_eq!(feed(&mut s, &two), "");
    assert_eq!(feed(&mut s, "COMMIT|transaction:t||\0"), "relay /queue/a [] 1 ; relay /queue/a [] 2");
    assert_eq!(feed(&mut s, &format!("{two}ABORT|transaction:t||\0")), "");
    assert_eq!(feed(&mut s, &format!("{two}DISCONNECT||\0")), "Close(Disconnected)");
}

#[test]
fn posts_stay_posts_and_production_relays_nothing() {
    let mut s = open();
    assert_eq!(feed(&mut s, "SUBSCRIBE|id:0|destination:/topic/posts.7.likes||\0"), "subscribe 1 7 Auto None");
    assert_eq!(error(&mut super::open(), "SUBSCRIBE|id:0|destination:/topic/a||\0"), "no such destination");
    assert_eq!(error(&mut super::open(), "SEND|destination:/queue/a||\0"), "no such destination");
}
