//! Tokens on streams: CONNECT, cookie and ticket; and the end of what they opened.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::client::{Next, Sse, Stomp};
use super::tokens::{hs256, now, secret_file, token};
use super::{PATIENCE, TestPods};
use crate::servers::MariaDb;

/// A pod that asks for tokens, and a post.
async fn guarded(more: &[&str]) -> (TestPods, u64) {
    let secret = secret_file();
    let flags = ["--auth", "jwt", "--jwt-secret-file", secret.path().to_str().unwrap(), "--jwt-leeway", "0"];
    let pods = TestPods::start(&[&flags[..], more].concat()).await;
    let made = pods.http.post(pods.url(0, "/posts")).json(&json!({ "title": "t" })).bearer_auth(token("ann")).send();
    let post = made.await.unwrap().json::<Value>().await.unwrap()["id"].as_u64().unwrap();
    (pods, post)
}

fn connect(headers: &str) -> String {
    format!("CONNECT\naccept-version:1.2\nhost:test\nheart-beat:0,0\n{headers}\n\0")
}

async fn likes(pods: &TestPods, post: u64) -> Value {
    let asked = pods.http.get(pods.url(0, &format!("/posts/{post}/likes"))).bearer_auth(token("ann")).send();
    asked.await.unwrap().json::<Value>().await.unwrap()["likes"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stomp_session_begins_with_a_token() {
    let (pods, post) = guarded(&[]).await;
    let work = format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:r\n\n\0");
    let good = token("ann");
    for header in [format!("Authorization:Bearer {good}\n"), format!("login:ann\npasscode:{good}\n")] {
        let mut session = Stomp::socket(pods.addresses[0]).await;
        // What comes with the CONNECT waits until the token is known to be good.
        session.send(&format!("{}{work}", connect(&header))).await;
        assert_eq!(session.frame().await.command, "CONNECTED");
        assert_eq!(session.frame().await.header("receipt-id"), "r");
    }
    assert_eq!(likes(&pods, post).await, 2);
    let expired = hs256(&json!({ "sub": "ann", "exp": now() - 60 }));
    let mut said = Vec::new();
    for header in [
        String::new(),
        "passcode:\n".into(),
        "login:ann\npasscode:guest\n".into(),
        format!("Authorization:Bearer {expired}\n"),
        format!("Authorization:Basic {good}\n"),
    ] {
        let mut session = Stomp::socket(pods.addresses[0]).await;
        session.send(&format!("{}{work}", connect(&header))).await;
        let error = session.frame().await;
        assert_eq!(error.command, "ERROR", "{header}");
        said.push((error.headers, error.body));
        assert!(matches!(session.next().await, Next::Closed(_)), "{header}");
    }
    said.dedup();
    assert_eq!(said.len(), 1, "nobody is told what was wrong: {said:?}");
    assert_eq!(likes(&pods, post).await, 2, "and nothing that came along was done");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_its_token_a_session_gets_four_kibibytes() {
    let (pods, post) = guarded(&[]).await;
    let big = format!("padding:{}\n", "x".repeat(3000));
    let mut first = Stomp::socket(pods.addresses[0]).await;
    first.send(&connect(&format!("{big}more{big}passcode:{}\n", token("ann")))).await;
    assert_eq!(first.next().await, Next::Closed(Some(1009)), "a WebSocket message too large for a stranger");
    let request = format!("ws://{}/stomp", pods.addresses[0]).into_client_request().unwrap();
    let (mut second, _) = timeout(PATIENCE, connect_async(request)).await.unwrap().unwrap();
    second.send(Message::text("CONNECT\naccept-version:1.2\nhost:test\n")).await.unwrap();
    // The same in pieces; the pod may end the connection before the last is out.
    for _ in 0..5 {
        drop(second.send(Message::text(format!("a:{}\n", "x".repeat(1000)))).await);
    }
    let answer = timeout(PATIENCE, second.next()).await.unwrap().unwrap().unwrap();
    assert!(answer.to_text().unwrap().starts_with("ERROR"), "{answer:?}");
    let mut third = Stomp::socket(pods.addresses[0]).await;
    third.send(&connect(&format!("passcode:{}\ncontent-length:100000000\n", token("ann")))).await;
    assert_eq!(third.frame().await.command, "ERROR");
    // With a token, the ordinary limit holds.
    let mut session = Stomp::socket(pods.addresses[0]).await;
    session.send(&connect(&format!("passcode:{}\n", token("ann")))).await;
    assert_eq!(session.frame().await.command, "CONNECTED");
    session.send(&format!("SEND\ndestination:/app/posts.{post}.like\nreceipt:r\n\n{}\0", "x".repeat(30_000))).await;
    assert_eq!(session.frame().await.header("receipt-id"), "r");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_end_when_their_token_does() {
    let (pods, post) = guarded(&[]).await;
    let short = hs256(&json!({ "sub": "ann", "exp": now() + 2 }));
    let bearer = format!("Bearer {short}");
    let path = format!("/posts/{post}/likes");
    let mut sse = Sse::try_open(&pods, 0, &path, &[("authorization", &bearer)]).await.unwrap();
    let mut long = Stomp::socket(pods.addresses[0]).await;
    long.send(&connect(&format!("passcode:{}\n", token("bob")))).await;
    assert_eq!(long.frame().await.command, "CONNECTED");
    let mut stomp = Stomp::socket(pods.addresses[0]).await;
    stomp.send(&connect(&format!("passcode:{short}\n"))).await;
    assert_eq!(stomp.frame().await.command, "CONNECTED");
    assert_eq!(sse.json().await["likes"], 0);
    assert!(sse.next().await.unwrap().0.contains_key("retry"));
    assert!(sse.next().await.is_none(), "a clean end: the browser asks again, and a 401 stops it for good");
    assert_eq!(stomp.next().await, Next::Closed(Some(1008)));
    assert!(now() >= serde_json::from_slice::<Value>(&claims_of(&short)).unwrap()["exp"].as_u64().unwrap());
    pods.metric_becomes(0, "pushlab_closed_total", "reason=\"expired\"", 2.0).await;
    pods.metric_becomes(0, "pushlab_connections", "stomp", 1.0).await;
}

fn claims_of(token: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()
}

async fn a_ticket(pods: &TestPods, user: &str) -> String {
    let made = pods.http.post(pods.url(0, "/tickets")).bearer_auth(token(user)).send().await.unwrap();
    assert_eq!((made.status().as_u16(), made.headers()["cache-control"].to_str().unwrap()), (201, "no-store"));
    let body: Value = made.json().await.unwrap();
    assert_eq!(body["expiresIn"], 30);
    body["ticket"].as_str().unwrap().to_owned()
}

async fn status(pods: &TestPods, pod: usize, path: &str) -> u16 {
    Sse::try_open(pods, pod, path, &[]).await.map_or_else(|answer| answer.status().as_u16(), |_| 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_one_stream_on_any_pod() {
    let (pods, post) = guarded(&["--pods", "2"]).await;
    let ticket = a_ticket(&pods, "ann").await;
    let path = format!("/posts/{post}/likes?ticket={ticket}");
    let mut sse = Sse::open(&pods, 1, &path).await;
    assert_eq!(sse.json().await["likes"], 0);
    assert_eq!((status(&pods, 1, &path).await, status(&pods, 0, &path).await), (401, 401), "used");
    let many = format!("/likes?post={post}&ticket={}", a_ticket(&pods, "ann").await);
    let both = tokio::join!(status(&pods, 0, &many), status(&pods, 1, &many));
    assert!(matches!(both, (200, 401) | (401, 200)), "one of two pods at the same time: {both:?}");
    // A ticket is for a stream and nothing else, and is no token.
    let ticket = a_ticket(&pods, "ann").await;
    let post_it = pods.http.post(pods.url(0, &format!("/posts/{post}/likes?ticket={ticket}"))).send();
    assert_eq!(post_it.await.unwrap().status(), 401);
    let bearer = pods.http.post(pods.url(0, &format!("/posts/{post}/likes"))).bearer_auth(&ticket).send();
    assert_eq!(bearer.await.unwrap().status(), 401);
    let mut session = Stomp::socket(pods.addresses[0]).await;
    session.send(&connect(&format!("passcode:{ticket}\n"))).await;
    assert_eq!(session.frame().await.command, "ERROR");
    for bad in ["", "x", "a.b.c", &token("ann")] {
        assert_eq!(status(&pods, 0, &format!("/posts/{post}/likes?ticket={bad}")).await, 401, "{bad}");
    }
    assert_eq!(
        pods.metric(0, "pushlab_auth_total", "used").await + pods.metric(1, "pushlab_auth_total", "used").await,
        3.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_one_mariadb_take_a_ticket_once_between_them() {
    let database = MariaDb::shared().database().await;
    let flags = ["--database-url", database.as_str()];
    let ((a, post), (b, _)) = tokio::join!(guarded(&flags), guarded(&flags));
    for _ in 0..5 {
        let path = format!("/posts/{post}/likes?ticket={}", a_ticket(&a, "ann").await);
        let both = tokio::join!(status(&a, 0, &path), status(&b, 0, &path));
        assert!(matches!(both, (200, 401) | (401, 200)), "{both:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_full_leaves_a_ticket_for_another() {
    let (pods, post) = guarded(&["--max-connections", "1"]).await;
    let path = format!("/posts/{post}/likes");
    let first = Sse::open(&pods, 0, &format!("{path}?ticket={}", a_ticket(&pods, "ann").await)).await;
    let ticket = a_ticket(&pods, "bob").await;
    let with = format!("{path}?ticket={ticket}");
    assert_eq!(status(&pods, 0, &with).await, 503);
    assert_eq!(status(&pods, 0, &format!("/posts/99999/likes?ticket={ticket}")).await, 503);
    drop(first);
    // The seat is free a moment after the connection is no longer counted; a ticket that was refused a seat is still good.
    let mut answer = 503;
    for _ in 0..100 {
        answer = status(&pods, 0, &with).await;
        if answer != 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(answer, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_counts_only_where_its_page_is_known() {
    let (pods, post) = guarded(&["--origin", "http://good.test"]).await;
    let path = format!("/posts/{post}/likes");
    let made = pods.http.post(pods.url(0, "/session")).bearer_auth(token("ann")).send().await.unwrap();
    let cookie = made.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert_eq!(made.status(), 204);
    for part in ["pushlab_token=ey", "; Path=/", "; HttpOnly", "; SameSite=Strict", "; Max-Age="] {
        assert!(cookie.contains(part), "{part} in {cookie}");
    }
    assert!(!cookie.contains("Secure"), "this pod speaks no TLS");
    let pair = cookie.split(';').next().unwrap();
    let tls = pods.http.post(pods.url(0, "/session")).bearer_auth(token("ann")).header("x-forwarded-proto", "https");
    assert!(tls.send().await.unwrap().headers()["set-cookie"].to_str().unwrap().ends_with("; Secure"));
    for (more, expected) in [
        (None, 403),
        (Some(("sec-fetch-site", "cross-site")), 403),
        (Some(("sec-fetch-site", "same-origin")), 200),
        (Some(("origin", "http://good.test")), 200),
        (Some(("origin", "http://evil.test")), 403),
        (Some(("origin", "null")), 403),
    ] {
        let headers: Vec<_> = [("cookie", pair)].into_iter().chain(more).collect();
        let opened = Sse::try_open(&pods, 0, &path, &headers).await;
        assert_eq!(opened.map_or_else(|answer| answer.status().as_u16(), |_| 200), expected, "{more:?}");
        let like = headers.iter().fold(pods.http.post(pods.url(0, &path)), |r, (name, value)| r.header(*name, *value));
        assert_eq!(like.send().await.unwrap().status().as_u16(), expected, "POST {more:?}");
    }
    // A program has no cookie and no Origin; its token is enough.
    let bearer = pods.http.post(pods.url(0, &path)).bearer_auth(token("ann")).send().await.unwrap();
    assert_eq!(bearer.status(), 200);
    let ended = pods.http.delete(pods.url(0, "/session")).send().await.unwrap();
    assert!(ended.headers()["set-cookie"].to_str().unwrap().starts_with("pushlab_token=; Path=/; Max-Age=0;"));
}
