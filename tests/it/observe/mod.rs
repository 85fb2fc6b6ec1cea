//! `compare --observe`: a Prometheus beside the local stack, what a report keeps of it, and every query there is.

mod expressions;

use std::path::Path;
use std::process::{Command, Output};

use crate::compare::said;

const PUSHLAB: &str = env!("CARGO_BIN_EXE_pushlab");

const PLAN: &str = r#"
name = "small"
phases = { warmup = "1s", measure = "5s", cooldown = "500ms" }
[[cells]]
question = "Q1"
scenario = "latency"
arm = ["sse-post"]
edge = ["nginx-least-conn"]
pods = [2]
rate = [60]
viewers = [4]
"#;

fn pushlab(folder: &Path, args: &[&str]) -> Output {
    Command::new(PUSHLAB).args(args).current_dir(folder).output().unwrap()
}

#[test]
fn what_prometheus_saw_is_kept_and_rendered_again_without_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plan.toml"), PLAN).unwrap();
    let args = ["compare", "--stack", "local", "--observe", "--plan", "plan.toml", "--out", "out"];
    let output = pushlab(folder.path(), &args);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("prometheus: http://127.0.0.1:"), "{text}");

    let report = folder.path().join("out/report");
    let read = |name: &str| std::fs::read_to_string(report.join(name)).unwrap();
    let (page, markdown) = (read("index.html"), read("report.md"));
    assert!(page.contains("<h2 id=\"prometheus\">") && page.contains("Pushlab: Pods: Streams by pod"), "{markdown}");
    for row in ["ledger, commit → arrival", "pods' histogram, commit → socket write", "difference: edge and kernel"]
    {
        assert!(markdown.contains(row), "{row} not in\n{markdown}");
    }
    // A generator that offers no metrics is told as missing.
    let generator = markdown.contains("generator's histogram, the same stamps | ");
    assert!(generator != markdown.contains("No sample of pushlab_load_commit_to_view_seconds"), "{markdown}");
    assert!(!generator || markdown.contains("agree within one bucket at "), "{markdown}");

    std::fs::remove_dir_all(&report).unwrap();
    let again = pushlab(folder.path(), &["report", "--open-nothing", "out"]);
    assert!(again.status.success(), "{}", said(&again));
    assert!(read("index.html") == page && read("report.md") == markdown, "other bytes");
}

#[test]
fn what_it_needs_is_said_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("plan.toml"), PLAN).unwrap();
    for (stack, needed) in
        [("embedded", "--observe watches the local stack"), ("local", "prometheus is not installed; do: sudo apt-get")]
    {
        let mut command = Command::new(PUSHLAB);
        command.args(["compare", "--stack", stack, "--observe", "--plan", "plan.toml", "--out", "out"]);
        let output = command.env("PUSHLAB_PROMETHEUS", "/nowhere").current_dir(folder.path()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(needed) && error.trim().lines().count() == 1, "{error}");
        assert!(!folder.path().join("out").exists());
    }
}
