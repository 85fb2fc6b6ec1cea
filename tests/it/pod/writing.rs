//! The write strategies through whole pods: a thousand likes at once over three of them, a key sent to all of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::Sse;
use super::{PATIENCE, TestPods};
use crate::servers::{MariaDb, NatsServer};

const LIKES: u64 = 1_000;

/// Three pods with nothing in common but the servers.
async fn three(database: &str, nats: &str, more: &[&str]) -> Vec<TestPods> {
    let mut pods = Vec::new();
    for name in ["pod-1", "pod-2", "pod-3"] {
        let flags = ["--database-url", database, "--nats-url", nats, "--pod-name", name];
        pods.push(TestPods::start(&[&flags[..], more].concat()).await);
    }
    pods
}

/// Answers of `count` likes sent at once, over the pods in turn; with a key, all with the same one. Whoever is told that
/// nothing was counted tries again, as Retry-After asks, only sooner.
async fn all_at_once(pods: &[TestPods], post: u64, count: u64, key: Option<&str>) -> Vec<(StatusCode, bool, Value)> {
    let mut tasks = JoinSet::new();
    for i in 0..count {
        let pod = &pods[usize::try_from(i).unwrap() % pods.len()];
        let (http, url) = (pod.http.clone(), pod.url(0, &format!("/posts/{post}/likes")));
        let key = key.map(str::to_owned);
        tasks.spawn(async move {
            // Optimistic likes on one post overtake each other many times.
            let deadline = Instant::now() + PATIENCE * 3;
            loop {
                let mut request = http.post(&url);
                if let Some(key) = &key {
                    request = request.header("Idempotency-Key", key);
                }
                let answer = request.send().await.unwrap();
                let status = answer.status();
                if status == 503 {
                    assert!(answer.headers().contains_key("retry-after") && Instant::now() < deadline);
                    tokio::time::sleep(Duration::from_millis(rand::random_range(20..200))).await;
                    continue;
                }
                let replayed = answer.headers().get("idempotent-replayed").is_some();
                return (status, replayed, answer.json().await.unwrap());
            }
        });
    }
    tasks.join_all().await
}

async fn state(pods: &TestPods, post: u64) -> (u64, u64) {
    let answer = pods.http.get(pods.url(0, &format!("/posts/{post}/likes"))).send().await.unwrap();
    let state: Value = answer.json().await.unwrap();
    (state["likes"].as_u64().unwrap(), state["version"].as_u64().unwrap())
}

/// A thousand connections of clients and as many of pods, in one process.
fn raise_open_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(65_536), hard).unwrap();
}

async fn a_thousand_likes(write: &str, publish: &str) {
    raise_open_files();
    let nats = if publish == "outbox" { NatsServer::with_jetstream() } else { NatsServer::start() };
    let database = MariaDb::shared().database().await;
    let flags = ["--write", write, "--publish", publish, "--anti-entropy", "off"];
    let pods = three(&database, &nats.url(), &flags).await;
    let post = pods[0].post().await;
    let mut sse = Sse::open(&pods[2], 0, &format!("/posts/{post}/likes")).await;
    let answers = all_at_once(&pods, post, LIKES, None).await;
    assert!(answers.iter().all(|(status, ..)| *status == StatusCode::OK), "{:?}", answers[0]);
    let versions: BTreeSet<u64> = answers.iter().map(|(.., body)| body["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, (1..=LIKES).collect(), "each version once");
    assert!(answers.iter().all(|(.., body)| body["changed"] == true && body["likes"] == body["version"]));
    assert_eq!(state(&pods[1], post).await, (LIKES, LIKES));
    assert_eq!(sse.until(LIKES).await["likes"], LIKES);

    // The same key to all of them: one like, one answer.
    let answers = all_at_once(&pods, post, 50, Some("mine")).await;
    let first = &answers[0].2;
    assert!(answers.iter().all(|(status, _, body)| *status == StatusCode::OK && body == first), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, replayed, _)| !replayed).count(), 1);
    assert_eq!(state(&pods[1], post).await, (LIKES + 1, LIKES + 1));
    assert_eq!(sse.until(LIKES + 1).await["likes"], LIKES + 1);
    if publish == "outbox" {
        for pod in &pods {
            pod.metric_becomes(0, "pushlab_outbox_unpublished", "", 0.0).await;
            assert!(pod.metric(0, "pushlab_outbox_publish_seconds_count", "").await > 0.0, "each relays its own");
        }
    }
    if write == "combining" {
        let mut commits = 0.0;
        for pod in &pods {
            commits += pod.metric(0, "pushlab_like_commits_total", "").await;
        }
        assert!(commits < 500.0, "{commits} commits for {LIKES} likes");
    }
}

macro_rules! a_thousand_likes {
    ($($name:ident: $write:literal, $publish:literal;)*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            a_thousand_likes($write, $publish).await;
        }
    )* };
}

a_thousand_likes! {
    a_thousand_pessimistic_likes_over_three_pods: "pessimistic", "after-commit";
    a_thousand_optimistic_likes_over_three_pods: "optimistic", "after-commit";
    a_thousand_atomic_likes_over_three_pods: "atomic", "after-commit";
    a_thousand_combined_likes_over_three_pods: "combining", "after-commit";
    a_thousand_combined_likes_through_the_outbox: "combining", "outbox";
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_pending_likes_over_three_pods() {
    raise_open_files();
    let (nats, database) = (NatsServer::start(), MariaDb::shared().database().await);
    let pods = three(&database, &nats.url(), &["--write", "event", "--anti-entropy", "off"]).await;
    let post = pods[0].post().await;
    let mut sse = Sse::open(&pods[2], 0, &format!("/posts/{post}/likes")).await;
    let answers = all_at_once(&pods, post, LIKES, None).await;
    let pending = json!({ "postId": post, "pending": true });
    assert!(answers.iter().all(|(status, _, body)| *status == 202 && *body == pending), "{:?}", answers[0]);
    let answers = all_at_once(&pods, post, 50, Some("mine")).await;
    assert!(answers.iter().all(|(status, _, body)| *status == 202 && *body == pending), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, replayed, _)| !replayed).count(), 1);
    // The count is exact once nothing waits, and every viewer gets there by events.
    assert_eq!(sse.until(LIKES + 1).await["likes"], LIKES + 1);
    assert_eq!(state(&pods[1], post).await, (LIKES + 1, LIKES + 1));
    let mut counted = 0.0;
    for pod in &pods {
        pod.metric_becomes(0, "pushlab_pending_likes", "", 0.0).await;
        counted += pod.metric(0, "pushlab_pending_seconds_count", "").await;
    }
    assert!((counted - (LIKES + 1) as f64).abs() < 0.5, "{counted} were counted");

    // No such post, and the key of a like that did not happen.
    let answer = pods[0].http.post(pods[0].url(0, "/posts/4711/likes")).header("Idempotency-Key", "x").send().await;
    assert_eq!(answer.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_needs_a_stream() {
    let (nats, database) = (NatsServer::start(), MariaDb::shared().database().await);
    let flags = ["--database-url", &database, "--publish", "outbox", "--nats-url"];
    for (url, hint) in [(nats.url(), "nats-server -js"), ("local".into(), "nats-server -js")] {
        let refused = TestPods::try_start(&[&flags[..], &[&url]].concat()).await.err().unwrap().to_string();
        assert!(refused.contains("--publish outbox") && refused.contains(hint), "{refused}");
    }
}
