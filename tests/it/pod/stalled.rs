//! What readers that have stalled cost the pod, by mailbox policy: its resident memory, seen from outside.

use std::net::SocketAddr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::client::{Sse, Stomp};
use super::{PATIENCE, TestPods};
use crate::pod_process::PodProcess;

const READERS: usize = 1_000;
/// Far more than the kernel's buffers take of a stream, and than a mailbox keeps.
const LIKES: u64 = 1_000;
/// What one stalled reader may add to the pod's memory, in KiB: the rest of an update, a place in a list. The stated bound.
const BOUND_KIB: f64 = 4.0;

/// A socket that takes little.
async fn narrow(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2_048).unwrap();
    timeout(PATIENCE, socket.connect(address)).await.expect("a connection").unwrap()
}

/// An SSE stream that was read up to its snapshot.
async fn sse(address: SocketAddr, post: u64) -> TcpStream {
    let mut socket = narrow(address).await;
    let ask = format!("GET /posts/{post}/likes HTTP/1.1\r\nhost: t\r\naccept: text/event-stream\r\n\r\n");
    socket.write_all(ask.as_bytes()).await.unwrap();
    let (mut seen, mut piece) = (Vec::new(), [0; 512]);
    while !seen.windows(8).any(|window| window == b"snapshot") {
        let read = timeout(PATIENCE, socket.read(&mut piece)).await.expect("a snapshot").unwrap();
        assert!(read > 0, "no stream");
        seen.extend_from_slice(&piece[..read]);
    }
    socket
}

/// A STOMP session that was read up to its snapshot.
async fn stomp(address: SocketAddr, post: u64) -> Stomp {
    let mut session = Stomp::open_over(narrow(address).await).await;
    session.send(&format!("SUBSCRIBE\nid:0\ndestination:/topic/posts.{post}.likes\n\n\0")).await;
    assert_eq!(session.frame().await.command, "MESSAGE");
    session
}

/// One policy and one transport; resident memory without readers, with them, and at most while they are stalled.
async fn stall(policy: &str, transport: &str) {
    let pod = PodProcess::start(&["--mailbox", policy, "--mailbox-depth", "64", "--write-timeout", "10m"]);
    let pods = TestPods::of(&pod);
    let post = pods.post().await;
    let empty = pod.rss_mib();
    let (mut streams, mut sessions) = (Vec::new(), Vec::new());
    for _ in 0..READERS {
        match transport {
            "sse" => streams.push(sse(pod.listen, post).await),
            _ => sessions.push(stomp(pod.listen, post).await),
        }
    }
    pods.metric_becomes(0, "pushlab_connections", transport, READERS as f64).await;
    let mut witness = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    let reading = pod.rss_mib();
    let mut most = reading;
    for _ in 0..LIKES {
        pods.like(0, post).await;
        most = most.max(pod.rss_mib());
    }
    assert_eq!(witness.until(LIKES).await["likes"], LIKES, "who reads gets everything");
    let skipped = |reason: &'static str| pods.metric(0, "pushlab_skipped_versions_total", reason);
    let left = pods.metric(0, "pushlab_connections", transport).await;
    match policy {
        "disconnect" => assert!(left < 2.0, "{left} of them were not sent away"),
        _ => assert!(left >= READERS as f64, "{left} are left"),
    }
    let per_reader = (most - reading) * 1024.0 / READERS as f64;
    println!(
        "{policy:12} {transport:6} without readers {empty:5.1} MiB, {READERS} that read {reading:5.1} ({:4.1} KiB each), stalled at most \
         {most:5.1} ({per_reader:+5.2} KiB each); {left:.0} connected, conflated {:.0}, dropped {:.0}",
        (reading - empty) * 1024.0 / READERS as f64,
        skipped("conflated").await,
        skipped("dropped").await,
    );
    assert!(per_reader < BOUND_KIB, "{policy} {transport}: {per_reader:.2} KiB per stalled reader");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "1 min; prints what 1,000 stalled readers cost a pod under each mailbox policy: at most 4 KiB each"]
async fn a_stalled_reader_costs_a_pod_less_than_a_page_of_memory() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    for policy in ["conflate", "drop-oldest", "disconnect"] {
        for transport in ["sse", "stomp"] {
            stall(policy, transport).await;
        }
    }
}
