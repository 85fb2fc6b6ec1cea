//! The guardian and the real servers it keeps: they serve, they fail with a reason, and nothing of them is left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pushlab::compare::edges::{Edge, EdgeConfig, RunningEdge};
use pushlab::compare::stack::guardian::{Spawn, descendants};
use pushlab::compare::stack::processes::Guardian;
use pushlab::compare::stack::services::{self, Service};

use crate::pod_process::PATIENCE;

const PUSHLAB: &str = env!("CARGO_BIN_EXE_pushlab");

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn shell(script: &str, log: &Path) -> Spawn {
    let args = ["-c", script].map(String::from).to_vec();
    Spawn { program: "/bin/sh".into(), args, log: log.join("sh.log"), lines: true, ..Spawn::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_when_the_pipe_to_the_lab_ends() {
    let guardian = Guardian::start(Path::new(PUSHLAB)).await.unwrap();
    let folder = guardian.folder().to_owned();
    let own = guardian.pid();
    // One that ignores SIGTERM, one that daemonised itself away from its parent and its session.
    let deaf = guardian.spawn(shell("trap '' TERM; echo there; while :; do sleep 1; done", &folder)).await;
    let mut away = guardian.spawn(shell("setsid sleep 1000 >/dev/null 2>&1 & echo $!", &folder)).await.unwrap();
    assert_eq!(deaf.unwrap().lines.recv().await.as_deref(), Some("there"));
    away.lines.recv().await.unwrap();
    assert_eq!(away.wait().await.code, Some(0));
    until("the orphan is adopted", || descendants(own).len() >= 2);
    let below = descendants(own);
    drop(guardian);
    until("all are gone", || below.iter().chain([&own]).all(|pid| kill(Pid::from_raw(*pid), None).is_err()));
    assert!(!folder.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_child_says_and_how_it_ends_is_heard() {
    let guardian = Guardian::start(Path::new(PUSHLAB)).await.unwrap();
    let folder = guardian.folder().to_owned();
    let mut child = guardian.spawn(shell("echo one; echo two; echo aloud >&2; exit 7", &folder)).await.unwrap();
    assert_eq!(child.lines.recv().await.as_deref(), Some("one"));
    assert_eq!(child.lines.recv().await.as_deref(), Some("two"));
    assert_eq!(child.lines.recv().await, None);
    assert_eq!(child.wait().await.how, "exit 7");
    assert!(child.log_tail().contains("aloud"));
    let stuck = guardian.spawn(shell("exec sleep 1000", &folder)).await.unwrap();
    guardian.signal(stuck.pid, Signal::SIGKILL).await.unwrap();
    let mut stuck = stuck;
    assert_eq!(stuck.wait().await.how, "SIGKILL");
    assert!(guardian.signal(stuck.pid, Signal::SIGTERM).await.is_err(), "it is not there any more");
    let missing = Spawn { program: "/nonexistent/server".into(), log: folder.join("log"), ..Spawn::default() };
    let error = guardian.spawn(missing).await.unwrap_err();
    assert!(format!("{error:#}").contains("/nonexistent/server"), "{error:#}");
    guardian.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_servers_serve() {
    let guardian = Guardian::start(Path::new(PUSHLAB)).await.unwrap();
    if Service::Nats.find().is_some() {
        let nats = services::nats(&guardian, &[]).await.unwrap();
        let error = services::nats_at(&guardian, nats.port, services::free_port().unwrap(), &[]).await.unwrap_err();
        assert!(format!("{error:#}").contains("in use"), "{error:#}");
    }
    if Service::MariaDb.find().is_some() {
        let database = services::mariadb(&guardian, &[]).await.unwrap();
        assert!(database.url.starts_with("mysql://root@127.0.0.1:"));
    }
    for edge in [Edge::NginxLeastConn, Edge::HaproxyLeastconn] {
        if edge.service().unwrap().find().is_none() {
            continue;
        }
        // Two pods of straw that answer every request with their name.
        let (one, two) = (straw("one").await, straw("two").await);
        let pods = vec![("pod-1".to_owned(), one.clone())];
        let running = RunningEdge::start(&guardian, &EdgeConfig::new(edge), &pods, None, &[]).await.unwrap().unwrap();
        let ask = || async { reqwest::get(&running.server.url).await.unwrap().text().await.unwrap() };
        assert_eq!(ask().await, "one");
        let both = vec![("pod-1".to_owned(), one), ("pod-2".to_owned(), two)];
        running.set_pods(&guardian, &both).await.unwrap();
        let begun = Instant::now();
        while ask().await != "two" {
            assert!(begun.elapsed() < PATIENCE, "{edge} never chose the pod that was added");
        }
        running.stop(&guardian).await;
    }
    guardian.end().await;
    assert!(!guardian.folder().exists());
}

/// A server that answers every request with one word and closes.
async fn straw(name: &'static str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request).await;
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{name}", name.len());
                let _ = stream.write_all(head.as_bytes()).await;
            });
        }
    });
    address
}
