//! Computes the figures of a run from its columns and one walk along its arrivals.
//!
//! A like belongs to the window when it was *due* in it; an event whose like is not known, when it was committed in it.

use base64::Engine;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};

use super::index::Index;
use super::summary::{Account, Quantiles, RunSummary, Validity};
use super::validity::{CARRY_P999, judge, withhold_tail};
use super::walk::{Walk, commit_to_last, facts, in_window, walk};
use super::{Outcome, RunResult, ledger, outage};

/// A latency histogram: 1 µs to 1 h, three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("bounds are constant and good")
}

/// See [`super::summary::summarize`].
pub(super) fn summarize(file: &str, run: &RunResult) -> RunSummary {
    let header = &run.header;
    let mut summary = RunSummary {
        file: file.into(),
        cell: header.cell.clone(),
        config: header.config.clone(),
        account: ledger::account(run),
        ..RunSummary::default()
    };
    summary.figures = header.observed.as_ref().map(|o| o.figures.clone()).unwrap_or_default();
    let window_s = (header.measure_end_us.saturating_sub(header.warmup_end_us)) as f64 / 1e6;
    count_likes(run, window_s, &mut summary);
    let Some(index) = Index::new(run) else {
        summary.validity = Validity::Invalid;
        summary.reasons = summary.account.violations.clone();
        return summary;
    };
    let facts = facts(run, &index);
    let walk = walk(run, &index, &facts);

    let likes = summary.likes_ok;
    summary.due_to_arrival = quantiles(&walk.due_to_arrival, likes);
    summary.commit_to_arrival = quantiles(&walk.commit_to_arrival, likes);
    summary.commit_to_last = quantiles(&commit_to_last(run, &facts, &index, &walk.last), likes);
    summary.curve = curve(&walk.commit_to_arrival, likes);
    summary.timeline = walk.by_second.iter().map(|(second, h)| (f64::from(*second), at(h, 0.5), at(h, 0.99))).collect();
    if !walk.staleness.is_empty() {
        summary.staleness_us = Some([at(&walk.staleness, 0.5), at(&walk.staleness, 0.99)]);
    }
    summary.deliveries_per_s = walk.deliveries as f64 / window_s;
    shares(&walk, &mut summary);
    costs(run, walk.deliveries, &mut summary);
    let mut outages = outage::outages(run, &index);
    summary.noticed_ms = median_and_max(&mut outages.noticed);
    summary.healed_ms = median_and_max(&mut outages.healed);
    withhold_tail(run, &mut summary);
    judge(run, at(&walk.commit_to_arrival, 0.5), &mut summary);
    summary
}

fn count_likes(run: &RunResult, window_s: f64, summary: &mut RunSummary) {
    let mut accepted = 0_u64;
    let mut due_to_answer = histogram();
    for (i, outcome) in run.likes.outcome.iter().enumerate() {
        let (due, answered) = (run.likes.due_us[i], run.likes.answered_us[i]);
        let ok = *outcome == Outcome::Ok as u8;
        accepted += u64::from(ok && in_window(run, answered));
        if !in_window(run, due) {
            continue;
        }
        summary.likes_due += 1;
        summary.likes_ok += u64::from(ok);
        summary.likes_failed += u64::from(*outcome == Outcome::Failed as u8);
        summary.likes_unknown += u64::from(*outcome == Outcome::Unknown as u8);
        if ok {
            due_to_answer.saturating_record(u64::from(answered.saturating_sub(due)));
        }
    }
    summary.accepted_rate = accepted as f64 / window_s;
    summary.due_to_answer = quantiles(&due_to_answer, summary.likes_ok);
}

fn at(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64
}

/// A quantile q stands on at least 10/(1 − q) likes, or is not printed.
fn quantiles(histogram: &Histogram<u64>, likes: u64) -> Quantiles {
    let q = |quantile: f64, needed: u64| {
        (likes >= needed && !histogram.is_empty()).then(|| histogram.value_at_quantile(quantile) as f64)
    };
    let mut hdr = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut hdr).expect("writing to memory");
    Quantiles {
        likes,
        samples: histogram.len(),
        p50: q(0.5, 20),
        p90: q(0.9, 100),
        p99: q(0.99, 1_000),
        p999: q(0.999, CARRY_P999),
        max: (!histogram.is_empty()).then(|| histogram.max() as f64),
        hdr: base64::engine::general_purpose::STANDARD.encode(hdr),
    }
}

/// Points at 1 − 10^(−i/20), as far as the likes carry.
fn curve(histogram: &Histogram<u64>, likes: u64) -> Vec<(f64, f64)> {
    if histogram.is_empty() {
        return Vec::new();
    }
    let quantile = |i: u32| 1.0 - 10_f64.powf(-f64::from(i) / 20.0);
    let carried = |q: &f64| 10.0 / (1.0 - q) <= likes as f64;
    (0..=100).map(quantile).take_while(carried).map(|q| (q, at(histogram, q))).collect()
}

fn shares(walk: &Walk, summary: &mut RunSummary) {
    let expected = walk.delivered + walk.missing + walk.snapshot;
    if expected == 0 {
        return;
    }
    let share = |n: f64| n / expected as f64;
    summary.delivered_share = share(walk.delivered as f64);
    // The generator sees that versions are missing, the pods know why: their proportion over the run is used.
    let Account { conflated, superseded, dropped, .. } = summary.account;
    let all = conflated + superseded + dropped;
    let superseded = if all == 0 { 0.0 } else { superseded as f64 / all as f64 };
    summary.superseded_share = share(walk.missing as f64 * superseded);
    summary.conflated_share = share(walk.missing as f64 * (1.0 - superseded));
}

fn costs(run: &RunResult, deliveries: u64, summary: &mut RunSummary) {
    let pods = &run.header.pods;
    let sum = |field: fn(&super::PodCounters) -> u64| pods.iter().map(field).sum::<u64>() as f64;
    let (updates, writes) = (sum(|pod| pod.deliveries), sum(|pod| pod.socket_writes));
    if writes > 0.0 {
        summary.events_per_write = Some(updates / writes);
    }
    if updates > 0.0 {
        summary.bytes_per_delivery = Some(sum(|pod| pod.written_bytes) / updates);
    }
    let processes = run.header.observed.as_ref().map(|observed| &observed.processes[..]).unwrap_or_default();
    if deliveries > 0 && !processes.is_empty() {
        for process in processes {
            let cost = (process.user_s + process.system_s) * 1e6 / deliveries as f64;
            *summary.cpu_us_by_process.entry(process.name.clone()).or_default() += cost;
        }
        summary.cpu_us_per_delivery = Some(summary.cpu_us_by_process.values().sum());
    }
}

fn median_and_max(us: &mut [u64]) -> Option<[f64; 2]> {
    us.sort_unstable();
    Some([us[us.len().checked_sub(1)? / 2] as f64 / 1e3, *us.last()? as f64 / 1e3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::synthetic::good;
    use crate::result::{Marker, Observed, ProcessUse};

    fn close_to(actual: Option<f64>, expected: f64) {
        let actual = actual.expect("a figure");
        assert!((actual - expected).abs() <= expected * 0.002, "{actual} is not {expected}");
    }

    #[test]
    fn latencies_are_those_of_the_history() {
        let s = summarize("good", &good());
        assert_eq!((s.validity, &s.reasons), (Validity::Valid, &Vec::new()));
        assert_eq!((s.likes_due, s.likes_ok, s.likes_failed, s.likes_unknown), (200, 200, 0, 0));
        close_to(s.commit_to_arrival.p50, 300.0);
        close_to(s.due_to_arrival.p50, 1_300.0);
        close_to(s.commit_to_last.p50, 400.0);
        close_to(s.due_to_answer.p50, 1_500.0);
        close_to(Some(s.accepted_rate), 200.0);
    }

    #[test]
    fn an_outage_counts_from_the_like_and_not_from_the_reconnect() {
        let s = summarize("good", &good());
        // Version 201 is due at 1 s, and reached viewer 1 with the snapshot of version 210, 45 ms later.
        close_to(s.due_to_arrival.max, 46_500.0);
        close_to(s.commit_to_last.max, 45_500.0);
        // From the loss at 1 s to the snapshot.
        close_to(s.healed_ms.map(|h| h[0]), 46.5);
        assert_eq!(s.noticed_ms, None);
    }

    #[test]
    fn with_a_marker_noticing_and_healing_are_told_apart() {
        let mut run = good();
        let markers = vec![Marker { at_us: 990_000, label: "pod killed".into(), recovery: false }];
        run.header.observed = Some(Observed { markers, ..Observed::default() });
        let s = summarize("good", &run);
        close_to(s.noticed_ms.map(|n| n[0]), 10.0);
        close_to(s.healed_ms.map(|h| h[0]), 56.5);
    }

    #[test]
    fn a_quantile_needs_enough_likes() {
        let s = summarize("good", &good());
        assert!(s.commit_to_arrival.p90.is_some(), "200 likes carry p90");
        assert_eq!((s.commit_to_arrival.p99, s.commit_to_arrival.p999), (None, None));
        assert!(s.curve.iter().all(|(q, _)| *q <= 0.951));
    }

    #[test]
    fn staleness_is_the_age_of_what_was_not_seen() {
        let s = summarize("good", &good());
        // Only the outage of 46 ms leaves anybody stale for longer than an arrival takes.
        assert!(s.staleness_us.unwrap()[0] < 500.0);
    }

    #[test]
    fn what_is_missing_has_a_share() {
        let s = summarize("good", &good());
        // Of 600 versions × viewers in the window, ten came with a snapshot; version 100 is due before it.
        close_to(Some(s.delivered_share), 590.0 / 600.0);
        assert!(s.conflated_share.abs() < 1e-9);
    }

    #[test]
    fn saturation_is_told_by_what_is_left_out() {
        let mut run = good();
        let keep: Vec<_> = (0..run.arrivals.version.len())
            .filter(|i| !matches!(run.arrivals.version[*i], 120..=290) || run.arrivals.session[*i] > 0)
            .collect();
        for column in [&mut run.arrivals.session, &mut run.arrivals.version, &mut run.arrivals.at_us] {
            *column = keep.iter().map(|i| column[*i]).collect();
        }
        run.header.pods[0].conflated += 171;
        let s = summarize("saturated", &run);
        assert_eq!(s.account.violations, Vec::<String>::new());
        assert_eq!(s.validity, Validity::Saturated);
        close_to(Some(s.conflated_share), 171.0 / 600.0);
    }

    #[test]
    fn cpu_is_divided_by_deliveries() {
        let mut run = good();
        let pod = ProcessUse { name: "pod-1".into(), user_s: 0.03, system_s: 0.029, ..ProcessUse::default() };
        run.header.observed = Some(Observed { processes: vec![pod], ..Observed::default() });
        let s = summarize("cpu", &run);
        // 591 updates arrived within the window: 600 less ten that a snapshot replaced, plus the snapshot.
        close_to(s.cpu_us_per_delivery, 59_000.0 / 591.0);
        close_to(s.bytes_per_delivery, 120.0);
    }
}
