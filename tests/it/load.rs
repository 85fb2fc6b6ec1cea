//! The generator against a real pod, in its three arms, and `check` on what it left behind.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use pushlab::domain::Arm;
use pushlab::result::{file, ledger};

/// A pod with SQLite and a broker of its own, ended when dropped.
struct Pod {
    child: Child,
    listen: String,
    admin: String,
}

impl Pod {
    fn start(folder: &Path) -> Self {
        let database = format!("sqlite:{}", folder.join("likes.db").display());
        let mut child = Command::new(env!("CARGO_BIN_EXE_pushlab"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--nats-url", "local"])
            .args(["--database-url", &database])
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
    let pod = Pod::start(folder.path());
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
