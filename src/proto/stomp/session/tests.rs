//! The session against the checklist (docs/conformance.md), item by item, then against anything.

mod anything;
mod connecting;
mod ending;
mod relaying;
mod subscribing;

use super::*;
use crate::domain::{Epoch, LikesState};
use crate::proto::stomp;

const CONNECT: &[u8] = b"CONNECT\naccept-version:1.2\nhost:h\n\n\0";

fn session(connect: &str) -> Session {
    connected(fresh(), connect)
}

fn connected(mut session: Session, connect: &str) -> Session {
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

/// Actions in short: STOMP frames with LF as `|`, without NUL, content-length and content-type.
fn show(actions: &[Action]) -> String {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
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
        Action::Relay(relayed) => {
            format!("relay {} {:?} {}", relayed.destination, relayed.headers, String::from_utf8_lossy(&relayed.body))
        }
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

fn update(version: u64) -> Update {
    Update::Snapshot(LikesState { post_id: PostId::new(7).unwrap(), likes: 1, version: Version(version) })
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
    assert!(size_of::<Session>() <= 192, "{} bytes", size_of::<Session>());
}
