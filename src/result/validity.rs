//! Whether a run counts: a generator that was late, more offered than fits, writes that were the limit.

use super::RunResult;
use super::summary::{RunSummary, Validity};

/// The likes that carry p99.9, as 10/(1 − q) has it.
pub(super) const CARRY_P999: u64 = 10_000;

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
pub(super) fn withhold_tail(run: &RunResult, summary: &mut RunSummary) {
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

/// Whether a run says anything about a transport, and why not.
pub(super) fn judge(run: &RunResult, median_us: f64, summary: &mut RunSummary) {
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
    use crate::result::figures::summarize;
    use crate::result::summary::Quantiles;
    use crate::result::synthetic::good;
    use crate::result::{Marker, Observed};

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
}
