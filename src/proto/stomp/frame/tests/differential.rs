//! Our codec against async-stomp's on generated frames: each reads what the other writes.

use async_stomp::client::ClientCodec;
use async_stomp::{AckMode, FromServer, Message, ToServer};
use proptest::prelude::*;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::{Decoder as _, Encoder as _};

use super::*;

/// What a header of 1.2 can hold: everything, by its escapes.
const VALUE: &str = "[ -~é:\\\\\r\n]{0,20}";

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b'\n')], 0..40)
}

/// What async-stomp can send, and what we have to read of it.
fn to_server() -> impl Strategy<Value = (ToServer, Frame)> {
    let transaction = || prop::option::of(VALUE);
    let ack = prop::sample::select(vec![
        (None, None),
        (Some(AckMode::Auto), Some("auto")),
        (Some(AckMode::Client), Some("client")),
        (Some(AckMode::ClientIndividual), Some("client-individual")),
    ]);
    prop_oneof![
        (VALUE, transaction(), body()).prop_map(|(destination, transaction, body)| {
            let frame = frame("SEND", &[("destination", Some(&destination)), ("transaction", transaction.as_ref())]);
            let content = ToServer::Send { destination, transaction, headers: None, body: Some(body.clone()) };
            (content, Frame { body, ..frame })
        }),
        (VALUE, VALUE, ack).prop_map(|(destination, id, (ack, label))| {
            let label = label.map(str::to_owned);
            let headers = [("destination", Some(&destination)), ("id", Some(&id)), ("ack", label.as_ref())];
            let frame = frame("SUBSCRIBE", &headers);
            (ToServer::Subscribe { destination, id, ack }, frame)
        }),
        VALUE.prop_map(|id| (ToServer::Unsubscribe { id: id.clone() }, frame("UNSUBSCRIBE", &[("id", Some(&id))]))),
        (VALUE, transaction(), any::<bool>()).prop_map(|(id, transaction, nack)| {
            let headers = [("id", Some(&id)), ("transaction", transaction.as_ref())];
            let frame = frame(if nack { "NACK" } else { "ACK" }, &headers);
            (if nack { ToServer::Nack { id, transaction } } else { ToServer::Ack { id, transaction } }, frame)
        }),
        (VALUE, 0..3).prop_map(|(transaction, which)| {
            let named = |command| frame(command, &[("transaction", Some(&transaction))]);
            match which {
                0 => (ToServer::Begin { transaction: transaction.clone() }, named("BEGIN")),
                1 => (ToServer::Commit { transaction: transaction.clone() }, named("COMMIT")),
                _ => (ToServer::Abort { transaction: transaction.clone() }, named("ABORT")),
            }
        }),
        prop::option::of(VALUE).prop_map(|receipt| {
            let frame = frame("DISCONNECT", &[("receipt", receipt.as_ref())]);
            (ToServer::Disconnect { receipt }, frame)
        }),
        // CONNECT is not escaped.
        ("[ -~]{0,20}", "[ -~]{0,20}").prop_map(|(accept_version, host)| {
            let headers = [("accept-version", Some(&accept_version)), ("host", Some(&host))];
            let frame = frame("CONNECT", &headers);
            (ToServer::Connect { accept_version, host, login: None, passcode: None, heartbeat: None }, frame)
        }),
    ]
}

fn frame(command: &str, headers: &[(&str, Option<&String>)]) -> Frame {
    let there = headers.iter().filter_map(|(name, value)| Some(((*name).to_owned(), (*value)?.clone())));
    Frame { command: command.to_owned(), headers: there.collect(), body: Vec::new() }
}

/// What a server may send, with headers of the sender's own.
fn from_server() -> impl Strategy<Value = Frame> {
    let own = prop::collection::vec(("x-[a-z]{1,9}", VALUE), 0..4);
    (prop::sample::select(vec!["MESSAGE", "RECEIPT", "ERROR"]), [VALUE, VALUE, VALUE, VALUE], own, body()).prop_map(
        |(command, values, own, body)| {
            let names: &[&str] = match command {
                "MESSAGE" => &["destination", "message-id", "subscription", "ack"],
                "RECEIPT" => &["receipt-id"],
                _ => &["message"],
            };
            let headers = names.iter().map(|name| (*name).to_owned()).zip(values).chain(own).collect();
            Frame { command: command.to_owned(), headers, body: if command == "RECEIPT" { Vec::new() } else { body } }
        },
    )
}

proptest! {
    #[test]
    fn we_read_what_async_stomp_writes((content, expected) in to_server(), name in "x-[a-z]{1,9}", value in VALUE) {
        let connect = expected.command == "CONNECT";
        let extra = if connect { vec![] } else { vec![(name.clone().into_bytes(), value.clone().into_bytes())] };
        let mut wire = BytesMut::new();
        ClientCodec::new().encode(Message { content, extra_headers: extra }, &mut wire).unwrap();
        let mut expected = expected;
        if !connect {
            expected.headers.push((name, value));
        }
        let read = without_length(one(&wire, Version::V12));
        prop_assert_eq!(&read, &expected);
        // And at every split the same.
        let (items, error) = decode(&wire.chunks(1).collect::<Vec<_>>(), Version::V12, &Limits::default());
        prop_assert_eq!(error, None);
        prop_assert_eq!(items.len(), 1);
    }

    #[test]
    fn async_stomp_reads_what_we_write(frames in prop::collection::vec(from_server(), 1..4)) {
        let mut wire = BytesMut::new();
        frames.iter().for_each(|frame| wire.extend_from_slice(&encode(frame, Version::V12)));
        for expected in &frames {
            let read = ClientCodec::new().decode(&mut wire).unwrap().unwrap();
            let header = |name: &str| expected.header(name).unwrap().to_owned();
            match read.content {
                FromServer::Message { destination, message_id, subscription, ack, headers, body } => {
                    prop_assert_eq!(expected.command.as_str(), "MESSAGE");
                    prop_assert_eq!(destination, header("destination"));
                    prop_assert_eq!(message_id, header("message-id"));
                    prop_assert_eq!(subscription, header("subscription"));
                    prop_assert_eq!(ack, Some(header("ack")));
                    let all: Vec<_> = headers.into_iter().filter(|(name, _)| name != "content-length").collect();
                    prop_assert_eq!(&all, &expected.headers);
                    prop_assert_eq!(body.unwrap_or_default(), expected.body.clone());
                }
                FromServer::Receipt { receipt_id } => prop_assert_eq!(receipt_id, header("receipt-id")),
                FromServer::Error { message, body } => {
                    prop_assert_eq!(message, Some(header("message")));
                    prop_assert_eq!(body.unwrap_or_default(), expected.body.clone());
                }
                FromServer::Connected { .. } => prop_assert!(false, "none was sent"),
            }
        }
        prop_assert!(ClientCodec::new().decode(&mut wire).unwrap().is_none());
    }
}
