//! The session between CONNECT and the answer about its token.

use super::*;
use crate::domain::Epoch;

const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:h\nheart-beat:0,1000\n";
const LIKE: &str = "SEND\ndestination:/app/posts.1.like\n\n\0";

fn fresh() -> Session {
    Session::new(Arc::new(Options { epoch: Epoch(1), authenticate: true, ..Options::default() }))
}

fn begin(more: &str, after: &str) -> (Session, Vec<Action>) {
    let mut session = fresh();
    let actions = session.feed(format!("{CONNECT}{more}\n\0{after}").as_bytes());
    (session, actions)
}

fn token(more: &str) -> Option<String> {
    match begin(more, "").1.into_iter().next() {
        Some(Action::Authenticate(token)) => token.map(|token| token.0.into()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_token_is_authorization_or_passcode() {
    assert_eq!(token("Authorization:Bearer a.b.c\n").as_deref(), Some("a.b.c"));
    assert_eq!(token("Authorization:bearer a.b.c\npasscode:other\n").as_deref(), Some("a.b.c"));
    assert_eq!(token("login:ann\npasscode:a.b.c\n").as_deref(), Some("a.b.c"));
    assert_eq!(token("Authorization:Basic YTpi\n"), None);
    assert_eq!(token(""), None);
    let shown = format!("{:?}", begin("passcode:a.b.c\n", "").1);
    assert!(!shown.contains("a.b.c"), "{shown}");
}

#[test]
fn what_follows_waits_and_is_done_in_order_once_the_token_is_good() {
    let (mut session, actions) = begin("passcode:t\n", LIKE);
    assert!(matches!(actions[..], [Action::Authenticate(_), Action::Pause]), "{actions:?}");
    assert!(session.feed(LIKE.as_bytes()).is_empty());
    let actions = session.authenticated(true);
    assert!(matches!(actions[..], [Action::Send(_), Action::Like(_), Action::Resume]), "{actions:?}");
    assert_eq!(session.take_pending().len(), 1, "the second waits for the first");
    assert!(session.authenticated(true).is_empty(), "asked once, answered once");
}

#[test]
fn nothing_is_done_for_a_bad_token_a_slow_answer_or_a_peer_that_vanishes() {
    let (mut session, _) = begin("passcode:t\n", LIKE);
    assert!(session.take_pending().is_empty());
    let actions = session.authenticated(false);
    let [Action::Send(error), Action::Close(End::Error)] = &actions[..] else { panic!("{actions:?}") };
    assert!(error.starts_with(b"ERROR\nmessage:authentication failed\n"));
    assert!(session.feed(LIKE.as_bytes()).is_empty() && session.take_pending().is_empty());

    let (mut session, _) = begin("passcode:t\n", LIKE);
    let nothing = Duration::ZERO;
    assert!(session.tick(Duration::from_secs(9), Duration::from_secs(9), Duration::from_secs(9)).is_empty());
    let actions = session.tick(Duration::from_secs(10), nothing, nothing);
    assert!(matches!(actions[..], [Action::Send(_), Action::Close(End::Error)]), "{actions:?}");
    assert!(session.authenticated(true).is_empty(), "too late");
}
