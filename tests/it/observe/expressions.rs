//! Every PromQL expression of every dashboard and rule, asked of a Prometheus that watched real load and real faults: none
//! is refused, none finds nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pushlab::compare::faults::{Fault, Target};
use pushlab::compare::observe::RULES;
use pushlab::compare::observe::dashboard::{Dashboard, Window, substitute};
use pushlab::compare::observe::prometheus::Observer;
use pushlab::compare::plan::{Plan, Planned};
use pushlab::compare::stack::guardian::Spawn;
use pushlab::compare::stack::processes::{Guardian, Process};
use pushlab::compare::stack::{Cpus, Deployment, Kind, Stack, remote, services};
use serde_json::{Value, json};

use super::PUSHLAB;

/// Dashboards that this Prometheus cannot fill, and why.
const LEFT_OUT: [(&str, &str); 1] =
    [("k6.json", "k6's native histograms come by remote write and need Prometheus 3; the cluster's test asks them")];

/// What only a fault fills that is not provoked here, and which: part of the expression, the fault.
const NEEDS: [(&str, &str); 1] = [(
    "unless sum by (namespace, transport) (increase(pushlab_canary_total[5m]))",
    "a canary that stops for five minutes",
)];

/// A plan of one cell, for its defaults.
const CELL: &str = r#"
name = "queries"
phases = { warmup = "1s", measure = "1s", cooldown = "1s" }
[[cells]]
question = "Q1"
scenario = "latency"
arm = ["sse-post"]
pods = [PODS]
edge = ["EDGE"]
pod_flags = ["FLAGS"]
heartbeat = "1s"
"#;

fn planned(edge: &str, pods: u32, flags: &str) -> Planned {
    let text = CELL.replace("PODS", &pods.to_string()).replace("EDGE", edge).replace("FLAGS", flags);
    Plan::parse(&text).unwrap().expand(None).remove(0)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

async fn start() -> Stack {
    pushlab::serve::tls::provide();
    let guardian = Guardian::start(Path::new(PUSHLAB)).await.unwrap();
    let (nats, database) = tokio::try_join!(services::nats(&guardian, &[]), services::mariadb(&guardian, &[])).unwrap();
    let (nats, database, remote) = (Some(nats), Some(database), remote::Urls::default());
    let (cpus, observer, row_holder) = (Cpus::default(), None, None);
    let pushlab = PUSHLAB.into();
    let mut stack = Stack {
        kind: Kind::Local,
        guardian,
        pushlab,
        cpus,
        nats,
        database,
        remote,
        observer,
        row_holder,
        cluster: None,
    };
    stack.observer = Some(Observer::start(&stack, &RULES).await.unwrap());
    stack
}

/// The generator over one arm; `seconds` of likes on one post.
async fn load(stack: &Stack, deployment: &Deployment, arm: &str, seconds: u32, more: &[&str]) -> Process {
    let out = stack.guardian.folder().join(format!("{arm}.run.gz")).display().to_string();
    let (base, measure) = (deployment.base_urls().join(","), format!("{seconds}s"));
    let mut args = vec!["load", "--base-url", &base, "--arm", arm, "--viewers", "6", "--likers", "40", "--rate", "60"];
    args.extend(["--warmup", "0s", "--measure", &measure, "--cooldown", "0s", "--heartbeat", "1s", "--out", &out]);
    args.extend(["--progress", "none", "--idempotent"]);
    args.extend(more);
    let log = stack.guardian.folder().join(format!("load-{arm}.log"));
    let args = args.into_iter().map(String::from).collect();
    stack.guardian.spawn(Spawn { program: PUSHLAB.into(), args, log, ..Spawn::default() }).await.unwrap()
}

/// Likes by hand, each a second after the other, and viewers that are not to be served.
async fn by_hand(url: &str, likes: u32) {
    let http = reqwest::Client::new();
    let made = http.post(format!("{url}/posts")).json(&json!({"title": "by hand"})).send().await.unwrap();
    let made: Value = made.json().await.unwrap();
    let post = made.get("id").or(made.get("postId")).unwrap().clone();
    let stream = || {
        let ask = http.get(format!("{url}/posts/{post}/likes")).header("accept", "text/event-stream");
        async move { ask.send().await.unwrap() }
    };
    let _viewers = (stream().await, stream().await, stream().await);
    for _ in 0..likes {
        let answer = http.post(format!("{url}/posts/{post}/likes")).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        tokio::time::sleep(Duration::from_secs(1)).await; // a scrape lies between two likes
    }
}

/// Load over both transports and both edges, a canary, a pod that hangs, a reload, each way to write and to publish.
async fn exercise(stack: &mut Stack) {
    let cell = planned("nginx-least-conn", 2, "");
    let mut deployment = stack.deploy(&cell).await.unwrap();
    let canary = planned("nginx-least-conn", 2, &format!("--canary-period 1s --canary {}", deployment.base_urls()[0]));
    stack.add_pod(&mut deployment, &canary).await.unwrap();
    let metrics = deployment.load_metrics.clone().unwrap();
    let sse = load(stack, &deployment, "sse-post", 20, &["--metrics-listen", &metrics]).await;
    let stomp = load(stack, &deployment, "stomp-send", 20, &[]).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let hung = || Target::Pod("pod-2".into());
    for (fault, seconds) in [(Fault::Hold(hung()), 4), (Fault::Release(hung()), 2), (Fault::ReloadEdge, 3)] {
        fault.inject(stack, &mut deployment, &cell).await.unwrap();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    for mut process in [sse, stomp] {
        let ended = process.wait().await;
        assert!(matches!(ended.code, Some(0 | 3)), "{ended:?}: {}", process.log_tail());
    }
    stack.end(deployment).await;

    for (edge, flags) in [
        ("haproxy-leastconn", "--write event --max-connections 1"),
        ("direct", "--publish outbox --mailbox disconnect"),
    ] {
        let deployment = stack.deploy(&planned_raw(edge, flags)).await.unwrap();
        by_hand(&deployment.base_urls()[0], 5).await;
        stack.end(deployment).await;
    }
}

/// A cell that plans refuse, because its answers carry no version.
fn planned_raw(edge: &str, flags: &str) -> Planned {
    Planned { pod_flags: flags.to_owned(), ..planned(edge, 1, "") }
}

/// Begins the name of an annotation: a mark of something that happens, or does not.
const MARK: &str = "annotation of ";

/// (where, expression) of everything that is asked, variables replaced.
async fn expressions(observer: &Observer, window: Window) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana");
    for file in files(&root.join("dashboards"), "json") {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if LEFT_OUT.iter().any(|(left_out, _)| *left_out == name) {
            continue;
        }
        let dashboard = Dashboard::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let values = dashboard.resolve(&observer.api, window).await.unwrap();
        let panels =
            dashboard.panels.iter().flat_map(|panel| panel.targets.iter().map(move |t| (&panel.title, &t.expression)));
        for (title, expression) in panels {
            all.push((format!("{name}, {title}"), substitute(expression, &values)));
        }
        assert!(!dashboard.annotations.is_empty(), "{name}");
        for (title, expression) in &dashboard.annotations {
            all.push((format!("{MARK}{name}, {title}"), substitute(expression, &values)));
        }
    }
    let rules = observer.api.rules().await.unwrap();
    assert!(rules.len() > 10, "{rules:?}");
    all.extend(rules.into_iter().map(|rule| (format!("rule {}", rule.name), rule.query)));
    all
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> = all.filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    all.sort();
    assert!(!all.is_empty(), "{}", folder.display());
    all
}

/// A comparison drops what is not so; with `bool` it says 0 or 1, so that only a wrong name finds nothing.
fn without_filters(expression: &str) -> String {
    let mut done = expression.to_owned();
    for operator in [" > ", " < ", " == ", " >= ", " <= ", " != "] {
        done = done.replace(operator, &format!("{operator}bool "));
    }
    done.replace("\n", " ")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "1 min: every expression of every dashboard and rule against a real Prometheus that watched load and faults"]
async fn every_expression_finds_something() {
    let began = now();
    let mut stack = start().await;
    exercise(&mut stack).await;
    let window = Window { start: began, end: now(), step: 1.0, scrape: 1.0 };
    let observer = stack.observer.as_ref().unwrap();
    assert_eq!(observer.missing, Vec::<String>::new());
    let (mut wrong, mut asked) = (Vec::new(), 0);
    for (place, expression) in expressions(observer, window).await {
        asked += 1;
        let found = observer.api.range(&without_filters(&expression), window.start, window.end, window.step).await;
        let excused =
            NEEDS.iter().find(|(part, _)| expression.split_whitespace().collect::<Vec<_>>().join(" ").contains(part));
        match (found, excused) {
            (Err(why), _) => wrong.push(format!("{place}: {why:#}\n    {expression}")),
            (Ok(found), excused) => {
                let empty = !found.iter().any(|one| one.points.iter().any(|point| point.1.is_finite()));
                match excused {
                    None if empty && !place.starts_with(MARK) => {
                        wrong.push(format!("{place} finds nothing\n    {expression}"))
                    }
                    Some((_, fault)) if !empty => {
                        wrong.push(format!("{place} is excused by {fault}, and finds something"))
                    }
                    _ => {}
                }
            }
        }
    }
    stack.guardian.end().await;
    assert!(wrong.is_empty(), "{} of {asked} expressions:\n{}", wrong.len(), wrong.join("\n"));
    println!("{asked} expressions, none refused, none empty");
}
