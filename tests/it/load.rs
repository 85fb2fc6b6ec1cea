//! The generator against a real pod, in its three arms, and `check` on what it left behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use pushlab::domain::Arm;
use pushlab::result::{file, ledger};

use crate::proxy::Proxy;

/// A pod with SQLite and a broker of its own, ended when dropped.
struct Pod {
    child: Child,
    listen: String,
    admin: String,
}

impl Pod {
    fn start(folder: &Path, flags: &[&str]) -> Self {
        pushlab::serve::tls::provide();
        let database = format!("sqlite:{}", folder.join("likes.db").display());
        let mut child = Command::new(env!("CARGO_BIN_EXE_pushlab"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--nats-url", "local"])
            .args(["--database-url", &database])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let url = |field: &str| format!("http://{}", said[field].as_str().unwrap());
        Self { child, listen: url("listen"), admin: url("admin") }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pushlab(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pushlab")).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[test]
fn every_arm_leaves_a_run_whose_ledger_closes_and_check_sees_it_broken() {
    let folder = tempfile::tempdir().unwrap();
    let pod = Pod::start(folder.path(), &[]);
    for arm in Arm::ALL {
        let path = folder.path().join(format!("{arm}.run.gz"));
        let out = path.to_str().unwrap();
        let (code, text) = pushlab(&[
            "load",
            "--base-url",
            &pod.listen,
            "--admin-url",
            &pod.admin,
            "--arm",
            arm.name(),
            "--viewers",
            "7",
            "--likers",
            "5",
            "--posts",
            "2",
            "--rate",
            "60",
            "--warmup",
            "200ms",
            "--measure",
            "1s",
            "--cooldown",
            "200ms",
            "--slow-readers",
            "1",
            "--progress",
            "none",
            "--out",
            out,
        ]);
        assert_eq!(code, Some(0), "{arm}: {text}");
        let phases: Vec<_> = text.lines().filter_map(|line| line.split('"').nth(3)).collect();
        assert_eq!(phases, ["connected", "warmup", "measure", "cooldown", "done"], "{text}");

        let mut run = file::read(&path).unwrap();
        let account = ledger::account(&run);
        assert_eq!(account.violations, Vec::<String>::new());
        assert_eq!((account.counters_agree, account.live_viewers, account.on_final), (Some(true), 8, 8));
        assert!(account.ok > 40 && account.version_delta == account.ok, "{account:?}");
        assert!(run.header.generator.kernel_stamps);
        assert_eq!(pushlab(&["check", out]).0, Some(0));

        run.arrivals.version.pop();
        run.arrivals.session.pop();
        run.arrivals.at_us.pop();
        file::write(&path, &run).unwrap();
        let (code, text) = pushlab(&["check", out]);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("VIOLATION"), "{text}");
    }
}

impl Pod {
    /// A metric, summed over its series that contain `labels`.
    async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.admin)).await.unwrap().text().await.unwrap();
        let series = text.lines().filter(|line| line.starts_with(name) && line.contains(labels));
        series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }
}

/// A run whose viewers are all cut off twice.
async fn cut(arm: Arm, flags: &[&str]) -> (Pod, pushlab::result::summary::Account) {
    let folder = tempfile::tempdir().unwrap();
    let pod = Pod::start(folder.path(), flags);
    let port = pod.listen.rsplit(':').next().unwrap().parse().unwrap();
    let proxy = Proxy::start(port).await;
    let path = folder.path().join("run.gz");
    let mut load = tokio::process::Command::new(env!("CARGO_BIN_EXE_pushlab"));
    load.args(["load", "--base-url", &pod.listen, "--stream-url", &proxy.url(), "--admin-url", &pod.admin]);
    load.args(["--arm", arm.name(), "--viewers", "7", "--likers", "5", "--posts", "2", "--rate", "60"]);
    load.args([
        "--warmup",
        "200ms",
        "--measure",
        "2s",
        "--cooldown",
        "200ms",
        "--slow-readers",
        "1",
        "--progress",
        "none",
    ]);
    load.arg("--out").arg(&path).kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    let load = load.spawn().unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while pod.metric("pushlab_connections{", arm.transport().label()).await < 7.5 {
        assert!(tokio::time::Instant::now() < deadline, "the viewers do not come");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for _ in 0..2 {
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        proxy.cut();
    }
    let output = load.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arm} {flags:?}: {text}");
    let account = ledger::account(&file::read(&path).unwrap());
    assert_eq!(account.violations, Vec::<String>::new(), "{arm} {flags:?}");
    assert_eq!((account.counters_agree, account.live_viewers, account.on_final), (Some(true), 8, 8), "{arm} {flags:?}");
    (pod, account)
}

#[tokio::test(flavor = "multi_thread")]
async fn viewers_that_were_cut_off_come_back_and_the_ledger_closes_under_every_policy() {
    let replay = ["--resume", "replay"];
    let (sse, stomp) = tokio::join!(cut(Arm::SsePost, &replay), cut(Arm::StompPost, &replay));
    for (pod, account) in [sse, stomp] {
        assert!(pod.metric("pushlab_resumes_total", "replayed").await > 0.5);
        assert_eq!(account.snapshot, 0, "what was missed came one by one");
    }
    let (snapshot, relay) = tokio::join!(cut(Arm::SsePost, &[]), cut(Arm::StompPost, &["--fanout", "relay"]));
    for (pod, account) in [snapshot, relay] {
        assert!(pod.metric("pushlab_resumes_total", "behind").await > 0.5);
        assert!(account.snapshot > 0);
    }
    let (oldest, disconnect) =
        (["--mailbox", "drop-oldest", "--mailbox-depth", "4"], ["--mailbox", "disconnect", "--flush", "5ms"]);
    tokio::join!(cut(Arm::StompPost, &oldest), cut(Arm::SsePost, &disconnect));
}

#[test]
fn what_cannot_run_is_said_in_one_line() {
    for (args, hint) in [
        (["--base-url", "http://127.0.0.1:1"], "is the service running?"),
        (["--base-url", "ftp://here"], "use http://"),
    ] {
        let (code, text) = pushlab(&["load", args[0], args[1]]);
        assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.contains(hint), "{text}");
    }
}
