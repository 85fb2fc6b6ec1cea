//! Verdicts and pages from made-up results.

use super::model::Results;
use super::render::{SCHEMA, judge_and_render};
use super::sample;
use super::verdict::{Outcome, Verdict, verdicts};
use crate::result::summary::Validity;

fn verdict<'a>(all: &'a [Verdict], claim: &str) -> &'a Verdict {
    all.iter().find(|v| v.claim == claim).unwrap_or_else(|| panic!("no claim {claim}"))
}

/// Writes a page for the eyes when `PUSHLAB_LOOK` names a folder: `PUSHLAB_LOOK=/tmp/look cargo test --lib report::tests`.
fn look(name: &str, html: &str) {
    if let Some(dir) = std::env::var_os("PUSHLAB_LOOK") {
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(std::path::Path::new(&dir).join(name), html).unwrap();
    }
}

#[test]
fn an_effect_is_found_no_effect_is_not_and_a_a_states_the_resolution() {
    let all = verdicts(&sample::local());
    let found = verdict(&all, "arm: sse-post / stomp-post @ edge=nginx-least-conn, posts=1, rate=10, viewers=100");
    assert_eq!(found.outcome, Outcome::Lower, "{found:#?}");
    assert!(found.sentence.starts_with("Commit → arrival p50 is "), "{}", found.sentence);
    assert!(found.sentence.contains("% lower (95 % interval −"), "{}", found.sentence);
    assert!(
        found.sentence.contains(") with SSE+POST than with STOMP+POST, edge nginx-least-conn: "),
        "{}",
        found.sentence
    );
    assert_eq!(found.shared, "1 post, 10 likes/s, 100 viewers");
    assert_eq!(found.command, "pushlab compare --stack local --plan full --question Q1");
    let none = verdict(&all, "arm: stomp-post / stomp-send @ edge=nginx-least-conn, posts=1, rate=10, viewers=100");
    assert_eq!(none.outcome, Outcome::NoDifference, "{none:#?}");
    assert!(none.sentence.contains("no difference shown") && none.sentence.contains("(resolution ± "));
    let same = verdict(&all, "A/A arm: sse-post / sse-post @ edge=direct, posts=1, rate=10, viewers=100");
    assert_eq!(same.outcome, Outcome::Resolution, "{same:#?}");
    assert_eq!(same.p_holm, None, "an A/A claim is not of the family");
}

#[test]
fn a_pair_with_a_bad_member_is_dropped_whole_and_counted() {
    let all = verdicts(&sample::local());
    let hit = verdict(&all, "A/A arm: sse-post / sse-post @ edge=direct, posts=1, rate=10, viewers=100");
    assert_eq!((hit.pairs, hit.planned, hit.invalid), (9, 10, [0, 1]));
    assert!(hit.basis.ends_with("INVALID: 0 of 10 A, 1 of 10 B; 1 pair dropped whole"), "{}", hit.basis);
    for validity in [Validity::Saturated, Validity::WriteBound] {
        let mut results = sample::local();
        results.runs[0].summary.validity = validity;
        let all = verdicts(&results);
        let hit = verdict(&all, "arm: sse-post / stomp-post @ edge=direct, posts=1, rate=10, viewers=100");
        assert_eq!((hit.pairs, hit.invalid), (9, [0, 0]), "{validity:?}");
    }
    let mut results = sample::local();
    results.runs[0].summary.account.violations.push("3 versions lost".into());
    results.runs[1].summary.cell.as_mut().unwrap().offered_over_capacity = Some(0.51);
    let pairs = verdict(&verdicts(&results), "arm: sse-post / stomp-post @ edge=direct, posts=1, rate=10, viewers=100")
        .members
        .clone();
    assert_eq!(pairs[0].dropped.as_deref(), Some("A: the ledger does not close"));
    results.runs[0].summary.account.violations.clear();
    let pairs = verdict(&verdicts(&results), "arm: sse-post / stomp-post @ edge=direct, posts=1, rate=10, viewers=100")
        .members
        .clone();
    assert!(pairs[0].dropped.as_deref().unwrap().starts_with("B ran at 51.0 % of its capacity"), "{pairs:?}");
}

#[test]
fn seven_pairs_give_a_ratio_and_no_verdict() {
    let mut results = sample::local();
    results.runs.retain(|run| run.summary.cell.as_ref().unwrap().pairs.iter().all(|pair| pair.number <= 7));
    let all = verdicts(&results);
    let few = verdict(&all, "arm: sse-post / stomp-post @ edge=nginx-least-conn, posts=1, rate=10, viewers=100");
    assert_eq!((few.outcome, few.pairs), (Outcome::NoVerdict, 7));
    assert!(
        few.sentence.contains("ratio 0.9") && few.sentence.ends_with("no verdict from 7 pairs (it takes 8)."),
        "{few:#?}"
    );
}

#[test]
fn a_difference_smaller_than_a_a_is_not_claimed() {
    let mut results = sample::local();
    for (i, run) in results.runs.iter_mut().enumerate() {
        let pairs = &run.summary.cell.as_ref().unwrap().pairs;
        if pairs.iter().any(|pair| pair.claim.starts_with("A/A") && pair.side == 'b') {
            let p50 = run.summary.commit_to_arrival.p50.as_mut().unwrap();
            *p50 *= if i % 4 == 1 { 1.5 } else { 0.7 };
        }
    }
    let all = verdicts(&results);
    let small = verdict(&all, "arm: sse-post / stomp-post @ edge=nginx-least-conn, posts=1, rate=10, viewers=100");
    assert_eq!(small.outcome, Outcome::NoDifference, "{small:#?}");
    assert!(small.basis.contains("not beyond what A/A runs differ by"), "{}", small.basis);
}

#[test]
fn the_embedded_stack_ranks_no_transports_by_latency() {
    let results = sample::embedded();
    let all = verdicts(&results);
    let claim = verdict(&all, "arm: sse-post / stomp-post @ edge=direct, posts=1, rate=10, viewers=100");
    assert_eq!((claim.outcome, claim.ratio, claim.interval, claim.medians), (Outcome::Withheld, None, None, None));
    assert!(claim.members.is_empty());
    assert_eq!(
        verdict(&all, "A/A arm: sse-post / sse-post @ edge=direct, posts=1, rate=10, viewers=100").outcome,
        Outcome::Resolution
    );
    let (_, page) = judge_and_render(&results).unwrap();
    look("embedded.html", &page.html);
    let body = page.html.split_once("<body>").unwrap().1.trim_start();
    assert!(body.starts_with("<p class=\"first\">Embedded stack: no proxy, broker or row lock: no latency ranking"));
    assert!(
        page.markdown
            .starts_with("**Embedded stack: no proxy, broker or row lock: no latency ranking of transports.**")
    );
}

#[test]
fn rendering_twice_gives_the_same_bytes() {
    let (_, first) = judge_and_render(&sample::local()).unwrap();
    let (_, second) = judge_and_render(&sample::local()).unwrap();
    assert!(first == second);
}

#[test]
fn the_page_needs_nothing_from_outside() {
    let (_, page) = judge_and_render(&sample::local()).unwrap();
    look("local.html", &page.html);
    look("local.md", &page.markdown);
    look("local.json", &page.json);
    for outside in ["<script", "<link", "src=", "@import", "url(", "<img", "<iframe"] {
        assert!(!page.html.contains(outside), "{outside}");
    }
    let links = page.html.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    for link in links {
        assert!(link.starts_with('#') || ["results.json", "report.md"].contains(&link), "{link}");
    }
    assert!(!page.html.contains("#0102"), "a placeholder colour was not replaced");
    assert!(!page.html.contains("NaN") && !page.html.contains("inf\""));
}

#[test]
fn figures_that_may_not_be_compared_are_not_in_the_table() {
    let results = sample::local();
    let groups = super::cells::groups(&results.runs);
    let find =
        |title: &str| groups.iter().find(|group| group.title == title).unwrap_or_else(|| panic!("no {title}")).rows();
    let row = |rows: &[super::cells::Row], label: &str| {
        rows.iter().find(|row| row.label == label).map(|row| row.values[0].text.clone())
    };
    let saturated = find("1000 likes/s · 1000 viewers · edge nginx-round-robin");
    assert_eq!(row(&saturated, "validity").as_deref(), Some("SATURATED"));
    assert_eq!(row(&saturated, "commit → arrival p50"), None);
    assert_eq!(row(&saturated, "conflated").as_deref(), Some("95.6 %"));
    assert!(row(&saturated, "staleness p99").is_some());
    let bound = find("1000 likes/s · 1 viewer · edge nginx-round-robin");
    assert_eq!(row(&bound, "due → arrival p99"), None);
    assert_eq!(row(&bound, "accepted likes/s").as_deref(), Some("807"));
    let mut alone = Results { runs: vec![results.runs[0].clone()], ..Results::default() };
    alone.runs[0].summary.validity = Validity::Invalid;
    let rows = super::cells::groups(&alone.runs)[0].rows();
    assert_eq!(rows.len(), 1, "an INVALID column holds no figure: {rows:?}");
}

#[test]
fn foreign_text_stays_text() {
    let mut results = sample::local();
    results.environment.notes.push("<script>alert(1)</script>".into());
    results.environment.facts.insert("cpu|x".into(), "a|b".into());
    results.runs[60].summary.cell.as_mut().unwrap().levels.insert("edge".into(), "\"><u>".into());
    let (_, page) = judge_and_render(&results).unwrap();
    assert!(!page.html.contains("<script>alert") && !page.html.contains("<u>"));
    assert!(page.markdown.contains("| cpu\\|x | a\\|b |"));
}

#[test]
fn results_json_is_what_its_schema_says() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for results in [sample::local(), sample::embedded()] {
        let (_, page) = judge_and_render(&results).unwrap();
        let json: serde_json::Value = serde_json::from_str(&page.json).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(&json).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        for field in ["verdicts", "runs", "environment", "cells"] {
            let mut broken = json.clone();
            broken.as_object_mut().unwrap().remove(field);
            assert!(!validator.is_valid(&broken), "the schema does not ask for {field}");
        }
        let mut broken = json.clone();
        broken["runs"][0]["validity"] = "FINE".into();
        assert!(!validator.is_valid(&broken));
    }
}

/// A run file as `load` would write it: one viewer, ten likes in the window, each seen `us` after its commit.
fn run_file(dir: &std::path::Path, index: u32, us: u32) {
    use crate::result::{ArrivalColumns, Cell, EventColumns, Header, LikeColumns, RunConfig, RunResult, Session};
    let post = crate::domain::PostId::new(1).unwrap();
    let due: Vec<u32> = (0..10).map(|i| i * 90_000).collect();
    let committed: Vec<u32> = due.iter().map(|due| due + 400).collect();
    let levels = [("arm", "sse-post"), ("edge", "direct")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let id = format!("q1-latency-sse-post-direct-{index}");
    let run = RunResult {
        header: Header {
            format: crate::result::FORMAT,
            cell: Some(Cell {
                index,
                id: id.clone(),
                question: "Q1".into(),
                levels: levels.into(),
                primary_metric: "commit_to_arrival.p50".into(),
                ..Cell::default()
            }),
            config: RunConfig { rate: 10.0, ..RunConfig::default() },
            measure_end_us: 1_000_000,
            cooldown_end_us: 1_000_000,
            posts: vec![post],
            sessions: vec![Session { joined_us: Some(0), ..Session::default() }],
            finals: vec![(10, 10)],
            initial: vec![(0, 0)],
            converged: true,
            ..Header::default()
        },
        likes: LikeColumns {
            sent_us: due.clone(),
            answered_us: committed.clone(),
            post: vec![0; 10],
            version: (1..=10).collect(),
            outcome: vec![0; 10],
            due_us: due,
        },
        arrivals: ArrivalColumns {
            session: vec![0; 10],
            version: (1..=10).collect(),
            at_us: committed.iter().map(|at| at + us).collect(),
        },
        events: EventColumns {
            post: vec![0; 10],
            version: (1..=10).collect(),
            prev: (0..10).collect(),
            likes: (1..=10).collect(),
            committed_us: committed,
        },
    };
    crate::result::file::write(&dir.join(format!("cells/{id}.run.gz")), &run).unwrap();
}

#[test]
fn a_folder_of_run_files_becomes_a_report_and_an_unreadable_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = super::write(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("a folder that `pushlab compare` wrote?"), "{error}");
    let environment = serde_json::to_string(&sample::local().environment).unwrap();
    std::fs::write(dir.path().join("environment.json"), environment).unwrap();
    std::fs::create_dir(dir.path().join("cells")).unwrap();
    assert!(super::write(dir.path()).unwrap_err().to_string().starts_with("no run file in "));
    run_file(dir.path(), 2, 700);
    run_file(dir.path(), 1, 300);
    std::fs::write(dir.path().join("cells/cut.run.gz"), b"\x1f\x8b").unwrap();
    let written = super::write(dir.path()).unwrap();
    assert_eq!(written.runs, 2);
    let json = std::fs::read_to_string(dir.path().join("report/results.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["runs"][0]["cell"]["index"], 1, "in executed order");
    assert_eq!(json["unreadable"].as_array().unwrap().len(), 1);
    let page = std::fs::read_to_string(&written.index).unwrap();
    assert!(page.contains("cut.run.gz"));
    assert!(!page.contains(&dir.path().file_name().unwrap().to_str().unwrap().to_owned()), "no path of this machine");
}

/// The kept samples are real result folders with their reports; `PUSHLAB_BLESS=1` renders them anew.
#[test]
fn kept_samples_render_to_the_same_bytes() {
    let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("samples");
    let Ok(folders) = std::fs::read_dir(samples) else { return };
    for folder in folders.map(|entry| entry.unwrap().path()).filter(|path| path.join("environment.json").exists()) {
        if std::env::var_os("PUSHLAB_BLESS").is_some() {
            super::write(&folder).unwrap();
        }
        let (_, page) = judge_and_render(&Results::read(&folder).unwrap()).unwrap();
        for (name, text) in [("index.html", page.html), ("report.md", page.markdown), ("results.json", page.json)] {
            let kept = std::fs::read_to_string(folder.join("report").join(name)).unwrap();
            assert!(kept == text, "{} differs from what this code renders", folder.join("report").join(name).display());
        }
    }
}
