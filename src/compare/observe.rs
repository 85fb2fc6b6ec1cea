//! What is seen from outside while a cell runs: CPU, memory and descriptors from /proc, connections from /metrics, and with
//! `--observe` everything that a Prometheus scrapes.

/// Prometheus' HTTP API.
pub mod api;
/// What Grafana's dashboards ask.
pub mod dashboard;
/// NATS' monitoring as metrics.
pub mod nats;
/// A real Prometheus beside the stack.
pub mod prometheus;
/// What a report keeps of it.
pub mod snapshot;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::stack::Pod;
use super::stack::guardian::descendants;
use crate::domain::unix_micros;
use crate::result::{PodConnections, PodCounters, ProcessUse};

macro_rules! grafana {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/grafana/", $path))
    };
}

/// The dashboards whose panels a report shows: file, text, titles of the panels.
pub const KEY_PANELS: [(&str, &str, &[&str]); 3] = [
    (
        "comparison.json",
        grafana!("dashboards/comparison.json"),
        &[
            "Like → view, p99",
            "Commit → write, p99",
            "Time-outs by kind",
            "Streams closed by reason",
            "Reconnects of the generator's viewers",
            "Deliveries",
        ],
    ),
    (
        "pods.json",
        grafana!("dashboards/pods.json"),
        &["Streams by pod", "Answers scrapes", "Deliveries by pod", "Commit → write by pod, p99"],
    ),
    (
        "write-path.json",
        grafana!("dashboards/write-path.json"),
        &[
            "Likes by result",
            "Wait for the post's row",
            "Transaction",
            "Row locks waited for",
            "Time-outs of the database",
        ],
    ),
];

/// Recording and alert rules that the observer's Prometheus evaluates: file and text.
pub const RULES: [(&str, &str); 1] = [("pushlab.yaml", grafana!("rules/pushlab.yaml"))];

/// Clock ticks per second of /proc: fixed at 100 for user space on every Linux.
const TICKS: f64 = 100.0;

/// CPU used so far, memory and descriptors of a process and everything below it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    user_s: f64,
    system_s: f64,
    rss: u64,
    fds: u32,
}

impl Usage {
    /// Of the process and its descendants (nginx' and MariaDB's workers count as one with their master).
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let mut sum = Self::default();
        for pid in descendants(pid).into_iter().chain([pid]) {
            let Some(one) = Self::of_one(pid) else { continue };
            sum.user_s += one.user_s;
            sum.system_s += one.system_s;
            sum.rss += one.rss;
            sum.fds += one.fds;
        }
        sum
    }

    fn of_one(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok().map(|ticks| ticks / TICKS);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        // Fields 14 and 15 of proc(5), counted from the one after the name, which is field 3.
        Some(Self {
            user_s: ticks(11)?,
            system_s: ticks(12)?,
            rss: rss.unwrap_or(0) * 1_024,
            fds: u32::try_from(fds).ok()?,
        })
    }
}

/// Two samples of named processes: at the window's begin and at its end.
#[derive(Debug, Default)]
pub struct Window {
    begin: BTreeMap<String, Usage>,
}

impl Window {
    /// Samples the begin.
    #[must_use]
    pub fn open(watched: &[(String, i32)]) -> Self {
        Self { begin: watched.iter().map(|(name, pid)| (name.clone(), Usage::of(*pid))).collect() }
    }

    /// Samples the end; a process that died in between is left out, one that was added counts from its start.
    #[must_use]
    pub fn close(&self, watched: &[(String, i32)]) -> Vec<ProcessUse> {
        let uses = watched.iter().filter_map(|(name, pid)| {
            let (begin, end) = (self.begin.get(name).copied().unwrap_or_default(), Usage::of(*pid));
            (end.rss > 0).then(|| ProcessUse {
                name: name.clone(),
                user_s: (end.user_s - begin.user_s).max(0.0),
                system_s: (end.system_s - begin.system_s).max(0.0),
                rss_bytes: end.rss,
                fds: end.fds,
            })
        });
        uses.collect()
    }
}

/// Pod → (Unix time in µs, connections).
type Seen = BTreeMap<String, Vec<(u64, u32)>>;

/// Reads the pods' connection gauges once per second, in Unix µs, until it is stopped. Inputs of its loop: the clock.
#[derive(Debug)]
pub struct Gauges {
    pods: Arc<Mutex<Vec<Pod>>>,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Gauges {
    /// Starts reading.
    #[must_use]
    pub fn start(pods: Vec<Pod>) -> Self {
        let pods = Arc::new(Mutex::new(pods));
        let seen = Arc::new(Mutex::new(Seen::new()));
        let task = tokio::spawn({
            let (pods, seen) = (Arc::clone(&pods), Arc::clone(&seen));
            async move {
                let mut tick = tokio::time::interval(Duration::from_secs(1));
                loop {
                    tick.tick().await;
                    let now = pods.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    for pod in now {
                        let Some(text) = scrape(&pod.admin).await else { continue };
                        let open = sum(&text, "pushlab_connections{");
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
                        seen.entry(pod.name).or_default().push((unix_micros(), open as u32));
                    }
                }
            }
        });
        Self { pods, seen, task }
    }

    /// A pod was added.
    pub fn add(&self, pod: Pod) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).push(pod);
    }

    /// Stops, and gives what was seen relative to `origin_us`.
    #[must_use]
    pub fn stop(self, origin_us: u64) -> Vec<PodConnections> {
        self.task.abort();
        let seen = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let relative = |(at, open): (u64, u32)| Some((at.checked_sub(origin_us)?, open));
        let pods = seen.into_iter();
        pods.map(|(pod, samples)| PodConnections { pod, samples: samples.into_iter().filter_map(relative).collect() })
            .collect()
    }
}

/// The text of a pod's /metrics; none when it does not answer within a second.
pub async fn scrape(admin: &str) -> Option<String> {
    let answer = tokio::time::timeout(Duration::from_secs(1), reqwest::get(format!("http://{admin}/metrics"))).await;
    answer.ok()?.ok()?.text().await.ok()
}

/// Sum of the values of all series whose line begins with `series`.
#[must_use]
pub fn sum(metrics: &str, series: &str) -> f64 {
    let values = metrics.lines().filter(|line| line.starts_with(series));
    values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// A pod's counters since its start, for a pod the generator did not know from the beginning.
pub async fn counters(admin: &str) -> PodCounters {
    let text = scrape(admin).await;
    let metrics = text.as_deref().unwrap_or_default();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole and positive")]
    let all = |series: &str| sum(metrics, series) as u64;
    let skipped = |reason: &str| {
        let lines = metrics.lines().filter(|line| line.contains(reason));
        all_of(lines, "pushlab_skipped_versions_total{")
    };
    let mut other = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("pushlab_") && !line.contains("_bucket{")) {
        if let Some((name, Ok(value))) = line.rsplit_once(' ').map(|(name, value)| (name, value.parse())) {
            other.insert(name.to_owned(), value);
        }
    }
    PodCounters {
        admin_url: format!("http://{admin}"),
        complete: text.is_some(),
        conflated: skipped("reason=\"conflated\""),
        superseded: skipped("reason=\"superseded\""),
        dropped: skipped("reason=\"dropped\""),
        deliveries: all("pushlab_deliveries_total{"),
        socket_writes: all("pushlab_socket_writes_total{"),
        written_bytes: all("pushlab_written_bytes_total{"),
        other,
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole and positive")]
fn all_of<'a>(lines: impl Iterator<Item = &'a str>, series: &str) -> u64 {
    sum(&lines.collect::<Vec<_>>().join("\n"), series) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_uses_cpu_memory_and_descriptors() {
        let me = i32::try_from(std::process::id()).unwrap();
        let watched = [("me".to_owned(), me)];
        let window = Window::open(&watched);
        let begun = std::time::Instant::now();
        while Usage::of(me).user_s - window.begin["me"].user_s < 0.03 {
            std::hint::black_box((0..100_000_u64).sum::<u64>());
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
        let used = &window.close(&watched)[0];
        assert!(used.user_s >= 0.03 && used.rss_bytes > 1_000_000 && used.fds > 2, "{used:?}");
        assert!(window.close(&[("gone".into(), i32::MAX)]).is_empty());
    }

    #[test]
    fn every_key_panel_is_on_its_dashboard() {
        for (name, text, keys) in KEY_PANELS {
            let dashboard = dashboard::Dashboard::parse(text).unwrap();
            for key in keys {
                let drawn = |panel: &dashboard::Panel| panel.title == *key && panel.kind == "timeseries";
                assert!(dashboard.panels.iter().any(drawn), "{name} has no time series {key:?}");
            }
        }
    }

    #[test]
    fn series_are_summed_over_their_labels() {
        let text = "# HELP x\npushlab_connections{transport=\"sse\"} 3\npushlab_connections{transport=\"stomp\"} 4\npushlab_connections_x 9\n";
        assert!((sum(text, "pushlab_connections{") - 7.0).abs() < 1e-9);
    }
}
