//! Clients that connect and vanish, thousands of times: descriptors, threads, tasks, NATS subscriptions and memory return.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::Stomp;
use super::{PATIENCE, TestPods};
use crate::pod_process::{PodProcess, metric_becomes};
use crate::servers::NatsServer;

/// What must return.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    descriptors: usize,
    threads: usize,
    connections: f64,
    watched: f64,
    subscriptions: u64,
}

async fn held(pod: &PodProcess, nats: &NatsServer) -> Held {
    let told: serde_json::Value =
        reqwest::get(format!("{}/subsz", nats.monitor())).await.unwrap().json().await.unwrap();
    Held {
        descriptors: pod.count("fd"),
        threads: pod.count("task"),
        connections: pod.metric("pushlab_connections", "").await,
        watched: pod.metric("pushlab_watched_posts", "").await,
        subscriptions: told["num_subscriptions"].as_u64().unwrap(),
    }
}

/// Opens a stream, waits for its snapshot, and vanishes: by a reset, or by an end.
async fn sse(address: SocketAddr, post: u64, reset: bool) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let ask = format!("GET /posts/{post}/likes HTTP/1.1\r\nhost: t\r\naccept: text/event-stream\r\n\r\n");
    socket.write_all(ask.as_bytes()).await.unwrap();
    let (mut text, mut piece) = (Vec::new(), [0; 1024]);
    while !text.windows(6).any(|window| window == b"data: ") {
        let read = tokio::time::timeout(PATIENCE, socket.read(&mut piece)).await.expect("a snapshot").unwrap();
        assert!(read > 0, "no stream: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&piece[..read]);
    }
    if reset {
        socket.set_zero_linger().unwrap();
    }
}

async fn stomp(address: SocketAddr, post: u64, reset: bool) {
    let (session, _) = Stomp::watching(address, post).await;
    if reset {
        session.reset();
    }
}

/// `cycles` of each transport, fifty at a time, over ten posts.
async fn cycle(address: SocketAddr, posts: &[u64], cycles: usize) {
    let all = futures_util::stream::iter(0..cycles).for_each_concurrent(50, |n| async move {
        let (post, reset) = (posts[n % posts.len()], n % 3 > 0);
        sse(address, post, reset).await;
        stomp(address, post, reset).await;
    });
    all.await;
}

/// The bar is 10,000 cycles (`PUSHLAB_CYCLES=10000`, about a minute); what everybody runs is 500.
#[tokio::test(flavor = "multi_thread")]
async fn after_thousands_of_clients_that_vanished_the_pod_holds_what_it_held() {
    let nats = NatsServer::start();
    let pod = PodProcess::start(&["--nats-url", &nats.url()]);
    let mut posts = Vec::new();
    for _ in 0..20 {
        posts.push(pod.post().await);
    }
    // Other posts later: a subscription that stayed behind would be there before as well.
    let (first, posts) = posts.split_at(10);
    // The first of all make what stays: pools, a thread here and there, arenas of the allocator.
    cycle(pod.listen, first, 100).await;
    let settled = async |what: &str, wanted: Option<Held>| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let held = held(&pod, &nats).await;
            let empty = held.connections == 0.0 && held.watched == 0.0;
            if empty
                && wanted.is_none_or(|wanted| {
                    held.descriptors <= wanted.descriptors && held.subscriptions <= wanted.subscriptions
                })
            {
                return held;
            }
            assert!(Instant::now() < deadline, "{what}: {held:?}, wanted {wanted:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let before = settled("before", None).await;
    let rss = pod.rss_mib();
    let cycles = std::env::var("PUSHLAB_CYCLES").map_or(500, |n| n.parse().unwrap());
    cycle(pod.listen, posts, cycles).await;
    let after = settled("after", Some(before)).await;
    assert_eq!(after.threads, before.threads, "{after:?}");
    let grown = pod.rss_mib() - rss;
    println!("{cycles} cycles per transport: {before:?}, {after:?}, resident {rss:.1} MiB, then {grown:+.1} MiB");
    assert!(grown < 8.0, "{grown:.1} MiB more after {cycles} cycles per transport");
}

/// The pod runs in this test's own runtime, which counts its tasks.
#[tokio::test(flavor = "multi_thread")]
async fn no_task_outlives_its_client() {
    let pods = TestPods::start(&[]).await;
    let posts = [pods.post().await, pods.post().await];
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    // It keeps no connection, whose two ends would be tasks as well.
    let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let nobody = async || {
        for transport in ["sse", "stomp"] {
            metric_becomes(&http, pods.admins[0], "pushlab_connections", transport, 0.0).await;
        }
    };
    cycle(pods.addresses[0], &posts, 50).await;
    nobody().await;
    let fewest = async || {
        let mut fewest = tasks();
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            fewest = fewest.min(tasks());
        }
        fewest
    };
    let before = fewest().await;
    cycle(pods.addresses[0], &posts, 300).await;
    nobody().await;
    let deadline = Instant::now() + PATIENCE;
    while tasks() > before {
        assert!(Instant::now() < deadline, "{} tasks, {before} before", tasks());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
