//! One run made by several generators, as `compare --stack kubernetes` makes it: held together by their gates, merged, and
//! no different from a run by one.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pushlab::compare::conduct::{Moment, conduct};
use pushlab::compare::plan::Phases;
use pushlab::domain::Arm;
use pushlab::load::{differences, scrape_all};
use pushlab::result::{RunResult, file, ledger};
use tokio::sync::mpsc;

use crate::pod_process::PodProcess;

/// A generator with a control port, killed when dropped.
struct Part {
    child: Child,
    control: String,
}

impl Part {
    fn start(pod: &PodProcess, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pushlab"))
            .args(["load", "--base-url", &pod.url(""), "--progress", "none", "--warmup", "200ms", "--measure", "1s"])
            .args(["--cooldown", "200ms", "--viewers", "7", "--likers", "5", "--rate", "60"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        let control = format!("http://{}", said["listen"].as_str().unwrap());
        std::thread::spawn(move || lines.count()); // nobody may stop listening: its phases go there
        Self { child, control }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PHASES: Phases = Phases {
    warmup: Duration::from_millis(200),
    measure: Duration::from_secs(1),
    cooldown: Duration::from_millis(200),
};

/// When likes were due, from the start.
fn due(run: &RunResult) -> Vec<(u32, u32)> {
    let start = u32::try_from(run.header.warmup_end_us).unwrap() - 200_000;
    run.likes.due_us.iter().zip(&run.likes.post).map(|(at, post)| (at - start, *post)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn several_generators_make_the_run_of_one() {
    let pod = PodProcess::start(&[]);
    let posts = [pod.post().await, pod.post().await].map(|id| id.to_string()).join(",");
    let folder = tempfile::tempdir().unwrap();
    for arm in [Arm::SsePost, Arm::StompSend] {
        let client = reqwest::Client::new();
        let admin = [format!("http://{}", pod.admin)];
        let before = scrape_all(&client, &admin).await;
        let parts: Vec<_> = (1..=3)
            .map(|part| {
                let (out, name) = (folder.path().join(format!("{part}.run.gz")), format!("{part}/3"));
                let args = ["--arm", arm.name(), "--post-ids", &posts, "--out", out.to_str().unwrap(), "--part", &name];
                Part::start(&pod, &[&args[..], &["--control", "127.0.0.1:0"]].concat())
            })
            .collect();
        let urls = parts.iter().map(|part| part.control.clone()).collect();
        let (sender, mut moments) = mpsc::channel(4);
        let run = tokio::spawn(conduct(urls, PHASES, Duration::from_secs(20), sender, async || Ok(())));
        let (mut seen, mut counters) = (Vec::new(), Vec::new());
        while let Some(moment) = moments.recv().await {
            seen.push(format!("{moment:?}"));
            if let Moment::Converged(read) = moment {
                counters = differences(&admin, &before, scrape_all(&client, &admin).await);
                read.send(()).unwrap();
            }
        }
        assert!(seen.len() == 3 && seen[0] == "Measure" && seen[1] == "Cooldown", "{seen:?}");
        let mut run = run.await.unwrap().unwrap().run;
        run.header.pods = counters;
        assert_eq!(run.header.generator.problems, Vec::<String>::new());
        let account = ledger::account(&run);
        assert_eq!(account.violations, Vec::<String>::new(), "{arm}");
        assert_eq!((account.counters_agree, account.live_viewers, account.on_final), (Some(true), 7, 7));

        let out = folder.path().join("whole.run.gz");
        let whole = Part::start(
            &pod,
            &["--arm", arm.name(), "--posts", "2", "--out", out.to_str().unwrap(), "--control", "127.0.0.1:0"],
        );
        let (sender, mut moments) = mpsc::channel(4);
        let one = tokio::spawn(conduct(
            vec![whole.control.clone()],
            PHASES,
            Duration::from_secs(20),
            sender,
            async || Ok(()),
        ));
        while moments.recv().await.is_some() {}
        let one = one.await.unwrap().unwrap().run;
        assert_eq!(due(&run), due(&one), "{arm}: the parts' likes are the whole's");
        assert_eq!(file::read(&out).unwrap().likes, one.likes);
    }
}

#[tokio::test]
async fn a_part_that_ended_is_told_with_its_reason() {
    let (sender, _moments) = mpsc::channel(4);
    let gone = vec!["http://127.0.0.1:9".to_owned()];
    let run = conduct(gone, PHASES, Duration::from_secs(20), sender, async || {
        anyhow::bail!("exit 2; its log ends: no such host")
    });
    assert!(run.await.unwrap_err().to_string().contains("no such host"));
}
