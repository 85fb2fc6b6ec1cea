//! What the generator exports while it runs, held against the ledger of its run file and against the pod's own histogram.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use pushlab::domain::Arm;
use pushlab::result::{file, summary};

use crate::pod_process::PodProcess;

/// The generator, ended when dropped.
struct Generator {
    child: Child,
    metrics: String,
}

impl Drop for Generator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Generator {
    fn start(arm: Arm, url: &str, out: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pushlab"))
            .args(["load", "--base-url", url, "--arm", arm.name(), "--viewers", "20", "--likers", "4", "--posts", "2"])
            .args(["--rate", "100", "--warmup", "0s", "--measure", "2s", "--cooldown", "0s", "--progress", "none"])
            .args(["--metrics-listen", "127.0.0.1:0", "--metrics-linger", "60s", "--out", out])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = lines.find_map(|line| line.unwrap().strip_prefix("load: metrics at ").map(str::to_owned));
        // What else it says has to go somewhere.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, metrics: said.expect("where the metrics are") }
    }
}

/// Buckets of one histogram as (upper bound in µs, how many up to it), the last one +Inf.
fn buckets(text: &str, name: &str, label: &str) -> Vec<(f64, u64)> {
    let of = |line: &str| {
        line.contains(label).then_some(())?;
        let le = line.strip_prefix(name)?.strip_prefix("_bucket{")?.split("le=\"").nth(1)?.split('"').next()?;
        Some((le.parse::<f64>().unwrap() * 1e6, line.rsplit_once(' ')?.1.parse().unwrap()))
    };
    text.lines().filter_map(of).collect()
}

/// In which bucket this share of the samples is reached, and its upper bound in µs.
fn reached(buckets: &[(f64, u64)], quantile: f64) -> (usize, f64) {
    let wanted = buckets.last().unwrap().1 as f64 * quantile;
    let place = buckets.iter().position(|(_, seen)| *seen as f64 >= wanted).unwrap();
    (place, buckets[place].0)
}

/// As a run's summary keeps it.
fn histogram(hdr: &str) -> Histogram<u64> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(hdr).unwrap();
    Deserializer::new().deserialize(&mut &bytes[..]).unwrap()
}

async fn text(url: &str) -> String {
    reqwest::get(url).await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exported_histograms_are_the_ledgers_and_the_pods_lie_below() {
    let folder = tempfile::tempdir().unwrap();
    for arm in [Arm::SsePost, Arm::StompSend] {
        let pod = PodProcess::start(&[]);
        let path = folder.path().join(format!("{arm}.run.gz"));
        let generator = Generator::start(arm, &pod.url(""), path.to_str().unwrap());
        let deadline = Instant::now() + Duration::from_secs(40);
        let run = loop {
            match file::read(&path) {
                Ok(run) => break run,
                Err(error) => assert!(Instant::now() < deadline, "{arm}: no run file: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let summary = summary::summarize("test", &run);
        assert_eq!(summary.account.violations, Vec::<String>::new());
        let exported = text(&generator.metrics).await;
        let label = format!("transport=\"{}\"", arm.transport().label());
        assert!(exported.contains(&format!("pushlab_load_viewers{{{label}}} ")), "{exported}");
        assert!(exported.contains(&format!("pushlab_load_likes_total{{result=\"ok\"}} {}\n", summary.account.ok)));
        let ledgers = [("due_to_view", &summary.due_to_arrival), ("commit_to_view", &summary.commit_to_arrival)];
        for (name, ledger) in ledgers {
            let ledger = histogram(&ledger.hdr);
            let buckets = buckets(&exported, &format!("pushlab_load_{name}_seconds"), &label);
            assert!(ledger.len() > 1_000);
            assert_eq!(buckets.last().unwrap().1, ledger.len(), "{arm} {name}: as many samples");
            for quantile in [0.5, 0.9, 0.99] {
                let wanted = ledger.value_at_quantile(quantile) as f64;
                let place = buckets.iter().position(|(bound, _)| wanted <= *bound).unwrap();
                let (found, bound) = reached(&buckets, quantile);
                println!("{arm} {name} p{}: ledger {wanted} µs, exported ≤ {bound} µs", quantile * 100.0);
                assert!(found.abs_diff(place) <= 1, "{arm} {name} {quantile}: {wanted} µs, exported ≤ {bound} µs");
            }
        }
        // Stamped before the write and after the kernel's receipt: whatever lies between is edge and kernel.
        let pods = text(&format!("http://{}/metrics", pod.admin)).await;
        let pods = buckets(&pods, "pushlab_delivery_latency_seconds", &label);
        let (_, below) = reached(&pods, 0.99);
        let above = histogram(&summary.commit_to_arrival.hdr).value_at_quantile(0.99) as f64;
        let less = pods.iter().rev().find(|(bound, _)| *bound < below).map_or(0.0, |(bound, _)| *bound);
        println!("{arm} p99: commit → write in ({less}, {below}] µs, commit → arrival {above} µs");
        assert!(less <= above, "{arm}: the pod's p99 is above {less} µs, the viewers' {above} µs");
    }
}
