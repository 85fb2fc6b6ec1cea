//! Callers who mean harm: each gets the documented answer, the pod's memory stays bounded, and another viewer goes on.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Sse, Stomp};
use super::tokens::{SECRET, secret_file, token};
use super::{PATIENCE, TestPods};
use crate::pod_process::PodProcess;

/// All that is logged of ours.
const TRACED: [(&str, &str); 1] = [("RUST_LOG", "pushlab=trace,info")];
/// What any one abuse may cost the pod, MiB.
const ABUSE_MIB: f64 = 64.0;

/// A viewer on each transport who has nothing to do with it, and a liker.
struct Bystander {
    sse: Sse,
    stomp: Stomp,
    post: u64,
    version: u64,
}

impl Bystander {
    async fn new(pods: &TestPods) -> Self {
        let post = pods.post().await;
        let mut sse = Sse::open(pods, 0, &format!("/posts/{post}/likes")).await;
        let (stomp, _) = Stomp::watching(pods.addresses[0], post).await;
        sse.json().await;
        Self { sse, stomp, post, version: 0 }
    }

    /// A like arrives on both, in bounded time.
    async fn goes_on(&mut self, pods: &TestPods) {
        self.version += 1;
        assert_eq!(pods.like(0, self.post).await["version"], self.version);
        assert_eq!(self.sse.until(self.version).await["version"], self.version);
        assert_eq!(self.stomp.frame().await.json()["version"], self.version);
    }
}

async fn connect(pod: &PodProcess) -> TcpStream {
    timeout(PATIENCE, TcpStream::connect(pod.listen)).await.expect("a connection").unwrap()
}

/// All the pod says until it closes; a reset counts as its end.
async fn answer(socket: &mut TcpStream) -> String {
    let mut said = Vec::new();
    while let Ok(n @ 1..) = timeout(PATIENCE, socket.read_buf(&mut said)).await.expect("an end") {
        assert!(said.len() < 1 << 20 && n > 0);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Handshakes that stop half way: nothing at all, half a request, half an HTTP/2 preface, a preface and nothing more. (Many
/// of them at once, and what they cost: `abuse.rs`.)
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_half_handshake_is_closed_in_time() {
    let pods = TestPods::start(&[]).await;
    let half: [&[u8]; 5] = [
        b"",
        b"GET /posts/1/likes HTTP/1.1\r\nHost: a\r\nAcc",
        b"P",
        b"PRI ",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ];
    let mut held = Vec::new();
    for half in half.iter().cycle().take(50) {
        let mut socket = TcpStream::connect(pods.addresses[0]).await.unwrap();
        socket.write_all(half).await.unwrap();
        held.push(socket);
    }
    for socket in &mut held {
        let mut left = Vec::new();
        // A reset is an end, too.
        drop(timeout(PATIENCE, socket.read_to_end(&mut left)).await.expect("an end"));
    }
    pods.metric_becomes(0, "pushlab_slow_heads_total", "", 50.0).await;
    pods.metric_becomes(0, "pushlab_timeouts_total", "kind=\"head\"", 50.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_when_it_is_announced() {
    let pod = PodProcess::start(&[]);
    let pods = TestPods::of(&pod);
    let mut bystander = Bystander::new(&pods).await;
    bystander.goes_on(&pods).await;
    let before = pod.rss_mib();

    // A body of 1 GiB.
    let mut socket = connect(&pod).await;
    let post =
        "POST /posts HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n{";
    socket.write_all(post.as_bytes()).await.unwrap();
    let begin = answer(&mut socket).await;
    assert!(begin.starts_with("HTTP/1.1 413 "), "{begin}");

    // 101 headers. (A million of them: `abuse.rs`.)
    let mut socket = connect(&pod).await;
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(101));
    socket.write_all(many.as_bytes()).await.unwrap();
    let begin = answer(&mut socket).await;
    assert!(begin.starts_with("HTTP/1.1 431 "), "{begin}");

    // One header of 1 MiB.
    let mut socket = connect(&pod).await;
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(1 << 20));
    drop(socket.write_all(long.as_bytes()).await);
    let said = answer(&mut socket).await;
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 431 "), "{said}");

    let grown = pod.rss_mib() - before;
    assert!(grown <= ABUSE_MIB, "{grown:.1} MiB");
    bystander.goes_on(&pods).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let pods = TestPods::start(&[]).await;
    let mut socket = timeout(PATIENCE, TcpStream::connect(pods.addresses[0])).await.unwrap().unwrap();
    let post = "POST /posts HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{";
    socket.write_all(post.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !said.windows(4).any(|window| window == b"\r\n\r\n") {
        assert!(timeout(PATIENCE, socket.read_buf(&mut said)).await.expect("an answer").unwrap() > 0);
    }
    let said = String::from_utf8_lossy(&said);
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_and_leaves_without_end_waits_for_the_database() {
    let pod = PodProcess::start(&[]);
    let pods = TestPods::of(&pod);
    let mut bystander = Bystander::new(&pods).await;
    let before = pod.rss_mib();
    let mut session = Stomp::open(pod.listen).await;
    let pair =
        format!("SUBSCRIBE\nid:1\ndestination:/topic/posts.{}.likes\n\n\0UNSUBSCRIBE\nid:1\n\n\0", bystander.post);
    for _ in 0..50 {
        session.send(&pair.repeat(400)).await;
    }
    session.send("DISCONNECT\nreceipt:bye\n\n\0").await;
    while session.frame().await.header("receipt-id") != "bye" {}
    let grown = pod.rss_mib() - before;
    assert!(grown <= ABUSE_MIB, "{grown:.1} MiB");
    bystander.goes_on(&pods).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_ids_and_headers_are_refused_and_reach_no_log_line() {
    let secret = secret_file();
    let pod = PodProcess::with(&["--trust-user-header", "X-User"], &TRACED);
    let pods = TestPods::of(&pod);
    let mut bystander = Bystander::new(&pods).await;
    let ids = [
        "*",
        ">",
        "1.*",
        "1.>",
        "..",
        "%2e",
        "1%0d%0aX-Evil:1",
        "1%00",
        "%1b[2J",
        "-1",
        "+1",
        "0x1",
        "1e3",
        "٣",
        "18446744073709551616",
        "1%2f..",
        "evil%20marker",
        "1'--",
        "%ff",
    ];
    for id in ids {
        for path in [format!("/posts/{id}"), format!("/posts/{id}/likes"), format!("/posts/{id}/likes/me")] {
            let mut socket = connect(&pod).await;
            let method = if path.ends_with("me") { "PUT" } else { "GET" };
            let request = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nX-User: u\r\nConnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let said = answer(&mut socket).await;
            assert!(said.starts_with("HTTP/1.1 404 ") || said.starts_with("HTTP/1.1 400 "), "{path}: {said}");
            assert!(!said.to_lowercase().contains("\r\nx-evil"), "{path}: {said}");
        }
        let query = format!("/likes?post={id}");
        let mut socket = connect(&pod).await;
        let request =
            format!("GET {query} HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let said = answer(&mut socket).await;
        assert!(said.starts_with("HTTP/1.1 404 ") || said.starts_with("HTTP/1.1 400 "), "{query}: {said}");
        for destination in
            [format!("/topic/posts.{id}.likes"), format!("/topic/posts.{id}"), format!("/app/posts.{id}.like")]
        {
            let command = if destination.starts_with("/app") { "SEND" } else { "SUBSCRIBE" };
            let mut session = Stomp::open(pod.listen).await;
            session.send(&format!("{command}\nid:1\ndestination:{destination}\n\n\0")).await;
            assert_eq!(session.frame().await.command, "ERROR", "{destination}");
        }
    }
    let likes = format!("/posts/{}/likes", bystander.post);
    for (name, value) in [
        ("idempotency-key", "evil\u{1}marker"),
        ("idempotency-key", "evil\u{1b}[31mmarker"),
        ("x-user", "evil\u{7f}marker"),
        ("last-event-id", "evil\u{0}marker"),
        ("origin", "http://evil\u{1b}marker"),
        ("x-forwarded-for", "evil\u{1b}marker"),
        ("authorization", "Bearer evil\u{1b}marker"),
        ("bad header", "evil"),
    ] {
        let mut socket = connect(&pod).await;
        let request = format!("POST {likes} HTTP/1.1\r\nHost: a\r\n{name}: {value}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let said = answer(&mut socket).await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{name}: {said}");
    }
    for header in ["receipt:evil\\tmarker", "heart-beat:evil\u{1b}marker", "ack:evil\u{1b}marker", "id:\u{0}"] {
        let mut session = Stomp::open(pod.listen).await;
        let frame = format!("SUBSCRIBE\nid:1\ndestination:/topic/posts.{}.likes\n{header}\n\n\0", bystander.post);
        session.send(&frame).await;
        session.frame().await;
    }
    bystander.goes_on(&pods).await;
    let log = pod.log();
    let strange = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!log.contains(strange), "{}", log.escape_debug());
    assert!(!log.contains("marker"), "{log}");
    drop(secret);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_ticket_or_secret_reaches_the_log() {
    let secret = secret_file();
    let pod = PodProcess::with(&["--auth", "jwt", "--jwt-secret-file", secret.path().to_str().unwrap()], &TRACED);
    let pods = TestPods::of(&pod);
    let good = token("ann");
    let bearer = [("authorization", format!("Bearer {good}"))];
    let headers: Vec<_> = bearer.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let made = pods.http.post(pods.url(0, "/posts")).json(&serde_json::json!({ "title": "t" })).bearer_auth(&good);
    assert_eq!(made.send().await.unwrap().status(), 201);
    let made = pods.http.post(pods.url(0, "/tickets")).bearer_auth(&good).send().await.unwrap();
    let ticket = made.json::<Value>().await.unwrap()["ticket"].as_str().unwrap().to_owned();
    for path in ["/posts/1/likes".to_owned(), format!("/posts/1/likes?ticket={ticket}")] {
        drop(Sse::try_open(&pods, 0, &path, if path.contains('?') { &[] } else { &headers }).await.unwrap());
    }
    drop(Sse::try_open(&pods, 0, &format!("/likes?post=1&ticket={ticket}x"), &[]).await);
    for passcode in [good.clone(), format!("{good}x"), ticket.clone()] {
        let mut session = Stomp::socket(pod.listen).await;
        session.send(&format!("CONNECT\naccept-version:1.2\nhost:t\npasscode:{passcode}\n\n\0")).await;
        session.frame().await;
    }
    let log = pod.log();
    for secret in [good.as_str(), &ticket, SECRET, good.rsplit('.').next().unwrap(), ticket.rsplit('.').next().unwrap()]
    {
        assert!(!log.contains(secret), "{log}");
    }
    assert!(log.contains("serving"), "the log was looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_do_not_grow_with_posts_users_or_paths() {
    let pods = TestPods::start(&["--trust-user-header", "X-User"]).await;
    let round = async |n: u64| {
        for i in 0..n {
            let post = pods.post().await;
            pods.like(0, post).await;
            let me =
                pods.http.put(pods.url(0, &format!("/posts/{post}/likes/me"))).header("x-user", format!("u{post}"));
            assert_eq!(me.send().await.unwrap().status(), 200);
            for path in [format!("/posts/{post}"), format!("/nothing/{post}"), format!("/posts/x{post}")] {
                pods.http.get(pods.url(0, &path)).send().await.unwrap();
            }
            let odd: reqwest::Method = format!("ODD{post}").parse().unwrap();
            pods.http.request(odd, pods.url(0, "/posts")).send().await.unwrap();
            if i < 10 {
                Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await.json().await;
                Stomp::watching(pods.addresses[0], post).await;
            }
        }
    };
    let series = async || {
        let text =
            pods.http.get(format!("http://{}/metrics", pods.admins[0])).send().await.unwrap().text().await.unwrap();
        text.lines().filter(|line| !line.starts_with('#')).count()
    };
    round(1).await;
    let before = series().await;
    round(100).await;
    assert_eq!(series().await, before);
}
