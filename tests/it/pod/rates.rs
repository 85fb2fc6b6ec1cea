//! Too often, too many: each refusal says when to come back, and touches nobody else.

use serde_json::{Value, json};

use super::client::{Sse, Stomp};
use super::tokens::{secret_file, token};
use super::{PATIENCE, TestPods};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_too_often_waits_and_others_do_not() {
    let secret = secret_file();
    let secret = secret.path().to_str().unwrap();
    let flags = ["--auth", "jwt", "--jwt-secret-file", secret, "--client-rate", "1", "--client-burst", "5"];
    let pods = TestPods::start(&flags).await;
    let made = pods.http.post(pods.url(0, "/posts")).json(&json!({ "title": "t" })).bearer_auth(token("root")).send();
    let post = made.await.unwrap().json::<Value>().await.unwrap()["id"].as_u64().unwrap();
    let likes = pods.url(0, &format!("/posts/{post}/likes"));
    let mut refused = None;
    // At one per second and five saved up, twenty at once are too many on any machine that needs less than 15 s for them.
    for _ in 0..20 {
        let answer = pods.http.post(&likes).bearer_auth(token("ann")).send().await.unwrap();
        if answer.status() == 429 {
            refused = Some(answer);
        }
    }
    let answer = refused.expect("a refusal");
    assert!((1..=5).contains(&answer.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap()));
    assert_eq!(answer.json::<Value>().await.unwrap()["type"], "/problems/rate-limited");
    assert_eq!(pods.http.post(&likes).bearer_auth(token("bob")).send().await.unwrap().status(), 200);
    // Who guesses tokens is counted by address.
    let mut guesses = Vec::new();
    for _ in 0..20 {
        guesses.push(pods.http.post(&likes).bearer_auth("guess").send().await.unwrap().status().as_u16());
    }
    assert!(guesses.contains(&401) && guesses.contains(&429), "{guesses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_over_the_rate_is_answered_and_the_session_goes_on() {
    let pods = TestPods::start(&["--client-rate", "1", "--client-burst", "6"]).await;
    let post = pods.post().await;
    let (mut session, _) = Stomp::watching(pods.addresses[0], post).await;
    let send = format!("SEND\ndestination:/app/posts.{post}.like\ncorrelation-id:c\n\n\0");
    session.send(&send.repeat(12)).await;
    let (mut done, mut refused) = (0, 0);
    while done + refused < 12 {
        let frame = session.frame().await;
        match (frame.header("subscription"), frame.header("status")) {
            ("replies", "200") => done += 1,
            ("replies", "429") => {
                assert_eq!(frame.json()["type"], "/problems/rate-limited");
                refused += 1;
            }
            ("likes", _) => {}
            _ => panic!("{frame:?}"),
        }
    }
    assert!(done >= 1 && refused >= 1, "{done} done, {refused} refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_begin_too_fast_are_sent_elsewhere() {
    let pods = TestPods::start(&["--connect-rate", "2"]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..20 {
        match Sse::try_open(&pods, 0, &path, &[]).await {
            Ok(sse) => open.push(sse),
            Err(answer) => {
                assert_eq!(answer.status(), 503);
                assert!(answer.headers().contains_key("retry-after"));
                assert_eq!(answer.json::<Value>().await.unwrap()["type"], "/problems/rush");
                refused += 1;
            }
        }
    }
    assert!(refused >= 1 && open.len() >= 2, "{refused} refused");
    assert_eq!(pods.metric(0, "pushlab_streams_refused_total", "rush").await, f64::from(refused));
    assert_eq!(pods.like(0, post).await["likes"], 1, "a like is no stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_too_many_is_told_so() {
    use tokio::io::AsyncReadExt;
    let pods = TestPods::start(&["--max-http-connections", "3"]).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(tokio::net::TcpStream::connect(pods.addresses[0]).await.unwrap());
    }
    // Accepted in the order of their coming.
    let mut fourth = tokio::net::TcpStream::connect(pods.addresses[0]).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, fourth.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("retry-after: "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    assert_eq!(serde_json::from_str::<Value>(body).unwrap()["type"], "/problems/crowded");
    assert!(pods.metric(0, "pushlab_http_connections_refused_total", "").await >= 1.0);
}
