//! The figures of one run that reports compare, computed from the run file alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Cell, RunConfig, RunResult};

/// One run in figures. Latencies in µs. Quantiles are absent where the window holds fewer than 10/(1−q) likes.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RunSummary {
    /// The run file's name within the result folder.
    pub file: String,
    /// Its place in the plan.
    pub cell: Option<Cell>,
    /// What was asked for.
    pub config: RunConfig,
    /// May its figures be compared?
    pub validity: Validity,
    /// Why not, in sentences.
    pub reasons: Vec<String>,
    /// Likes in the window: due, ok, failed, unknown.
    pub likes_due: u64,
    /// See `likes_due`.
    pub likes_ok: u64,
    /// See `likes_due`.
    pub likes_failed: u64,
    /// See `likes_due`.
    pub likes_unknown: u64,
    /// Accepted likes per second in the window.
    pub accepted_rate: f64,
    /// due → arrival, over (like, viewer).
    pub due_to_arrival: Quantiles,
    /// commit → arrival, over (event, viewer): primary for transport questions.
    pub commit_to_arrival: Quantiles,
    /// commit → arrival at the last viewer of each event.
    pub commit_to_last: Quantiles,
    /// due → answer of the like itself.
    pub due_to_answer: Quantiles,
    /// Deliveries received per second in the window.
    pub deliveries_per_s: f64,
    /// Updates per socket write, from the pods' counters.
    pub events_per_write: Option<f64>,
    /// Bytes on the wire per delivered update (pods' counters), without TCP/IP headers.
    pub bytes_per_delivery: Option<f64>,
    /// Age of the newest state a viewer had, sampled over viewers and time in the window: p50, p99 in µs (for saturated cells).
    pub staleness_us: Option<[f64; 2]>,
    /// Share of expected versions in the window that were delivered, conflated, superseded.
    pub delivered_share: f64,
    /// See `delivered_share`; with those dropped by a bounded queue.
    pub conflated_share: f64,
    /// See `delivered_share`.
    #[serde(default)]
    pub superseded_share: f64,
    /// The whole system's CPU µs per delivery, and per process.
    pub cpu_us_per_delivery: Option<f64>,
    /// Process → CPU µs per delivery.
    pub cpu_us_by_process: BTreeMap<String, f64>,
    /// The ledger's account of the whole run.
    pub account: Account,
    /// Times from a session's loss to notice and to heal, per viewer that reconnected: p50, max in ms.
    pub noticed_ms: Option<[f64; 2]>,
    /// See `noticed_ms`.
    pub healed_ms: Option<[f64; 2]>,
    /// Scenario figures, copied from [`super::Observed::figures`].
    pub figures: BTreeMap<String, f64>,
    /// Percentile curve of commit → arrival for charts: (quantile, µs).
    pub curve: Vec<(f64, f64)>,
    /// commit → arrival p50/p99 per second of the run: (s after origin, p50 µs, p99 µs).
    pub timeline: Vec<(f64, f64, f64)>,
}

/// The figures of `run`, which was read from `file` (its name within the result folder).
#[must_use]
pub fn summarize(file: &str, run: &RunResult) -> RunSummary {
    super::figures::summarize(file, run)
}

/// May a run's latency be compared?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING-KEBAB-CASE")]
pub enum Validity {
    /// Yes.
    #[default]
    Valid,
    /// The generator was the bottleneck, or a fault did not fire: nothing of it may be compared.
    Invalid,
    /// Deliveries were offered above capacity: shares, staleness and events per write only.
    Saturated,
    /// Likes were offered above what the write path takes: the accepted rate only.
    WriteBound,
}

/// Quantiles of one distribution in µs, and how many likes and samples stand behind them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Quantiles {
    /// Likes (not deliveries) behind the figures.
    pub likes: u64,
    /// Samples.
    pub samples: u64,
    /// Median.
    pub p50: Option<f64>,
    /// 90th percentile.
    pub p90: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// 99.9th percentile.
    pub p999: Option<f64>,
    /// Largest.
    pub max: Option<f64>,
    /// The histogram, whole: HDR V2 deflate, base64.
    pub hdr: String,
}

/// The ledger of one run: what every live viewer should have seen, and what became of it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Account {
    /// Versions × sessions that were to be seen: from each session's snapshot to its end or the final version.
    pub expected: u64,
    /// Received in an event (combined commits cover several).
    pub received: u64,
    /// Replaced by a newer version in the pod's mailbox.
    pub conflated: u64,
    /// Reached the pod after a newer version.
    pub superseded: u64,
    /// Dropped by a bounded queue.
    pub dropped: u64,
    /// Covered by a later snapshot (resume, repair).
    pub snapshot: u64,
    /// None of these.
    pub lost: u64,
    /// What the generator missed: expected − received − snapshot.
    pub missing: u64,
    /// What the pods say they left out: conflated + superseded + dropped.
    pub pods_missing: u64,
    /// `missing == pods_missing`; none where a pod's counters could not be had.
    pub counters_agree: Option<bool>,
    /// Live viewers at the end, and those of them on the final value.
    pub live_viewers: u64,
    /// See `live_viewers`.
    pub on_final: u64,
    /// Likes that ended ok / unknown over the whole run, and by how much the posts' versions rose.
    pub ok: u64,
    /// See `ok`.
    pub unknown: u64,
    /// See `ok`.
    pub version_delta: u64,
    /// Every rule that was broken, in a sentence with the numbers; empty: the ledger closes.
    pub violations: Vec<String>,
}

impl Account {
    /// Did every check hold?
    #[must_use]
    pub const fn closes(&self) -> bool {
        self.violations.is_empty()
    }
}
