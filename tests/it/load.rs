//! The generator against a real pod, in its three arms, and `check` on what it left behind.

use std::path::Path;
use std::process::{Command, Stdio};

use pushlab::domain::Arm;
use pushlab::result::{file, ledger};

use crate::pod_process::PodProcess;
use crate::proxy::Proxy;

/// `load` against this pod: seven viewers, a slow one and five likers on two posts, measured for this long.
pub(crate) fn load_args(pod: &PodProcess, arm: Arm, measure: &str, out: &Path) -> Vec<String> {
    let admin = format!("http://{}", pod.admin);
    let (base, arm, out) = (pod.url(""), arm.name(), out.to_str().unwrap());
    let line = format!(
        "load --base-url {base} --admin-url {admin} --arm {arm} --viewers 7 --likers 5 --posts 2 --rate 60 --warmup 200ms \
         --measure {measure} --cooldown 200ms --slow-readers 1 --progress none --out {out}"
    );
    line.split_whitespace().map(String::from).collect()
}

fn pushlab(args: &[impl AsRef<std::ffi::OsStr>]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pushlab")).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[test]
fn every_arm_leaves_a_run_whose_ledger_closes_and_check_sees_it_broken() {
    let folder = tempfile::tempdir().unwrap();
    let pod = PodProcess::start(&[]);
    for arm in Arm::ALL {
        let path = folder.path().join(format!("{arm}.run.gz"));
        let (code, text) = pushlab(&load_args(&pod, arm, "1s", &path));
        assert_eq!(code, Some(0), "{arm}: {text}");
        let phases: Vec<_> = text.lines().filter_map(|line| line.split('"').nth(3)).collect();
        assert_eq!(phases, ["connected", "warmup", "measure", "cooldown", "done"], "{text}");

        let mut run = file::read(&path).unwrap();
        let account = ledger::account(&run);
        assert_eq!(account.violations, Vec::<String>::new());
        assert_eq!((account.counters_agree, account.live_viewers, account.on_final), (Some(true), 8, 8));
        assert!(account.ok > 40 && account.version_delta == account.ok, "{account:?}");
        assert!(run.header.generator.kernel_stamps);
        assert_eq!(pushlab(&["check", path.to_str().unwrap()]).0, Some(0));

        run.arrivals.version.pop();
        run.arrivals.session.pop();
        run.arrivals.at_us.pop();
        file::write(&path, &run).unwrap();
        let (code, text) = pushlab(&["check", path.to_str().unwrap()]);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("VIOLATION"), "{text}");
    }
}

/// A run whose viewers are all cut off twice.
async fn cut(arm: Arm, flags: &[&str]) -> (PodProcess, pushlab::result::summary::Account) {
    let folder = tempfile::tempdir().unwrap();
    let pod = PodProcess::start(flags);
    let proxy = Proxy::start(pod.listen.port()).await;
    let path = folder.path().join("run.gz");
    let mut load = tokio::process::Command::new(env!("CARGO_BIN_EXE_pushlab"));
    load.args(load_args(&pod, arm, "2s", &path)).args(["--stream-url", &proxy.url()]);
    load.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
    let load = load.spawn().unwrap();
    pod.metric_becomes("pushlab_connections", arm.transport().label(), 8.0).await;
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
