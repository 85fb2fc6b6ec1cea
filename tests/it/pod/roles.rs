//! Pods that serve a part only, and `pushlab probe` over all of them.

use std::process::Command;

use serde_json::{Value, json};

use super::TestPods;
use super::client::{Sse, Stomp};
use crate::servers::{MariaDb, NatsServer};

async fn problem(answer: reqwest::Response) -> (u16, String) {
    (answer.status().as_u16(), answer.json::<Value>().await.unwrap()["type"].as_str().unwrap().into())
}

async fn handshake(pods: &TestPods) -> reqwest::Response {
    let request = pods.http.get(pods.url(0, "/stomp")).header("connection", "upgrade").header("upgrade", "websocket");
    let request = request.header("sec-websocket-version", "13").header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
    request.send().await.unwrap()
}

async fn roles(pods: &TestPods) -> Value {
    let ready = pods.http.get(format!("http://{}/readyz", pods.admins[0])).send().await.unwrap();
    assert_eq!(ready.status(), 200);
    ready.json::<Value>().await.unwrap()["roles"].clone()
}

fn probe(flags: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pushlab")).arg("probe").args(flags).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_pod_serves_its_roles_and_a_probe_finds_all_of_them() {
    let nats = NatsServer::start();
    let database = MariaDb::shared().database().await;
    let flags = |roles| ["--database-url", &database, "--nats-url", &nats.url(), "--roles", roles].map(str::to_owned);
    let start = async |roles| {
        let flags = flags(roles);
        TestPods::start(&flags.each_ref().map(String::as_str)).await
    };
    let (api, sse, stomp) = tokio::join!(start("api"), start("sse"), start("stomp"));
    assert_eq!(
        (roles(&api).await, roles(&sse).await, roles(&stomp).await),
        (json!(["api"]), json!(["sse"]), json!(["stomp"]))
    );
    let no_role = (404, "/problems/no-role".to_owned());
    let post = api.post().await;
    let path = format!("/posts/{post}/likes");

    for pods in [&api, &stomp] {
        assert_eq!(problem(Sse::try_open(pods, 0, &path, &[]).await.err().unwrap()).await, no_role);
    }
    for pods in [&api, &sse] {
        assert_eq!(problem(handshake(pods).await).await, no_role);
    }
    for pods in [&sse, &stomp] {
        assert_eq!(problem(pods.http.post(pods.url(0, &path)).send().await.unwrap()).await, no_role);
        assert_eq!(problem(pods.http.get(pods.url(0, &path)).send().await.unwrap()).await, no_role);
    }
    // A SEND is a like as well: it is refused, and the session goes on.
    let (mut session, _) = Stomp::watching(stomp.addresses[0], post).await;
    session.send(&format!("SEND\ndestination:/app/posts.{post}.like\ncorrelation-id:c\n\n\0")).await;
    let reply = session.frame().await;
    assert_eq!((reply.header("status"), reply.header("correlation-id")), ("404", "c"));
    assert_eq!(reply.json()["type"], "/problems/no-role");
    api.like(0, post).await;
    assert_eq!(session.frame().await.json()["likes"], 1);

    let url = |pods: &TestPods| format!("http://{}", pods.addresses[0]);
    let admins = [&api, &sse, &stomp].map(|pods| format!("http://{}", pods.admins[0])).join(",");
    let urls = [url(&api), url(&sse), url(&stomp)];
    let (code, text) = tokio::task::spawn_blocking({
        let (urls, admins) = (urls.clone(), admins.clone());
        move || probe(&["--base-url", &urls[0], "--sse-url", &urls[1], "--stomp-url", &urls[2], "--admin-url", &admins])
    })
    .await
    .unwrap();
    assert_eq!(code, Some(0), "{text}");
    for part in
        ["is ready for api", "is ready for sse", "is ready for stomp", "like→sse", "like→stomp", "resume", "ok    both"]
    {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let (code, text) =
        tokio::task::spawn_blocking(move || probe(&["--base-url", &urls[0], "--stream-url", &urls[2]])).await.unwrap();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAIL  sse") && text.contains("--sse-url"), "{text}");
}
