//! The HTTP contract: validators, idempotency, and problem+json everywhere.

use http_body_util::BodyExt;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{PATIENCE, TestPods};

async fn call(
    pods: &TestPods,
    method: &str,
    path: &str,
    headers: &[(&'static str, &str)],
    body: impl Into<reqwest::Body>,
) -> (StatusCode, HeaderMap, Value) {
    let method: Method = method.parse().unwrap();
    let mut request = pods.http.request(method, pods.url(0, path)).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = tokio::time::timeout(PATIENCE, request.send()).await.expect("an answer").unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = answer.bytes().await.unwrap();
    (status, headers, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_is_problem_json() {
    let pods = TestPods::start(&["--trust-user-header", "X-User"]).await;
    let post = pods.post().await;
    let likes = format!("/posts/{post}/likes");
    let (me, big) = (format!("{likes}/me"), "x".repeat(70_000));
    let json_type = ("content-type", "application/json");
    type Case<'a> = (&'a str, &'a str, Vec<(&'static str, &'a str)>, &'a str, u16, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("GET", "/nothing", vec![], "", 404, "not-found"),
        ("PATCH", &likes, vec![], "", 405, "method-not-allowed"),
        ("POST", "/stomp", vec![], "", 405, "method-not-allowed"),
        ("GET", "/posts/0", vec![], "", 404, "unknown-post"),
        ("GET", "/posts/1.2/likes", vec![], "", 404, "unknown-post"),
        ("GET", "/posts/999999", vec![], "", 404, "unknown-post"),
        ("GET", "/posts/999999/likes", vec![], "", 404, "unknown-post"),
        ("GET", "/posts/999999/likes", vec![("accept", "text/event-stream")], "", 404, "unknown-post"),
        ("POST", "/posts/999999/likes", vec![], "", 404, "unknown-post"),
        ("DELETE", &likes, vec![], "", 400, "key-required"),
        ("POST", &likes, vec![("idempotency-key", &big[..65])], "", 400, "bad-request"),
        ("PUT", &me, vec![], "", 401, "user-required"),
        ("POST", "/posts", vec![], "{}", 415, "media-type"),
        ("POST", "/posts", vec![json_type, ("content-encoding", "gzip")], "{}", 415, "media-type"),
        ("POST", "/posts", vec![json_type], "{", 400, "bad-request"),
        ("POST", "/posts", vec![json_type], &big, 413, "too-large"),
        ("GET", "/likes", vec![], "", 400, "bad-request"),
        ("GET", "/likes?post=x", vec![], "", 404, "unknown-post"),
        ("GET", "/likes?post=1", vec![("accept", "application/json")], "", 406, "not-acceptable"),
        ("GET", "/stomp", vec![], "", 400, "handshake"),
        ("POST", &likes, vec![("origin", "http://evil.test")], "", 403, "origin"),
    ];
    for (method, path, headers, body, status, name) in cases {
        let (found, answered, problem) = call(&pods, method, path, &headers, body.to_owned()).await;
        let case = format!("{method} {path} {headers:?}");
        assert_eq!(found.as_u16(), status, "{case}");
        assert_eq!(answered["content-type"], "application/problem+json", "{case}");
        assert_eq!(problem["type"], format!("/problems/{name}"), "{case}");
        assert_eq!(problem["status"], status, "{case}");
        assert_eq!(answered["x-pushlab-pod"], "pod-1", "{case}");
        assert_eq!(answered.contains_key("allow"), status == 405, "{case}");
        assert_eq!(answered.get("connection").is_some_and(|value| value == "close"), status == 413, "{case}");
    }
    assert_eq!(pods.like(0, post).await["likes"], 1, "nothing of this was counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_cacheable_and_its_count_is_conditional() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let (status, headers, body) = call(&pods, "GET", &format!("/posts/{post}"), &[], "").await;
    assert_eq!((status.as_u16(), &body["title"]), (200, &json!("a post")));
    assert!(headers["cache-control"].to_str().unwrap().contains("max-age="));
    let likes = format!("/posts/{post}/likes");
    let (_, headers, body) = call(&pods, "GET", &likes, &[], "").await;
    assert_eq!((&body["likes"], &body["version"]), (&json!(0), &json!(0)));
    assert_eq!(headers["cache-control"], "no-cache");
    assert_eq!(headers["vary"], "Accept, Origin");
    let tag = headers["etag"].to_str().unwrap().to_owned();
    assert!(tag.ends_with(".0\""), "{tag}");
    let (status, headers, _) = call(&pods, "GET", &likes, &[("if-none-match", &format!("W/{tag}, \"x\""))], "").await;
    assert_eq!((status.as_u16(), headers["etag"].to_str().unwrap()), (304, tag.as_str()));
    pods.like(0, post).await;
    let (status, ..) = call(&pods, "GET", &likes, &[("if-none-match", &tag)], "").await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_key_counts_once_and_gets_the_same_answer() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let likes = format!("/posts/{post}/likes");
    let key = [("idempotency-key", "\"k1\"")];
    let (a, b) = tokio::join!(call(&pods, "POST", &likes, &key, ""), call(&pods, "POST", &likes, &key, ""));
    assert_eq!((a.0.as_u16(), b.0.as_u16()), (200, 200));
    assert_eq!((&a.2, &a.2["version"]), (&b.2, &json!(1)));
    let replayed =
        [&a.1, &b.1].iter().filter(|h| h.get("idempotent-replayed") == Some(&HeaderValue::from_static("true"))).count();
    assert_eq!(replayed, 1);
    let (status, _, problem) = call(&pods, "POST", &likes, &[key[0], ("content-type", "application/json")], "{}").await;
    assert_eq!((status.as_u16(), &problem["type"]), (422, &json!("/problems/key-mismatch")));
    let (status, _, body) = call(&pods, "DELETE", &likes, &[("idempotency-key", "k2")], "").await;
    assert_eq!((status.as_u16(), &body["likes"], &body["version"]), (200, &json!(0), &json!(2)));
    let (_, _, body) = call(&pods, "DELETE", &likes, &[("idempotency-key", "k3")], "").await;
    assert_eq!((&body["changed"], &body["version"]), (&json!(false), &json!(2)), "a count never falls below zero");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_one_like_per_post() {
    let pods = TestPods::start(&["--trust-user-header", "X-User"]).await;
    let post = pods.post().await;
    let me = format!("/posts/{post}/likes/me");
    for (method, user, likes, changed) in [
        ("PUT", "ann", 1, true),
        ("PUT", "ann", 1, false),
        ("PUT", "bob", 2, true),
        ("DELETE", "ann", 1, true),
        ("DELETE", "ann", 1, false),
    ] {
        let (status, _, body) = call(&pods, method, &me, &[("x-user", user)], "").await;
        assert_eq!(status, 200);
        assert_eq!((&body["likes"], &body["changed"]), (&json!(likes), &json!(changed)), "{method} {user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_websocket_handshake_is_refused_in_words() {
    let pods = TestPods::start(&["--origin", "http://good.test"]).await;
    let valid = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    for (name, value, status) in [
        ("sec-websocket-version", "12", 426),
        ("sec-websocket-key", "c2hvcnQ=", 400),
        ("sec-websocket-protocol", "mqtt", 400),
        ("origin", "http://evil.test", 403),
        ("origin", "null", 403),
    ] {
        let mut headers: Vec<_> = valid.into_iter().filter(|(n, _)| *n != name).collect();
        headers.push((name, value));
        let (found, answered, _) = call(&pods, "GET", "/stomp", &headers, "").await;
        assert_eq!(found.as_u16(), status, "{name}: {value}");
        assert_eq!(answered["content-type"], "application/problem+json");
        assert_eq!(answered.get("sec-websocket-version").is_some(), status == 426);
    }
    for (name, value) in [("origin", "http://good.test"), ("sec-websocket-protocol", "v11.stomp")] {
        let headers: Vec<_> = valid.into_iter().chain([(name, value)]).collect();
        let head = raw(&pods, "GET /stomp", &headers).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        assert_eq!(head.contains("sec-websocket-protocol: v11.stomp"), name != "origin", "{head}");
    }
}

/// The head of the answer to a request of our own making.
async fn raw(pods: &TestPods, request: &str, headers: &[(&str, &str)]) -> String {
    let mut socket = tokio::net::TcpStream::connect(pods.addresses[0]).await.unwrap();
    let lines: String = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    socket.write_all(format!("{request} HTTP/1.1\r\nhost: test\r\n{lines}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let read = tokio::time::timeout(PATIENCE, socket.read_buf(&mut head)).await.expect("a head").unwrap();
        assert!(read > 0, "the connection ended: {}", String::from_utf8_lossy(&head));
    }
    String::from_utf8_lossy(&head).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn head_and_options_of_a_stream_answer_at_once() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let accept = [("accept", "text/event-stream")];
    let (status, headers, _) = call(&pods, "HEAD", &path, &accept, "").await;
    assert_eq!((status.as_u16(), &headers["content-type"]), (200, &HeaderValue::from_static("text/event-stream")));
    let (status, headers, _) = call(&pods, "OPTIONS", &path, &accept, "").await;
    assert_eq!(status, 204);
    assert!(headers["allow"].to_str().unwrap().contains("DELETE"));
    pods.metric_becomes(0, "pushlab_connections", "sse", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_admin_port_answer() {
    let pods = TestPods::start(&["--heartbeat", "7s"]).await;
    let page = pods.http.get(pods.url(0, "/")).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    let html = page.text().await.unwrap();
    assert!(html.contains("data-heartbeat-ms=\"7000\"") && !html.contains("{{"));
    // Nothing inline and nothing from elsewhere, so that the policy can be strict.
    assert!(policy.contains("default-src 'none'; script-src 'self'; style-src 'self'") && !policy.contains("unsafe"));
    assert!(
        !html.contains("<style") && !html.contains("style=") && !html.contains("<script>") && !html.contains("//cdn")
    );
    for (file, kind) in [("page.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")] {
        assert!(html.contains(&format!("\"/page/{file}\"")), "{file}");
        let answer = pods.http.get(pods.url(0, &format!("/page/{file}"))).send().await.unwrap();
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with(kind), "{file}");
        let tag = answer.headers()["etag"].clone();
        let again = pods.http.get(answer.url().clone()).header("if-none-match", tag).send().await.unwrap();
        assert_eq!(again.status(), 304, "{file}");
    }
    assert_eq!(pods.http.get(pods.url(0, "/page/page.rs")).send().await.unwrap().status(), 404);
    for (path, part) in [
        ("/livez", "true"),
        ("/readyz", "\"database\":true"),
        ("/metrics", "# HELP pushlab_connections Streams that are open now."),
        ("/debug/connections", "\"pod\":\"pod-1\""),
    ] {
        let answer = pods.http.get(format!("http://{}{path}", pods.admins[0])).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let text = answer.text().await.unwrap();
        assert!(text.contains(part), "{path}: {text}");
        let public = pods.http.get(pods.url(0, path)).send().await.unwrap();
        assert_eq!(public.status(), 404, "{path} is not for the public");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_describes_itself() {
    let pods = TestPods::start(&[]).await;
    let (_, headers, _) = call(&pods, "GET", "/", &[], "").await;
    let links = headers["link"].to_str().unwrap();
    for (path, field) in [("/openapi.json", "openapi"), ("/asyncapi.json", "asyncapi")] {
        let (status, headers, body) = call(&pods, "GET", path, &[], "").await;
        assert_eq!((status.as_u16(), &headers["content-type"]), (200, &HeaderValue::from_static("application/json")));
        assert!(body[field].is_string() && links.contains(&format!("<{path}>; rel=\"service-desc\"")), "{links}");
    }
    // The type of a problem leads to its meaning.
    let (_, _, problem) = call(&pods, "GET", "/posts/7", &[], "").await;
    let kind = problem["type"].as_str().unwrap();
    let text = pods.http.get(pods.url(0, kind)).send().await.unwrap().text().await.unwrap();
    assert!(text.starts_with("unknown-post\n") && text.contains("Status 404."), "{text}");
    assert_eq!(call(&pods, "GET", "/problems/none", &[], "").await.0, 404);
    assert!(
        links.contains("</problems>; rel=\"service-doc\"") && call(&pods, "GET", "/problems", &[], "").await.0 == 200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_streams_come_through_the_same_handler() {
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let socket = tokio::net::TcpStream::connect(pods.addresses[0]).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(socket);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(pods.url(0, &format!("/posts/{post}/likes")))
        .header("accept", "text/event-stream")
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let mut answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    pods.like(0, post).await;
    let mut text = String::new();
    while !text.contains("\"version\":1") {
        let frame = tokio::time::timeout(PATIENCE, answer.body_mut().frame()).await.expect("a frame").unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    assert!(text.starts_with("retry: "), "no chunk framing within HTTP/2: {text}");
}
