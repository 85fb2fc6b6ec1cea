//! What a run comes to, and what several say together.

use std::collections::BTreeMap;

use anyhow::ensure;

use super::Config;
use crate::compare::environment::cores;
use crate::result::ProcessUse;

/// One run of one strategy.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    /// Likes counted in it.
    pub(super) likes: u64,
    /// From its start until the last of them was answered; until the last was counted, if that is later.
    pub(super) seconds: f64,
    /// COMMITs of the server in this time.
    pub(super) commits: u64,
    /// Answers that said "not counted, come again".
    pub(super) refused: u64,
    /// From a like's start until the post's row was its own, p50 and p99 in ms; waits for a connection included.
    pub(super) lock_wait_ms: (f64, f64),
    /// From a like's start until its answer, likewise.
    pub(super) answer_ms: (f64, f64),
    /// From the answer until it was counted, for likes that are counted later.
    pub(super) counted_after_ms: Option<(f64, f64)>,
    /// Process → CPU seconds.
    pub(super) cpu: BTreeMap<String, f64>,
}

impl Run {
    pub(super) fn rate(&self) -> f64 {
        self.likes as f64 / self.seconds
    }

    /// `own` is the name of this process, below which all the others run: what it is said to have used is theirs too.
    pub(super) fn set_cpu(&mut self, uses: &[ProcessUse], own: &str) {
        for one in uses {
            let name = if one.name.starts_with("pod-") { "pods" } else { &one.name };
            *self.cpu.entry(name.into()).or_default() += one.user_s + one.system_s;
        }
        let others: f64 = self.cpu.iter().filter(|(name, _)| *name != own).map(|(_, used)| used).sum();
        if let Some(used) = self.cpu.get_mut(own) {
            *used = (*used - others).max(0.0);
        }
    }
}

/// p50 and p99 in ms of values in µs; not numbers when there are none.
pub(super) fn quantiles(micros: &mut [u32]) -> (f64, f64) {
    micros.sort_unstable();
    let at = |q: f64| {
        let index = ((micros.len() as f64 * q).ceil() as usize).clamp(1, micros.len().max(1)) - 1;
        micros.get(index).map_or(f64::NAN, |value| f64::from(*value) / 1e3)
    };
    (at(0.5), at(0.99))
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    values.get(low).zip(values.get(high)).map_or(f64::NAN, |(a, b)| f64::midpoint(*a, *b))
}

/// Each version once, without a gap, and nothing but them in the database.
pub(super) fn check(mut versions: Vec<u64>, likes: u64, version: u64) -> anyhow::Result<()> {
    versions.sort_unstable();
    let gapless = versions.windows(2).all(|pair| pair[1] == pair[0] + 1);
    ensure!(gapless, "two answers carry the same version, or one carries none");
    ensure!(
        versions.last().is_none_or(|last| *last == version),
        "the database is at another version than the last answer"
    );
    ensure!(likes == version, "{likes} likes at version {version}");
    Ok(())
}

/// Cores busy per process, on average over all runs.
pub(super) fn cpu(runs: &[Run]) -> String {
    let seconds: f64 = runs.iter().map(|run| run.seconds).sum();
    let mut all: BTreeMap<&str, f64> = BTreeMap::new();
    for (name, used) in runs.iter().flat_map(|run| &run.cpu) {
        *all.entry(name).or_default() += used / seconds;
    }
    all.iter().map(|(name, busy)| format!("{name} {busy:.2}")).collect::<Vec<_>>().join(", ")
}

/// What keeps a strategy from being faster, from what was busy.
pub(super) fn bound(runs: &[Run], config: &Config) -> String {
    let seconds: f64 = runs.iter().map(|run| run.seconds).sum();
    let busy: f64 = runs.iter().flat_map(|run| run.cpu.values()).sum::<f64>() / seconds;
    let (cores, most) = (cores() as f64, runs.iter().flat_map(|run| &run.cpu).max_by(|a, b| a.1.total_cmp(b.1)));
    let commits = median(runs.iter().map(|run| run.commits as f64 / run.seconds).collect());
    let batch = median(runs.iter().map(|run| run.likes as f64 / run.commits.max(1) as f64).collect());
    let how = format!("{commits:.0} commits/s of {batch:.0} likes each");
    if busy > cores * 0.85 {
        let who = most.map_or("", |(name, _)| name);
        format!("the CPU: {busy:.1} of {cores} cores are busy, most with `{who}`; {how}")
    } else if batch > f64::from(config.callers) * 0.4 {
        format!("its {} callers: nearly all of them wait in one batch; {how}", config.callers)
    } else {
        format!("the row: one commit after the other, with {busy:.1} of {cores} cores busy; {how}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_twice_or_missing_is_found() {
        assert!(check(vec![3, 1, 2], 3, 3).is_ok());
        for (versions, likes, version) in
            [(vec![1, 1, 2], 2, 2), (vec![1, 3], 3, 3), (vec![1, 2], 3, 3), (vec![1, 2], 1, 2)]
        {
            assert!(check(versions.clone(), likes, version).is_err(), "{versions:?}");
        }
    }

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let mut micros: Vec<u32> = (1..=200).rev().map(|n| n * 1000).collect();
        assert_eq!(quantiles(&mut micros), (100.0, 198.0));
        assert!(quantiles(&mut []).0.is_nan());
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
