//! Time-outs and the broker's events, each provoked by what causes it in the world and read from `/metrics`. (Missed
//! heart-beats: `stomp.rs`; slow heads: `hostile.rs`.)

use std::time::Instant;

use nix::sys::signal::Signal;
use sqlx::{Connection, Executor, MySqlConnection};

use super::TestPods;
use super::client::{Next, Sse, Stomp};
use super::raw::{Raw, request, status};
use crate::edge::EdgeServer;
use crate::servers::{MariaDb, NatsServer};
use pushlab::compare::edges::Edge;

/// Waits until so many time-outs of this kind are counted.
async fn timed_out(pods: &TestPods, kind: &str, times: f64) {
    pods.metric_becomes(0, "pushlab_timeouts_total", &format!("kind=\"{kind}\""), times).await;
}

/// nginx that gives a silent stream one second.
fn impatient(conf: &str) -> String {
    let is_its = |line: &str| line.trim().starts_with("proxy_read_timeout");
    let lines = conf.lines().map(|line| if is_its(line) { "proxy_read_timeout 1s;" } else { line });
    lines.map(|line| format!("{line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_cut_by_a_proxy_is_told_from_a_viewer_that_leaves() {
    let pods = TestPods::start(&["--heartbeat", "0", "--idle-cut", "700ms"]).await;
    let post = pods.post().await;
    let nginx = EdgeServer::start(Edge::NginxLeastConn, pods.addresses[0], impatient);
    // Silent for as long as the others, but it says good-bye.
    let (mut polite, _) = Stomp::watching(pods.addresses[0], post).await;
    let (mut stomp, _) = Stomp::watching(nginx.address(), post).await;
    let url = format!("http://{}/posts/{post}/likes", nginx.address());
    let sse = pods.http.get(url).header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(stomp.next().await, Next::Closed(None), "nginx ends it without a word");
    drop(sse.bytes().await);
    timed_out(&pods, "idle_cut", 2.0).await;
    pods.metric_becomes(0, "pushlab_closed_total", "reason=\"peer\"", 2.0).await;
    polite.send("DISCONNECT\n\n\0").await;
    pods.metric_becomes(0, "pushlab_connections", "", 0.0).await;
    timed_out(&pods, "idle_cut", 2.0).await;

    // A reader that closes the page some time after the last like: no silence worth the name.
    let pods = TestPods::start(&[]).await;
    let post = pods.post().await;
    let mut sse = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    sse.json().await;
    drop(sse);
    pods.metric_becomes(0, "pushlab_closed_total", "transport=\"sse\"", 1.0).await;
    timed_out(&pods, "idle_cut", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_that_takes_nothing_and_one_that_says_nothing() {
    let pods = TestPods::start(&["--write-timeout", "1s"]).await;
    let post = pods.post().await;
    let accept = [("accept", "text/event-stream")];
    let (_stalled, head, _) = request(pods.addresses[0], &format!("GET /posts/{post}/likes"), &accept, b"").await;
    assert_eq!(status(&head), 200);
    let _mute = Raw::open(pods.addresses[0], "/stomp", b"").await;
    let full = async {
        while pods.metric(0, "pushlab_timeouts_total", "kind=\"write\"").await < 0.5 {
            pods.like(0, post).await;
        }
    };
    tokio::time::timeout(super::PATIENCE, full).await.expect("its socket takes no more");
    pods.metric_becomes(0, "pushlab_closed_total", "reason=\"write_timeout\"", 1.0).await;
    timed_out(&pods, "connect", 1.0).await;
    timed_out(&pods, "heartbeat", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_and_a_broker_that_hangs_leaves_or_comes_back() {
    let mut nats = NatsServer::start();
    let database = MariaDb::shared().database().await;
    let pods = TestPods::start(&["--database-url", &database, "--nats-url", &nats.url()]).await;
    let post = pods.post().await;
    let mut lock = MySqlConnection::connect(&database).await.unwrap();
    lock.execute("begin").await.unwrap();
    sqlx::query("select * from posts where id = ? for update").bind(post).execute(&mut lock).await.unwrap();
    let answer = pods.http.post(pods.url(0, &format!("/posts/{post}/likes"))).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    timed_out(&pods, "lock_wait", 1.0).await;
    assert!(pods.metric(0, "pushlab_pool_connections", "").await > 0.5);
    assert!(pods.metric(0, "pushlab_pool_acquire_seconds_count", "").await > 0.5);

    // It neither answers nor closes: the first viewer of a post waits for its subscription, then is served without.
    nats.signal(Signal::SIGSTOP);
    let mut viewers = Vec::new();
    let timed_out_there = async {
        // On a busy machine it takes a moment to stop.
        while pods.metric(0, "pushlab_timeouts_total", "kind=\"broker\"").await < 0.5 {
            let post = pods.post().await;
            viewers.push(Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await);
        }
    };
    tokio::time::timeout(super::PATIENCE, timed_out_there).await.expect("a subscription in vain");
    nats.signal(Signal::SIGCONT);
    let event = |name: &str| format!("event=\"{name}\"");
    nats.kill();
    pods.metric_becomes(0, "pushlab_broker_connected", "", 0.0).await;
    assert!(pods.metric(0, "pushlab_broker_events_total", &event("disconnected")).await > 0.5);
    nats.start_again();
    pods.metric_becomes(0, "pushlab_broker_connected", "", 1.0).await;
    assert!(pods.metric(0, "pushlab_broker_events_total", &event("connected")).await > 1.5);
    pods.metric_becomes(0, "pushlab_subscriptions", "", viewers.len() as f64).await;
    // Its word for "I leave soon": clients go elsewhere by and by.
    nats.signal(Signal::SIGUSR2);
    pods.metric_becomes(0, "pushlab_broker_events_total", &event("lame_duck"), 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_move_to_another_server_when_theirs_leaves_and_no_viewer_notices() {
    let [leaving, mut staying] = NatsServer::pair();
    let servers = format!("{},{}", leaving.url(), staying.url());
    let pods = TestPods::start(&["--pods", "2", "--nats-url", &servers, "--anti-entropy", "off"]).await;
    let post = pods.post().await;
    let path = format!("/posts/{post}/likes");
    let mut viewers = [Sse::open(&pods, 0, &path).await, Sse::open(&pods, 1, &path).await];
    staying.start_again();
    leaving.signal(Signal::SIGUSR2); // nats-server --signal ldm
    // Likes go on until both pods have moved, and for a while after that.
    let (mut likes, mut after, deadline) = (0, 0, Instant::now() + super::PATIENCE);
    while after < 10 {
        likes += 1;
        assert_eq!(pods.like(0, post).await["version"], likes);
        let mut moved = 0.0;
        for pod in 0..2 {
            moved += pods.metric(pod, "pushlab_broker_reconnects_total", "").await.min(1.0);
        }
        after += u32::from(moved > 1.5);
        assert!(Instant::now() < deadline, "{moved} of 2 pods have moved");
    }
    for pod in 0..2 {
        assert!(pods.metric(pod, "pushlab_broker_events_total", "event=\"lame_duck\"").await > 0.5);
        pods.metric_becomes(pod, "pushlab_broker_connected", "", 1.0).await;
    }
    println!("{likes} likes meanwhile");
    for viewer in &mut viewers {
        assert_eq!(viewer.until(likes).await["likes"], likes);
    }
    assert!(pods.metric(0, "pushlab_closed_total", "").await + pods.metric(1, "pushlab_closed_total", "").await < 0.5);
}
