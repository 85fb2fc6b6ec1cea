//! The conformance mode: Autobahn's cases on our frames, a plain STOMP broker over WebSocket and TCP, and its refusal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pushlab::compare::edges::Edge;
use pushlab::proto::ws::{Event, Opcode, client_frame};
use serde_json::Value;

use super::raw::{Raw, Tcp};
use super::{Cli, TestPods};
use crate::edge::EdgeServer;
use crate::servers;

const FLAGS: [&str; 3] = ["--conformance", "--conformance-stomp", "127.0.0.1:0"];

/// permessage-deflate, which is never agreed on.
const NOT_OURS: [&str; 2] = ["12.*", "13.*"];

/// A case's verdict on behaviour and on its end, and the pod's close code.
type Verdict = (String, String, Option<u64>);

/// Runs the Autobahn cases that `include` selects (all, if none).
async fn kosoku(url: String, include: &[&str], exclude: &[&str]) -> BTreeMap<String, Verdict> {
    let hint = "pip install kosoku==0.1.0 (into .venv)";
    let program = servers::program(&["kosoku"], "PUSHLAB_KOSOKU", hint);
    let out = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(program);
    command.args(["-m", "fuzzingclient", "-p", "8", "-o"]).arg(out.path());
    command.args(include.iter().flat_map(|cases| ["-i", cases]));
    command.args(exclude.iter().chain(&NOT_OURS).flat_map(|cases| ["-x", cases]));
    // Its exit code also counts cases that end in 1009; the verdicts say more.
    let run = command.arg(&url).kill_on_drop(true).output();
    let done = tokio::time::timeout(Duration::from_secs(300), run).await.expect("the cases end").unwrap();
    let index = std::fs::read(out.path().join("index.json"));
    let index = index.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&done.stderr)));
    let index: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_slice(&index).unwrap();
    let cases = index.into_values().next().expect("one agent");
    let text = |case: &Value, name: &str| case[name].as_str().unwrap().to_owned();
    let verdict =
        |case: Value| (text(&case, "behavior"), text(&case, "behaviorClose"), case["remoteCloseCode"].as_u64());
    cases.into_iter().map(|(name, case)| (name, verdict(case))).collect()
}

/// The cases that neither passed nor only inform, as `case: verdicts`.
fn failed(verdicts: &BTreeMap<String, Verdict>) -> BTreeSet<String> {
    let passed = |verdict: &str| matches!(verdict, "OK" | "INFORMATIONAL");
    let not = verdicts.iter().filter(|(_, (behavior, close, _))| !passed(behavior) || !passed(close));
    not.map(|(case, (behavior, close, code))| format!("{case}: {behavior}, {close}, {code:?}")).collect()
}

fn echo_instead_of_stomp(config: &str) -> String {
    config.replace("location = /stomp", "location = /ws/echo").replace("path /stomp", "path /ws/echo")
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_11_autobahns_cases_pass_on_the_framing_of_stomp_and_stay_so_behind_proxies() {
    let pods = TestPods::start(&FLAGS).await;
    let pod = pods.addresses[0];
    let nginx = EdgeServer::start(Edge::NginxLeastConn, pod, echo_instead_of_stomp);
    let haproxy = EdgeServer::start(Edge::HaproxyLeastconn, pod, echo_instead_of_stomp);
    let url = |address| format!("ws://{address}/ws/echo");
    let (direct, nginx, haproxy) = tokio::join!(
        kosoku(url(pod), &[], &["9.*"]),
        kosoku(url(nginx.address()), &[], &["9.*"]),
        kosoku(url(haproxy.address()), &[], &["9.*"]),
    );
    for (way, verdicts) in [("direct", direct), ("nginx", nginx), ("haproxy", haproxy)] {
        assert!(verdicts.len() >= 247, "{way}: only {} cases ran", verdicts.len());
        assert_eq!(failed(&verdicts), BTreeSet::new(), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ws_12_with_the_limits_of_production_larger_cases_end_in_1009() {
    let pods = TestPods::start(&FLAGS).await;
    let url = format!("ws://{}/ws/echo?limits=production", pods.addresses[0]);
    let verdicts = kosoku(url, &["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*"], &[]).await;
    assert!(verdicts.len() >= 230, "only {} cases ran", verdicts.len());
    assert_eq!(failed(&verdicts), BTreeSet::new());
    assert_eq!(verdicts["7.1.6"].2, Some(1009), "256 KiB in one message");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "1 to 3 min: Autobahn's 9.*, messages of up to 16 MiB, directly and through both proxies"]
async fn autobahns_large_cases_pass() {
    let pods = TestPods::start(&FLAGS).await;
    let pod = pods.addresses[0];
    let nginx = EdgeServer::start(Edge::NginxLeastConn, pod, echo_instead_of_stomp);
    let haproxy = EdgeServer::start(Edge::HaproxyLeastconn, pod, echo_instead_of_stomp);
    for (way, address) in [("direct", pod), ("nginx", nginx.address()), ("haproxy", haproxy.address())] {
        let verdicts = kosoku(format!("ws://{address}/ws/echo"), &["9.*"], &[]).await;
        assert!(verdicts.len() >= 54, "{way}: only {} cases ran", verdicts.len());
        assert_eq!(failed(&verdicts), BTreeSet::new(), "{way}");
    }
}

const CONNECT: &str = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0";

async fn guest(pods: &TestPods) -> Raw {
    let mut raw = Raw::open(pods.addresses[0], "/stomp", &client_frame(Opcode::Text, CONNECT.as_bytes(), [1; 4])).await;
    assert!(raw.text().await.starts_with("CONNECTED\n"));
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn any_topic_is_broadcast_to_websocket_and_tcp_and_bodies_that_are_no_text_leave_as_binary() {
    let pods = TestPods::start(&FLAGS).await;
    let mut sockets = [guest(&pods).await, guest(&pods).await];
    let mut tcp = Tcp::open(pods.stomp_addresses[0].unwrap()).await;
    tcp.send(CONNECT).await;
    assert!(tcp.frame().await.unwrap().starts_with("CONNECTED\nversion:1.2\n"));
    let subscribe = "SUBSCRIBE\nid:0\ndestination:/queue/any.thing\nreceipt:s\n\n\0";
    for raw in &mut sockets {
        raw.send(Opcode::Text, subscribe.as_bytes()).await;
        assert_eq!(raw.text().await, "RECEIPT\nreceipt-id:s\n\n\0");
    }
    tcp.send(subscribe).await;
    assert_eq!(tcp.frame().await.unwrap(), "RECEIPT\nreceipt-id:s\n\n");

    tcp.send("SEND\ndestination:/queue/any.thing\nfoo:b\\car\nreceipt:1\n\nhello\0").await;
    let expected = |text: &str| {
        text.starts_with("MESSAGE\ndestination:/queue/any.thing\nsubscription:0\nmessage-id:relay.1.")
            && text.contains("\nfoo:b\\car\n")
            && text.ends_with("\ncontent-length:5\n\nhello")
    };
    for raw in &mut sockets {
        let text = raw.text().await;
        assert!(expected(text.trim_end_matches('\0')), "{text}");
    }
    let both = [tcp.frame().await.unwrap(), tcp.frame().await.unwrap()];
    assert!(both.iter().any(|frame| frame == "RECEIPT\nreceipt-id:1\n\n"), "{both:?}");
    assert!(both.iter().any(|frame| expected(frame)), "the sender has subscribed as well: {both:?}");

    // A megabyte that is no UTF-8, in one binary message.
    let body = [vec![0xff_u8; 1 << 20], b"\0end".to_vec()].concat();
    let head = format!("SEND\ndestination:/queue/any.thing\ncontent-length:{}\n\n", body.len());
    let [sender, receiver] = &mut sockets;
    sender.send(Opcode::Binary, &[head.as_bytes(), &body, b"\0"].concat()).await;
    match receiver.next().await {
        Some(Event::Message { text: false, data }) => assert!(data.ends_with(&[&body[..], b"\0"].concat())),
        other => panic!("{:.200}", format!("{other:?}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_the_likes_of_a_post_arrive_too_and_errors_end_the_connection() {
    let pods = TestPods::start(&FLAGS).await;
    let post = pods.post().await;
    let mut tcp = Tcp::open(pods.stomp_addresses[0].unwrap()).await;
    for version in ["1.0", "1.1", "1.2"] {
        let mut tcp = Tcp::open(pods.stomp_addresses[0].unwrap()).await;
        tcp.send(format!("STOMP\naccept-version:{version}\nhost:any.thing\n\n\0")).await;
        assert!(tcp.frame().await.unwrap().starts_with(&format!("CONNECTED\nversion:{version}\n")));
    }
    // Byte by byte.
    let frames = format!("{CONNECT}\nSUBSCRIBE\nid:0\ndestination:/topic/posts.{post}.likes\n\n\0");
    for byte in frames.as_bytes().chunks(1) {
        tcp.send(byte).await;
    }
    assert!(tcp.frame().await.unwrap().starts_with("CONNECTED\n"));
    assert!(tcp.frame().await.unwrap().contains("\"snapshot\":true"));
    pods.like(0, post).await;
    let message = tcp.frame().await.unwrap();
    assert!(message.starts_with("MESSAGE\n") && message.contains("\"version\":1,"), "{message}");
    tcp.send("NOSUCH\n\n\0").await;
    assert!(tcp.frame().await.unwrap().starts_with("ERROR\nmessage:unknown command\n"));
    assert_eq!(tcp.frame().await, None, "closed");
    let mut wrong = Tcp::open(pods.stomp_addresses[0].unwrap()).await;
    wrong.send("CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:wrong\n\n\0").await;
    assert!(wrong.frame().await.unwrap().starts_with("ERROR\nmessage:access refused\n"));
    pods.metric_becomes(0, "pushlab_connections", "stomp", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn production_and_conformance_exclude_each_other() {
    use clap::Parser;
    for flags in [
        &["--nats-url", "nats://127.0.0.1:1"][..],
        &["--database-url", "mysql://u:secret@127.0.0.1:1/db"],
        &["--origin", "http://a.test"],
        &["--trust-user-header", "X-User"],
    ] {
        let line = ["serve", "--conformance", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let config = Cli::try_parse_from(line.iter().chain(flags)).unwrap().config;
        let error = pushlab::serve::build(&config).await.unwrap_err().to_string();
        assert!(error.contains("--conformance") && error.contains(flags[0]) && !error.contains("secret"), "{error}");
    }
    assert!(Cli::try_parse_from(["serve", "--conformance-stomp", "127.0.0.1:0"]).is_err(), "only with the mode");
    // And without the mode there is no echo, and no topic but posts.
    let pods = TestPods::start(&[]).await;
    let answer = pods.http.get(pods.url(0, "/ws/echo")).send().await.unwrap();
    assert_eq!(answer.status(), 404);
    let mut raw = guest(&pods).await;
    raw.send(Opcode::Text, b"SUBSCRIBE\nid:0\ndestination:/queue/a\n\n\0").await;
    assert!(raw.text().await.starts_with("ERROR\nmessage:no such destination\n"));
}
