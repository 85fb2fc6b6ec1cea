//! Where a like's time goes, stage by stage, from the pods' own counters: means over a run, not percentiles.

use serde::Serialize;

use super::cells::Group;
use super::metric;
use super::model::Run;
use crate::result::summary::Validity;

/// The stages of one cell's likes, for each arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Waterfall {
    /// The cell.
    pub title: String,
    /// One per arm.
    pub arms: Vec<Stages>,
}

/// The stages of one arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stages {
    /// The arm.
    pub arm: &'static str,
    /// Name, mean as text, start and length as percentages of the whole, for drawing.
    pub stages: Vec<(&'static str, String, f64, f64)>,
}

/// One waterfall per cell whose pods told their stages.
#[must_use]
pub fn waterfalls(groups: &[Group<'_>]) -> Vec<Waterfall> {
    let of = |group: &Group<'_>| {
        let columns = group.columns.iter().filter(|column| column.validity == Validity::Valid);
        let arms: Vec<Stages> = columns
            .filter_map(|column| Some(Stages { arm: column.arm.title(), stages: stages(column.typical()?)? }))
            .collect();
        (!arms.is_empty()).then(|| Waterfall { title: format!("{} · {}", group.question, group.title), arms })
    };
    groups.iter().filter_map(of).collect()
}

/// Lock wait and the rest of the transaction end at COMMIT; publish and the way to the socket begin there.
fn stages(run: &Run) -> Option<Vec<(&'static str, String, f64, f64)>> {
    let lock = mean(run, "pushlab_lock_wait_seconds")?;
    let transaction = mean(run, "pushlab_transaction_seconds")?;
    let commit = lock + transaction;
    let mut spans = vec![("wait for the row lock", 0.0, lock), ("change and COMMIT", lock, commit)];
    if let Some(publish) = mean(run, "pushlab_publish_seconds") {
        spans.push(("COMMIT → handed to the broker", commit, commit + publish));
    }
    let written = mean(run, "pushlab_delivery_latency_seconds");
    if let Some(written) = written {
        spans.push(("COMMIT → written to the viewer's socket", commit, commit + written));
    }
    if let Some(arrival) = run.summary.commit_to_arrival.p50 {
        spans.push(("COMMIT → arrival (median)", commit, commit + arrival));
    }
    let end = spans.iter().map(|span| span.2).fold(f64::MIN_POSITIVE, f64::max);
    let shown = |(name, from, to): (&'static str, f64, f64)| {
        let at = |us: f64| (us / end * 1000.0).round() / 10.0;
        (name, metric::micros(to - from), at(from), at(to - from).max(0.3))
    };
    Some(spans.into_iter().map(shown).collect())
}

/// Mean of a Prometheus histogram over all pods, in µs.
fn mean(run: &Run, name: &str) -> Option<f64> {
    let sum = |suffix: &str| -> f64 {
        let key = format!("{name}_{suffix}");
        let counters = run.pods.iter().flat_map(|pod| &pod.other);
        let own =
            counters.filter(|(n, _)| n.strip_prefix(&key).is_some_and(|rest| rest.is_empty() || rest.starts_with('{')));
        own.map(|(_, value)| value).sum()
    };
    let count = sum("count");
    (count > 0.0).then(|| sum("sum") / count * 1e6)
}
