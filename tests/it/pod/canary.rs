//! The canary of one pod, singing to another one through its public address.

use serde_json::json;

use super::TestPods;
use super::tokens::{now, raw, secret_file, token};
use crate::pod_process::PodProcess;
use crate::servers::NatsServer;

/// Waits until the canary has so many likes of this result on this transport.
pub(super) async fn sung(pods: &TestPods, transport: &str, result: &str) {
    let deadline = tokio::time::Instant::now() + super::PATIENCE;
    let labels = format!("result=\"{result}\",transport=\"{transport}\"");
    while pods.metric(0, "pushlab_canary_total", &labels).await < 0.5 {
        assert!(tokio::time::Instant::now() < deadline, "no canary is {result} over {transport}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_sees_its_likes_loses_them_and_cannot_reach_anybody() {
    let mut nats = NatsServer::start();
    let flags = ["--nats-url", &nats.url(), "--anti-entropy", "off"];
    let other = TestPods::start(&flags).await;
    let url = format!("http://{}", other.addresses[0]);
    let pods = TestPods::start(&["--canary", &url, "--canary-period", "1s"]).await;
    for transport in ["sse", "stomp"] {
        sung(&pods, transport, "seen").await;
        let count = format!("transport=\"{transport}\"");
        assert!(pods.metric(0, "pushlab_canary_like_to_view_seconds_count", &count).await > 0.5);
    }
    assert!(other.metric(0, "pushlab_likes_total", "changed").await > 0.5, "a like of its own");
    // Committed, and nobody is told.
    nats.kill();
    for transport in ["sse", "stomp"] {
        sung(&pods, transport, "lost").await;
    }
    other.stop();
    for transport in ["sse", "stomp"] {
        sung(&pods, transport, "unreachable").await;
    }
    pods.stop();
    assert_eq!(pods.ended().await, [pushlab::serve::Drained::Whole]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_whose_like_takes_long_is_late() {
    // A tenth of the period is 0.1 s.
    let other = TestPods::start(&["--flush", "300ms"]).await;
    let url = format!("http://{}", other.addresses[0]);
    let pods = TestPods::start(&["--canary", &url, "--canary-period", "1s"]).await;
    for transport in ["sse", "stomp"] {
        sung(&pods, transport, "late").await;
    }
    assert!(pods.metric(0, "pushlab_canary_total", "result=\"seen\"").await < 0.5);
    assert!(pods.metric(0, "pushlab_canary_like_to_view_seconds_count", "").await > 1.5, "late ones are measured too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_shows_its_token_at_the_public_url_and_nowhere_else() {
    let (secret, file) = (secret_file(), tempfile::NamedTempFile::new().unwrap());
    let forged = raw(&json!({ "typ": "JWT", "alg": "HS256" }), &json!({ "sub": "a", "exp": now() + 3600 }), "c2lnbmVk");
    let valid = token("canary");
    std::fs::write(file.path(), &forged).unwrap();
    // All that can be logged is.
    let log = [("RUST_LOG", "trace")];
    let auth = ["--auth", "jwt", "--jwt-secret-file", secret.path().to_str().unwrap()];
    let other = PodProcess::with(&auth, &log);
    let path = file.path().to_str().unwrap();
    let flags = ["--canary", &other.url(""), "--canary-period", "1s", "--canary-token-file", path];
    let pod = PodProcess::with(&flags, &log);
    let pods = TestPods::of(&pod);
    for (token, result) in [(&forged, "unreachable"), (&valid, "seen")] {
        std::fs::write(file.path(), token).unwrap();
        for transport in ["sse", "stomp"] {
            sung(&pods, transport, result).await;
        }
    }
    for process in [&pod, &other] {
        let mut told = process.log();
        assert!(told.contains(" TRACE "), "it tells all");
        for path in ["metrics", "debug/connections"] {
            let answer = pods.http.get(format!("http://{}/{path}", process.admin)).send().await.unwrap();
            told += &answer.text().await.unwrap();
        }
        for token in [&forged, &valid] {
            for part in token.rsplit('.').take(2) {
                let line = told.lines().find(|line| line.contains(part));
                assert!(line.is_none(), "a token: {}", line.unwrap());
            }
        }
    }
}

#[test]
fn a_canary_without_its_token_is_refused_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", folder.path().join("likes.db").display());
    let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_pushlab"))
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--database-url", &database])
        .args(["--canary", "http://127.0.0.1:9", "--canary-token-file", "/nowhere/token"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--canary-token-file /nowhere/token"), "{said}");
}
