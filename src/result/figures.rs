//! Computes the figures of a run from its columns: one walk along the arrival matrix.
//!
//! A like belongs to the window when it was *due* in it; an event whose like is not known, when it was committed in it.

use std::collections::BTreeMap;

use base64::Engine;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};

use super::index::Index;
use super::summary::{Account, Quantiles, RunSummary, Validity};
use super::{Outcome, RunResult, SNAPSHOT, Session, ledger, outage};

/// Period in which a viewer's staleness is sampled, in µs.
const SAMPLE_US: u32 = 100_000;

/// A latency histogram: 1 µs to 1 h, three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("bounds are constant and good")
}

/// What the walk along the arrivals collects.
struct Walk {
    due_to_arrival: Histogram<u64>,
    commit_to_arrival: Histogram<u64>,
    staleness: Histogram<u64>,
    by_second: BTreeMap<u32, Histogram<u64>>,
    /// Versions × viewers of the window: received, missing, covered by a snapshot.
    delivered: u64,
    missing: u64,
    snapshot: u64,
    /// Updates that arrived within the window.
    deliveries: u64,
    /// Last arrival of each version at any viewer, by post.
    last: Vec<Vec<u32>>,
}

/// What is known of one version.
#[derive(Clone, Copy, Default)]
struct Fact {
    in_window: bool,
    due: Option<u32>,
    /// Commit of the event that covers it.
    committed: Option<u32>,
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

fn in_window(run: &RunResult, at_us: u32) -> bool {
    (run.header.warmup_end_us..run.header.measure_end_us).contains(&u64::from(at_us))
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

/// What is known of each version, by post and version − first version.
fn facts(run: &RunResult, index: &Index) -> Vec<Vec<Fact>> {
    let of_post = |post: u32| {
        let mut facts = vec![Fact::default(); index.versions(post).len()];
        // Backwards: a version without an event of its own is covered by the next one that has one.
        let mut committed = None;
        for (fact, version) in facts.iter_mut().zip(index.versions(post)).rev() {
            if let Some(event) = index.event(post, version) {
                committed = Some(run.events.committed_us[event]);
            }
            let due = index.like(post, version).map(|like| run.likes.due_us[like]);
            let in_window = due.or(committed).is_some_and(|at| in_window(run, at));
            *fact = Fact { in_window, due, committed };
        }
        facts
    };
    (0..u32::try_from(run.header.posts.len()).unwrap_or(0)).map(of_post).collect()
}

/// Where a session stands while its arrivals are walked.
struct Place {
    cursor: u32,
    /// The next staleness sample.
    sample: u32,
}

fn walk(run: &RunResult, index: &Index, facts: &[Vec<Fact>]) -> Walk {
    let header = &run.header;
    let mut walk = Walk {
        due_to_arrival: histogram(),
        commit_to_arrival: histogram(),
        staleness: histogram(),
        by_second: BTreeMap::new(),
        delivered: 0,
        missing: 0,
        snapshot: 0,
        deliveries: 0,
        last: facts.iter().map(|facts| vec![0; facts.len()]).collect(),
    };
    let mut places: Vec<Option<Place>> = header.sessions.iter().map(|_| None).collect();
    for (i, number) in run.arrivals.session.iter().enumerate() {
        let session = &header.sessions[*number as usize];
        let (version, stamp) = (run.arrivals.version[i], run.arrivals.at_us[i]);
        let (snapshot, at) = (stamp & SNAPSHOT != 0, stamp & !SNAPSHOT);
        walk.deliveries += u64::from(in_window(run, at));
        if session.slow {
            continue;
        }
        let place = places[*number as usize].get_or_insert_with(|| first_place(run, *number, session, version, at));
        let event = if snapshot { None } else { index.event(session.post, version) };
        sample(run, index, facts, session, place, at, &mut walk.staleness);
        arrive(run, index, facts, (session, event), (place.cursor, version, at), &mut walk);
        place.cursor = place.cursor.max(version);
    }
    for (session, place) in header.sessions.iter().zip(&mut places) {
        if let Some(place) = place {
            let end = session.ended_us.unwrap_or(u32::MAX);
            sample(run, index, facts, session, place, end, &mut walk.staleness);
        }
    }
    walk
}

fn first_place(run: &RunResult, number: u32, session: &Session, version: u32, at: u32) -> Place {
    let cursor = session.resumed_from.and_then(|from| u32::try_from(from).ok()).unwrap_or(version);
    // Sessions sample at different offsets, so that a burst is not hit by all of them or by none.
    let offset = number.wrapping_mul(7_919) % SAMPLE_US;
    let start = u32::try_from(run.header.warmup_end_us).unwrap_or(u32::MAX).max(at);
    Place { cursor, sample: (start / SAMPLE_US) * SAMPLE_US + offset }
}

/// Samples how old the oldest change is that this session has not seen, up to `until`.
fn sample(
    run: &RunResult,
    index: &Index,
    facts: &[Vec<Fact>],
    session: &Session,
    place: &mut Place,
    until: u32,
    staleness: &mut Histogram<u64>,
) {
    let until = u64::from(until).min(run.header.measure_end_us);
    if u64::from(place.sample) >= until {
        return;
    }
    let slot = slot(index, session.post, place.cursor + 1);
    let next = slot.and_then(|slot| facts[session.post as usize].get(slot)).and_then(|fact| fact.committed);
    while u64::from(place.sample) < until {
        staleness.saturating_record(next.map_or(0, |commit| u64::from(place.sample.saturating_sub(commit))));
        place.sample += SAMPLE_US;
    }
}

fn slot(index: &Index, post: u32, version: u32) -> Option<usize> {
    version.checked_sub(index.versions(post).start).map(|slot| slot as usize)
}

/// Books one arrival: the versions in (cursor, version] reached the viewer at `at`.
fn arrive(
    run: &RunResult,
    index: &Index,
    facts: &[Vec<Fact>],
    (session, event): (&Session, Option<usize>),
    (cursor, version, at): (u32, u32, u32),
    walk: &mut Walk,
) {
    let post = session.post as usize;
    let prev = event.map(|event| run.events.prev[event]);
    for covered in cursor + 1..=version {
        let Some(slot) = slot(index, session.post, covered) else { continue };
        let Some(fact) = facts[post].get(slot) else { continue };
        walk.last[post][slot] = walk.last[post][slot].max(at);
        if !fact.in_window {
            continue;
        }
        if let Some(due) = fact.due {
            walk.due_to_arrival.saturating_record(u64::from(at.saturating_sub(due)));
        }
        match prev {
            None => walk.snapshot += 1,
            Some(prev) if covered <= prev => walk.missing += 1,
            Some(_) => walk.delivered += 1,
        }
    }
    let Some(event) = event else { return };
    let committed = run.events.committed_us[event];
    let latency = u64::from(at.saturating_sub(committed));
    let second = || Histogram::new_with_bounds(1, 3_600_000_000, 2).expect("bounds are constant and good");
    walk.by_second.entry(committed / 1_000_000).or_insert_with(second).saturating_record(latency);
    let in_window = slot(index, session.post, version).and_then(|slot| facts[post].get(slot)).map(|f| f.in_window);
    if in_window == Some(true) {
        walk.commit_to_arrival.saturating_record(latency);
    }
}

fn commit_to_last(run: &RunResult, facts: &[Vec<Fact>], index: &Index, last: &[Vec<u32>]) -> Histogram<u64> {
    let mut histogram = histogram();
    for (post, version) in run.events.post.iter().zip(&run.events.version) {
        let Some(slot) = slot(index, *post, *version) else { continue };
        let (Some(fact), Some(last)) = (facts[*post as usize].get(slot), last[*post as usize].get(slot)) else {
            continue;
        };
        if let (true, Some(committed), true) = (fact.in_window, fact.committed, *last > 0) {
            histogram.saturating_record(u64::from(last.saturating_sub(committed)));
        }
    }
    histogram
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

/// The likes that carry p99.9, as 10/(1 − q) has it.
const CARRY_P999: u64 = 10_000;

/// How late the generator may be, in µs: its likes, and its readers where the kernel stamps arrivals (then their delay is
/// in no latency, and a reader is slow only when it falls behind).
const LATE_US: f64 = 1_000.0;

/// The same in a run to which something was done (a pod killed, all of them replaced): where the lab has the generator's own
/// machine, starting processes takes its cores too. What such a run is read for is told in hundreds of ms and seconds;
/// the latencies in which the generator was late are withheld.
const LATE_IN_FAULT_US: f64 = 10_000.0;

/// The first quantile up to p99.9 at which the generator itself was late, of those that the likes carry.
struct Late {
    name: &'static str,
    lag_us: f64,
    /// The quantile below it, up to which latencies are sound; 0 when none is.
    sound: f64,
}

fn late_from(run: &RunResult, likes: u64) -> Option<Late> {
    let [p50, p99, p999] = run.header.generator.schedule_lag_us;
    let p90 = run.header.generator.p90_us[0];
    let lags =
        [("p50", p50, 0, 0.0), ("p90", p90, 100, 0.5), ("p99", p99, 1_000, 0.9), ("p99.9", p999, CARRY_P999, 0.99)];
    let late = lags.into_iter().find(|(_, lag, carry, _)| *lag > LATE_US && likes >= *carry);
    late.map(|(name, lag_us, _, sound)| Late { name, lag_us, sound })
}

/// A tail in which the generator itself was late is not printed. The runs' medians stand: on a machine whose hypervisor
/// takes the CPU away three times a second for a millisecond, p99.9 judges the hypervisor, and p50 and p99 do not.
fn withhold_tail(run: &RunResult, summary: &mut RunSummary) {
    let Some(Late { sound, .. }) = late_from(run, summary.likes_due) else { return };
    let RunSummary { due_to_arrival, commit_to_arrival, commit_to_last, due_to_answer, .. } = summary;
    for figure in [due_to_arrival, commit_to_arrival, commit_to_last, due_to_answer] {
        let quantiles =
            [(0.5, &mut figure.p50), (0.9, &mut figure.p90), (0.99, &mut figure.p99), (0.999, &mut figure.p999)];
        quantiles.into_iter().filter(|(rank, _)| *rank > sound).for_each(|(_, value)| *value = None);
    }
    summary.curve.retain(|(rank, _)| *rank < sound + 0.001);
}

/// The highest quantile up to p99 that this many likes carry (10/(1−q), as for everything printed), and its name: p99 of
/// sixty likes would be the slowest of them, and judge the hypervisor instead of the generator.
const fn supported(likes: u64, p50: f64, p90: f64, p99: f64) -> (f64, &'static str) {
    match likes {
        1_000.. => (p99, "p99"),
        100.. => (p90, "p90"),
        _ => (p50, "p50"),
    }
}

/// Largest share that may be conflated, of the versions that reached a mailbox (superseded ones never do), before a window's
/// latencies say nothing about the transport. With
/// Poisson likes a server at half of its capacity is still busy with one in about a quarter of the cases in which the next
/// comes, so some conflation is no sign of overload; latency is compared up to that half only.
const SATURATION: f64 = 0.25;

fn judge(run: &RunResult, median_us: f64, summary: &mut RunSummary) {
    let generator = &run.header.generator;
    let mut invalid = generator.problems.clone();
    let disturbed = run.header.observed.as_ref().is_some_and(|observed| !observed.markers.is_empty());
    let may_be_late = if disturbed { LATE_IN_FAULT_US } else { LATE_US };
    let [p50, p99, _] = generator.schedule_lag_us;
    let (lag, name) = supported(summary.likes_due, p50, generator.p90_us[0], p99);
    if lag > may_be_late {
        let limit = may_be_late / 1e3;
        invalid.push(format!("the generator was late: schedule lag {name} is {lag:.0} µs, more than {limit} ms"));
    }
    let [p50, p99, _] = generator.stamp_to_read_us;
    let (read, name) = supported(summary.likes_due, p50, generator.p90_us[1], p99);
    let limit = if generator.kernel_stamps { (median_us / 10.0).max(may_be_late) } else { median_us / 10.0 };
    if median_us > 0.0 && read > limit {
        invalid.push(format!(
            "the generator was slow to read: stamp to read {name} is {read:.0} µs, more than {limit:.0} µs (median {median_us:.0} µs)"
        ));
    }
    let mut notes = Vec::new();
    if let Some(Late { name, lag_us, .. }) = late_from(run, summary.likes_due) {
        let stolen = generator.stolen_s;
        notes.push(format!(
            "latencies are not printed from {name} on: the generator's own schedule lag is {lag_us:.0} µs there (the hypervisor took {stolen:.2} s of the cores' time in the window)"
        ));
    }
    if !generator.kernel_stamps {
        notes.push("arrivals were stamped by the reader: the kernel gave no stamps".to_owned());
    }
    let (due, ok) = (summary.likes_due as f64, summary.likes_ok as f64);
    let accepted = summary.accepted_rate * (run.header.measure_end_us - run.header.warmup_end_us) as f64 / 1e6;
    let mut write_bound = Vec::new();
    // Three likes of play: those due at the window's end are answered after it.
    if accepted < 0.95 * due - 3.0 {
        write_bound.push(format!("{accepted:.0} likes were accepted within the window, {due:.0} were due"));
    } else if ok < 0.99 * due - 3.0 {
        write_bound.push(format!("of {due:.0} likes {:.0} were refused or had no answer", due - ok));
    }
    let offered = summary.delivered_share + summary.conflated_share;
    let left_out = if offered > 0.0 { summary.conflated_share / offered } else { 0.0 };
    (summary.validity, summary.reasons) = if !invalid.is_empty() {
        (Validity::Invalid, invalid)
    } else if left_out > SATURATION {
        // Fan-out that takes every core starves the write path too: the cause comes first, what follows from it after.
        let percent = left_out * 100.0;
        let mut saturated =
            vec![format!("{percent:.1} % of what was there to be sent was left out: more was offered than fits")];
        saturated.append(&mut write_bound);
        (Validity::Saturated, saturated)
    } else if !write_bound.is_empty() {
        (Validity::WriteBound, write_bound)
    } else {
        (Validity::Valid, Vec::new())
    };
    summary.reasons.extend(notes);
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
    fn a_saturated_fan_out_that_also_starves_the_writes_is_saturated() {
        let mut run = good();
        let mut s = RunSummary { conflated_share: 0.9, likes_due: 200, accepted_rate: 50.0, ..RunSummary::default() };
        judge(&run, 0.0, &mut s);
        assert_eq!((s.validity, s.reasons.len()), (Validity::Saturated, 2));
        run.header.generator.problems.push("a clock step".into());
        judge(&run, 0.0, &mut s);
        assert_eq!(s.validity, Validity::Invalid);
    }

    #[test]
    fn a_slow_write_path_is_told_by_the_accepted_rate() {
        let mut run = good();
        run.likes.answered_us.iter_mut().for_each(|answered| *answered += *answered / 5);
        assert_eq!(summarize("write-bound", &run).validity, Validity::WriteBound);
    }

    #[test]
    fn a_generator_that_was_the_bottleneck_makes_the_run_invalid() {
        let broken: [fn(&mut RunResult); 4] = [
            |run| {
                run.header.generator.kernel_stamps = false;
                run.header.generator.p90_us[1] = 101.0;
            },
            |run| run.header.generator.p90_us[0] = 1_001.0,
            |run| run.header.generator.p90_us[1] = 1_001.0,
            |run| run.header.generator.problems.push("a clock step".into()),
        ];
        for mutate in broken {
            let mut run = good();
            mutate(&mut run);
            let s = summarize("invalid", &run);
            assert_eq!((s.validity, s.reasons.first().map(String::is_empty)), (Validity::Invalid, Some(false)));
        }
        let mut run = good();
        run.header.generator.kernel_stamps = false;
        let s = summarize("noted", &run);
        assert_eq!((s.validity, s.reasons.len()), (Validity::Valid, 1));
    }

    #[test]
    fn a_tail_in_which_the_generator_was_late_is_not_printed() {
        let mut run = good();
        run.header.generator.schedule_lag_us[2] = 2_000.0;
        let printed = Quantiles { p99: Some(1.0), p999: Some(2.0), ..Quantiles::default() };
        let mut s = RunSummary { likes_due: 10_000, due_to_arrival: printed, ..RunSummary::default() };
        s.curve = vec![(0.99, 1.0), (0.992, 1.5), (0.999, 2.0)];
        withhold_tail(&run, &mut s);
        assert_eq!((s.due_to_arrival.p99, s.due_to_arrival.p999), (Some(1.0), None));
        assert_eq!(s.curve, [(0.99, 1.0)]);
    }

    #[test]
    fn what_was_done_to_the_stack_may_make_the_generator_late_but_then_its_latencies_are_withheld() {
        let mut run = good();
        run.header.generator.p90_us = [4_000.0, 4_000.0];
        assert_eq!(summarize("late", &run).validity, Validity::Invalid);
        let markers = vec![Marker { at_us: 990_000, label: "every pod replaced".into(), recovery: false }];
        run.header.observed = Some(Observed { markers, ..Observed::default() });
        let s = summarize("disturbed", &run);
        assert_eq!((s.validity, s.reasons.len()), (Validity::Valid, 1));
        assert_eq!((s.commit_to_arrival.p50.is_some(), s.commit_to_arrival.p90), (true, None));
        assert!(s.curve.iter().all(|(rank, _)| *rank < 0.6));
        run.header.generator.p90_us = [11_000.0, 0.0];
        assert_eq!(summarize("too late", &run).validity, Validity::Invalid);
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
