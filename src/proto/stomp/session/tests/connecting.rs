//! Items 14 to 27: CONNECT, versions, heart-beats.

use super::*;

const CONNECTED: &str = "CONNECTED|version:1.2|heart-beat:10000,10000|server:pushlab||";

#[test]
fn stomp_12_a_stranger_gets_4_kib_and_no_body() {
    assert_eq!(error(&mut fresh(), &format!("CONNECT|a:{}", "x".repeat(5000))), "command and headers are too large");
    assert_eq!(error(&mut fresh(), &format!("CONNECT|{}", "a:123456|".repeat(500))), "too many headers");
    let trickle = "SEND|content-length:100000000||";
    assert_eq!(error(&mut fresh(), trickle), "the body is too large", "told before the body comes");
}

#[test]
fn stomp_14_stomp_is_handled_as_connect() {
    assert_eq!(feed(&mut fresh(), "STOMP|accept-version:1.0,1.1,1.2|host:any||\0"), CONNECTED);
    assert_eq!(feed(&mut fresh(), "|||CONNECT|accept-version:1.2|host:any||\0|"), CONNECTED);
    // Neither is unescaped: what looks like an escape is taken as it is.
    assert_eq!(feed(&mut fresh(), "STOMP|accept-version:1.2|host:C:\\temp||\0"), CONNECTED);
}

#[test]
fn stomp_15_connect_comes_first_and_only_once() {
    let first = "the first frame must be CONNECT or STOMP";
    assert_eq!(error(&mut fresh(), "SEND|destination:/app/posts.1.like||\0"), first);
    assert_eq!(error(&mut fresh(), "DISCONNECT||\0"), first);
    for command in ["CONNECT", "STOMP"] {
        assert_eq!(error(&mut open(), &format!("{command}|accept-version:1.2|host:h||\0")), "already connected");
    }
}

#[test]
fn stomp_16_without_accept_version_it_is_1_0() {
    assert_eq!(feed(&mut fresh(), "CONNECT||\0"), CONNECTED.replace("1.2", "1.0"));
    assert_eq!(feed(&mut fresh(), "CONNECT|login:x|passcode:y||\0"), CONNECTED.replace("1.2", "1.0"));
}

#[test]
fn stomp_17_the_highest_common_version_is_chosen() {
    let version = |accept: &str| feed(&mut fresh(), &format!("CONNECT|accept-version:{accept}|host:h||\0"));
    assert_eq!(version("1.1,1.0"), CONNECTED.replace("1.2", "1.1"));
    assert_eq!(version("1.0,9.9,1.2"), CONNECTED);
    assert_eq!(version("1.0, 1.1"), CONNECTED.replace("1.2", "1.1"), "spaces after commas are met in the field");
    assert_eq!(
        version("2.0,3"),
        "ERROR|version:1.2,1.1,1.0|message:no common version||supported versions are 1.2,1.1,1.0| ; Close(Error)"
    );
}

#[test]
fn stomp_17_a_subprotocol_bounds_the_version() {
    let within =
        |newest, accept: &str| feed(&mut fresh().up_to(newest), &format!("CONNECT|accept-version:{accept}|host:h||\0"));
    assert_eq!(within(stomp::Version::V11, "1.0,1.1,1.2"), CONNECTED.replace("1.2", "1.1"));
    assert_eq!(within(stomp::Version::V12, "1.0,1.1"), CONNECTED.replace("1.2", "1.1"));
    assert!(within(stomp::Version::V11, "1.2").starts_with("ERROR|version:1.1,1.0|message:no common version|"));
}

#[test]
fn stomp_18_connected_says_the_version() {
    for version in ["1.0", "1.1", "1.2"] {
        let shown = feed(&mut fresh(), &format!("CONNECT|accept-version:{version}|host:h||\0"));
        assert!(shown.starts_with(&format!("CONNECTED|version:{version}|")), "{shown}");
    }
}

#[test]
fn stomp_19_host_may_be_any_and_is_required_by_1_2_where_no_handshake_named_it() {
    assert_eq!(feed(&mut fresh(), "CONNECT|accept-version:1.2|host:||\0"), CONNECTED, "an empty one is one");
    assert_eq!(error(&mut fresh(), "CONNECT|accept-version:1.2||\0"), "CONNECT needs the header host");
    // stomp.py sends none in 1.1 unless told a virtual host.
    assert_eq!(feed(&mut fresh(), "CONNECT|accept-version:1.1||\0"), CONNECTED.replace("1.2", "1.1"));
    // Over WebSocket the handshake has named it, and stompjs sends none.
    let over_websocket = Options { require_host: false, ..Options::default() };
    let shown = feed(&mut Session::new(Arc::new(over_websocket)), "CONNECT|accept-version:1.2||\0");
    assert_eq!(shown, CONNECTED);
}

#[test]
fn stomp_20_a_wrong_login_is_refused_without_saying_what_is_wrong() {
    let guest = || Session::new(Arc::new(Options { relay: true, ..Options::default() }));
    let connect = |login: &str| format!("CONNECT|accept-version:1.2|host:/|{login}|\0");
    assert_eq!(feed(&mut guest(), &connect("login:guest|passcode:guest|")), CONNECTED);
    assert_eq!(feed(&mut guest(), &connect("")), CONNECTED);
    for wrong in ["login:guest|passcode:x|", "login:x|passcode:guest|", "login:x|"] {
        assert_eq!(error(&mut guest(), &connect(wrong)), "access refused", "{wrong}");
    }
}

#[test]
fn stomp_21_the_server_header_tells_no_version() {
    // `server = name ["/" version] *(comment)`; there is no `session` header.
    let shown = feed(&mut fresh(), "CONNECT|accept-version:1.2|host:h||\0");
    assert!(shown.contains("|server:pushlab|") && !shown.contains("session:"), "{shown}");
}

#[test]
fn stomp_23_heart_beat_is_two_integers_and_its_absence_means_none() {
    for bad in ["1", "1,", "-1,0", "1,2,3", "a,b", "1, 2", ""] {
        let frame = format!("CONNECT|accept-version:1.2|host:h|heart-beat:{bad}||\0");
        assert_eq!(error(&mut fresh(), &frame), "heart-beat must be two non-negative integers", "{bad:?}");
    }
    let silent = session("CONNECT|accept-version:1.2|host:h||\0").heartbeat();
    assert_eq!(silent, HeartBeat::default());
}

#[test]
fn stomp_24_the_period_is_the_larger_unless_one_is_zero() {
    let beat = |header: &str| {
        let h = session(&format!("CONNECT|accept-version:1.2|host:h|heart-beat:{header}||\0")).heartbeat();
        (h.send_every.as_millis(), h.expect_every.as_millis())
    };
    assert_eq!(beat("0,0"), (0, 0));
    assert_eq!(beat("5000,30000"), (30_000, 10_000));
    assert_eq!(beat("0,1"), (10_000, 0));
    assert_eq!(beat("99999999999,1"), (10_000, u128::from(u32::MAX)));
}

fn beating() -> Session {
    session("CONNECT|accept-version:1.2|host:h|heart-beat:10000,10000||\0")
}

#[test]
fn stomp_25_silence_is_broken_by_one_line_end() {
    let s = Duration::from_secs;
    let mut session = beating();
    assert_eq!(show(&session.tick(s(9), s(8), s(8))), "");
    assert_eq!(show(&session.tick(s(9), s(9), s(9))), "|", "a second early, as it is asked once a second");
    assert_eq!(show(&fresh().tick(s(9), s(9), s(9))), "", "not before CONNECT");
}

#[test]
fn stomp_26_twice_the_period_is_tolerated_then_the_session_ends() {
    let s = Duration::from_secs;
    let mut session = beating();
    assert_eq!(show(&session.tick(s(99), s(20), s(0))), "");
    let shown = show(&session.tick(s(99), s(21), s(9)));
    assert_eq!(shown, "ERROR|message:no heart-beat arrived in time||no heart-beat arrived in time ; Close(Error)");
    assert_eq!(show(&session.tick(s(99), s(99), s(99))), "");
    assert!(show(&fresh().tick(s(10), s(1), s(1))).contains("no CONNECT arrived in time"));
}
