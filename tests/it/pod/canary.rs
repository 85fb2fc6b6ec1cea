//! The canary of one pod, singing to another one through its public address.

use super::TestPods;
use crate::servers::NatsServer;

/// Waits until the canary has so many likes of this result on this transport.
async fn sung(pods: &TestPods, transport: &str, result: &str) {
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
