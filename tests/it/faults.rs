//! Faults under load with the ledger running, as `compare` does them: real servers, short windows.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use pushlab::result::{RunResult, file, ledger};

const HEAD: &str = "name = \"short\"\nphases = { warmup = \"200ms\", measure = \"6s\", cooldown = \"200ms\" }\n";

/// One cell of a plan.
fn cell(more: &str) -> String {
    format!(
        "[[cells]]\nquestion = \"Q12\"\nscenario = \"faults\"\nedge = [\"nginx-least-conn\"]\nrate = [100]\nviewers = [30]\n\
         heartbeat = \"1s\"\nhold = \"1s\"\n{more}\n"
    )
}

/// Runs `compare` with these cells; what it said, and each run by its fault.
fn compare(folder: &Path, cells: &[String]) -> (String, BTreeMap<String, RunResult>) {
    std::fs::write(folder.join("plan.toml"), HEAD.to_owned() + &cells.concat()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pushlab"));
    command.args(["compare", "--stack", "local", "--plan", "plan.toml", "--out", "out"]).current_dir(folder);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let files = std::fs::read_dir(folder.join("out/cells")).unwrap();
    let runs = files.map(|entry| file::read(&entry.unwrap().path()).unwrap());
    let fault = |run: &RunResult| run.header.cell.as_ref().unwrap().levels["fault"].clone();
    (said, runs.map(|run| (fault(&run), run)).collect())
}

fn figure(run: &RunResult, name: &str) -> f64 {
    run.header.observed.as_ref().unwrap().figures[name]
}

/// Nothing was lost, nothing counted twice, and the fault was felt.
fn sound(run: &RunResult, said: &str) {
    let account = ledger::account(run);
    assert_eq!(account.violations, Vec::<String>::new(), "{said}");
    assert_eq!((account.live_viewers, account.on_final), (30, 30), "{said}");
    assert!(account.ok > 300, "{account:?}");
    assert_eq!((account.unknown, account.version_delta), (0, account.ok), "each like counted once");
    assert!(figure(run, "viewers_hit") > 0.0);
    let problems = &run.header.generator.problems;
    assert!(!problems.iter().any(|problem| problem.contains("did not fire")), "{problems:?}");
}

#[test]
fn a_drained_pod_fails_no_like_and_a_broker_that_was_killed_loses_no_value() {
    let folder = tempfile::tempdir().unwrap();
    let (said, runs) = compare(
        folder.path(),
        &[
            cell("fault = [\"pod-term\"]\narm = [\"stomp-post\"]"),
            cell("fault = [\"nats-restart\"]\narm = [\"sse-post\"]\nanti_entropy = [\"off\"]"),
        ],
    );
    let drained = &runs["pod-term"];
    sound(drained, &said);
    assert_eq!((figure(drained, "likes_failed"), drained.header.generator.retried), (0.0, 0), "zero failed POSTs");
    assert!(figure(drained, "viewers_cut") > 0.0, "its sessions were ended and came back");

    let restarted = &runs["nats-restart"];
    sound(restarted, &said);
    assert_eq!(figure(restarted, "viewers_cut"), 0.0, "a viewer's connection does not hang on the broker");
    let markers = &restarted.header.observed.as_ref().unwrap().markers;
    let told: Vec<_> = markers.iter().map(|marker| (marker.label.as_str(), marker.recovery)).collect();
    assert_eq!(told, [("NATS killed", false), ("NATS started again", true)]);

    let report = std::fs::read_to_string(folder.path().join("out/report/report.md")).unwrap();
    assert!(
        report.contains("| NATS killed and started again after 1s · SSE+POST · anti-entropy off · heartbeat 1s |"),
        "{report}"
    );
}
