//! Streams that cannot be served, drains, bad starts.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use pushlab::serve::Drained;

use super::client::{Next, Sse, Stomp};
use super::{PATIENCE, TestPods};

async fn refused(pods: &TestPods, path: &str) -> (u16, String) {
    let answer = match Sse::try_open(pods, 0, path, &[]).await {
        Ok(_) => panic!("a stream"),
        Err(answer) => answer,
    };
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    assert!(answer.headers().contains_key("retry-after"));
    (answer.status().as_u16(), answer.json::<serde_json::Value>().await.unwrap()["type"].as_str().unwrap().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pod_refuses_streams_and_takes_likes() {
    let pods = TestPods::start(&["--max-connections", "2"]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let sse = Sse::open(&pods, 0, &path).await;
    let _stomp = Stomp::open(pods.addresses[0]).await;
    assert_eq!(refused(&pods, &path).await, (503, "/problems/full".into()));
    pods.like(0, post).await;
    drop(sse);
    pods.metric_becomes(0, "pushlab_connections", "sse", 0.0).await;
    Sse::open(&pods, 0, &path).await;
    assert!((pods.metric(0, "pushlab_streams_refused_total", "full").await - 1.0).abs() < 0.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_refuses_then_ends_the_streams_and_then_the_pod() {
    let pods = TestPods::start(&["--drain-grace", "700ms", "--drain", "300ms"]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let mut sse = Sse::open(&pods, 0, &path).await;
    sse.next().await;
    let mut stomp = Stomp::open(pods.addresses[0]).await;
    pods.stop();
    let ready = format!("http://{}/readyz", pods.admins[0]);
    let deadline = Instant::now() + PATIENCE;
    while pods.http.get(&ready).send().await.unwrap().status() != 503 {
        assert!(Instant::now() < deadline);
    }
    let live = format!("http://{}/livez", pods.admins[0]);
    assert_eq!(pods.http.get(&live).send().await.unwrap().status(), 200);
    assert_eq!(refused(&pods, &path).await, (503, "/problems/draining".into()));
    pods.like(0, post).await;
    assert_eq!(sse.json().await["likes"], 1, "streams live on during the grace");
    let last = sse.next().await.unwrap();
    assert!(last.0.contains_key("retry") && !last.0.contains_key("data"), "{last:?}");
    assert!(sse.next().await.is_none(), "a clean end");
    assert_eq!(stomp.next().await, Next::Closed(Some(1012)));
    assert_eq!(pods.ended().await, [Drained::Whole]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_spread() {
    let pods = TestPods::start(&["--drain", "1s"]).await;
    let post = pods.post().await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut sse = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
        sse.next().await;
        streams.push(sse);
    }
    pods.stop();
    let ends = streams.into_iter().map(|mut sse| {
        tokio::spawn(async move {
            while sse.next().await.is_some() {}
            Instant::now()
        })
    });
    let mut times = Vec::new();
    for end in ends.collect::<Vec<_>>() {
        times.push(end.await.unwrap());
    }
    times.sort();
    let spread = times[19] - times[0];
    assert!(spread > Duration::from_millis(400), "{spread:?}");
    assert_eq!(pods.ended().await, [Drained::Whole]);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_and_busy_pods_answer_as_they_were_told() {
    let pods = TestPods::start(&["--break", "refuse-fast"]).await;
    let path = format!("/posts/{}/likes", pods.post().await);
    assert_eq!(refused(&pods, &path).await, (503, "/problems/broken".into()));

    let pods = TestPods::start(&["--break", "polite-200"]).await;
    let path = format!("/posts/{}/likes", pods.post().await);
    let mut sse = Sse::open(&pods, 0, &path).await;
    assert!(sse.next().await.unwrap().0.contains_key("retry"));
    assert!(sse.next().await.is_none());
    let mut stomp = Stomp::socket(pods.addresses[0]).await;
    assert_eq!(stomp.next().await, Next::Closed(Some(1000)));

    let pods = TestPods::start(&["--busy-stream", "end", "--max-connections", "0"]).await;
    let path = format!("/posts/{}/likes", pods.post().await);
    let asked = Instant::now();
    let mut sse = Sse::open(&pods, 0, &path).await;
    assert!(asked.elapsed() > Duration::from_millis(450), "a quick end would attract everybody");
    assert!(sse.next().await.unwrap().0.contains_key("retry"));
    assert!(sse.next().await.is_none());
}

/// Bad starts: exit 1 (2 for usage) and one line that says what to do.
#[test]
fn a_bad_start_ends_with_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (flags, code, part) in [
        (vec!["--listen", taken.as_str()], 1, "another process listens"),
        (vec!["--database-url", "postgres://x"], 1, "--database-url"),
        (vec!["--database-url", "mysql://u:secret@127.0.0.1:1/x"], 1, "does it run"),
        (vec!["--nats-url", "localhost"], 1, "--nats-url"),
        (vec!["--nats-url", "nats://127.0.0.1:1"], 1, "--nats-url"),
        (vec!["--cpus", "1000"], 1, "--cpus"),
        (vec!["--write", "combining"], 1, "MariaDB or MySQL"),
        (vec!["--publish", "outbox"], 1, "MariaDB or MySQL"),
        (vec!["--heartbeat", "soon"], 2, "for example"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", folder.path().join("x.db").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_pushlab"));
        command.args(["serve", "--admin-listen", "127.0.0.1:0"]).env("RUST_LOG", "off");
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--database-url", database.as_str())] {
            if flags[0] != flag {
                command.args([flag, value]);
            }
        }
        let output = command.args(&flags).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {told}");
        assert!(told.contains(part) && !told.contains("secret"), "{flags:?}: {told}");
        assert!(code == 2 || told.lines().count() == 1, "{flags:?}: {told}");
        assert!(output.stdout.is_empty());
    }
}
