//! `compare` as a person runs it: a small plan ends in a report, is resumed, and leaves nothing behind however it ends.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pushlab::compare::stack::guardian::descendants;

use crate::pod_process::PATIENCE;

const PUSHLAB: &str = env!("CARGO_BIN_EXE_pushlab");

const PLAN: &str = r#"
name = "small"
phases = { warmup = "200ms", measure = "2s", cooldown = "200ms" }
[[cells]]
question = "Q1"
scenario = "latency"
rate = [10]
viewers = [5]
"#;

/// A cluster that is not there.
const KUBECONFIG: &str = r"
apiVersion: v1
kind: Config
current-context: lab
clusters: [{name: lab, cluster: {server: 'http://127.0.0.1:1'}}]
users: [{name: lab, user: {token: t}}]
contexts: [{name: lab, context: {cluster: lab, user: lab, namespace: lab}}]
";

fn compare(folder: &Path, args: &[&str]) -> Command {
    std::fs::write(folder.join("plan.toml"), PLAN).unwrap();
    let mut command = Command::new(PUSHLAB);
    command.args(["compare", "--plan", "plan.toml", "--out", "out"]).args(args).current_dir(folder);
    command
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_small_plan_ends_in_a_report_and_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let output = compare(folder.path(), &["--stack", "embedded"]).output().unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("stack embedded: "), "{text}");
    assert!(text.contains("plan small: 3 cells, about "), "{text}");
    assert!(text.contains("ledger: every version is accounted for in all 3 runs"), "{text}");
    for file in ["plan.toml", "environment.json", "report/index.html", "report/results.json"] {
        assert!(folder.path().join("out").join(file).is_file(), "{file}");
    }
    let one = std::fs::read_dir(folder.path().join("out/cells")).unwrap().next().unwrap().unwrap();
    std::fs::remove_file(one.path()).unwrap();
    let text = said(&compare(folder.path(), &["--stack", "embedded"]).output().unwrap());
    assert!(text.contains("2 cells were there from before"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path().join("out/cells")).unwrap().count(), 3);
}

#[test]
fn nothing_is_left_when_it_is_killed_in_mid_run() {
    let (folder, temp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut child = compare(folder.path(), &[]).env("TMPDIR", temp.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("[1/3]")), "no cell was finished");
    let pid = i32::try_from(child.id()).unwrap();
    let below = descendants(pid);
    assert!(below.len() >= 2, "guardian and pods: {below:?}");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    while below.iter().any(|pid| kill(Pid::from_raw(*pid), None).is_ok()) || temp.path().read_dir().unwrap().count() > 0
    {
        assert!(begun.elapsed() < PATIENCE, "left: {below:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn every_plan_shows_its_cells_without_running_them_also_where_nothing_is_installed() {
    let folder = tempfile::tempdir().unwrap();
    for (plan, questions) in [
        ("quick", &["q1-"][..]),
        ("seed", &["q1-"]),
        ("full", &["q1-", "q2-", "q4-", "q12-", "q13-"]),
        ("writes", &["q10-"]),
        ("faults", &["q12-"]),
    ] {
        let mut command = Command::new(PUSHLAB);
        command.args(["compare", "--plan", plan, "--dry-run", "--stack", "local"]).current_dir(folder.path());
        let text = said(&command.output().unwrap());
        for question in questions {
            assert!(text.contains(question), "{plan} has no {question}: {text}");
        }
        let mut command = Command::new(PUSHLAB);
        command.args(["compare", "--plan", plan, "--dry-run"]).current_dir(folder.path()).env("PATH", "/nowhere");
        let output = command.env_remove("PUSHLAB_NATS_SERVER").env("HOME", "/nowhere").output().unwrap();
        assert!(output.status.success(), "{plan}: {}", said(&output));
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "nothing was run");
}

#[test]
fn what_cannot_be_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plan.toml"), PLAN).unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, KUBECONFIG).unwrap();
    let bare = Command::new(PUSHLAB)
        .args(["compare", "--stack", "kubernetes"])
        .env("KUBECONFIG", "/nowhere")
        .output()
        .unwrap();
    let error = said(&bare);
    assert!(error.contains("no usable kubeconfig in /nowhere") && error.contains("kind create cluster"), "{error}");
    for (args, needed) in [
        (&["--plan", "no.toml"][..], "cannot read the plan no.toml"),
        (&["--question", "Q9"], "it has Q1"),
        (&["--stack", "remote"], "needs --base-url"),
        (&["--stack", "remote", "--base-url", "http://127.0.0.1:1"], "http://127.0.0.1:1 does not answer"),
        (&["--out", "/proc/nowhere"], "give another folder by --out"),
        (&["--stack", "kubernetes"], "the API server cannot be reached"),
        (&["--stack", "kubernetes", "--context", "prod"], "the kubeconfig has no context prod; it has lab"),
    ] {
        let mut command = Command::new(PUSHLAB);
        command.arg("compare").current_dir(folder.path()).args(args).env("KUBECONFIG", &kubeconfig);
        if !args.contains(&"--plan") {
            command.args(["--plan", "plan.toml"]);
        }
        if !args.contains(&"--out") {
            command.args(["--out", "out"]);
        }
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.contains(needed) && error.trim().lines().count() == 1, "{args:?}: {error}");
    }
}
