//! Q4: how skewed pods get, what the balancing method does about it, and what a new pod gets.
//!
//! Viewers arrive by a Poisson process and stay for log-normal times; a pod is added in the middle of the window, by a
//! reload for nginx (whose least_conn counters start from zero then) and at run time for HAProxy.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::compare::faults::{Fault, Step, Target};
use crate::compare::plan::Planned;
use crate::result::{Observed, PodConnections, RunResult, SNAPSHOT};

/// How long after its addition the new pod's share of newcomers is counted, in µs.
const NEWCOMERS_US: u64 = 10_000_000;

/// A pod is added in the middle.
#[must_use]
pub fn steps(planned: &Planned) -> Vec<Step> {
    vec![Step { at: planned.phases.measure / 2, fault: Fault::AddPods(planned.add_pods) }]
}

/// Figures of a cell in which a pod was added.
pub fn judge(run: &mut RunResult) {
    let Some(observed) = &run.header.observed else { return };
    let Some(added) = observed.markers.first().map(|marker| marker.at_us) else { return };
    let mut figures = BTreeMap::new();
    let (begin, end) = (run.header.warmup_end_us, run.header.measure_end_us);
    let after = skews(observed, added + 1_000_000, end);
    // Of the time before, the first half is for settling.
    let spans = [
        ("max_over_mean_before", skews(observed, begin.midpoint(added), added)),
        ("max_over_mean", after.clone()),
        ("max_over_mean_settled", skews(observed, added.midpoint(end), end)),
    ];
    for (name, samples) in &spans {
        figures.extend(mean(samples.iter().map(|(_, skew)| *skew)).map(|mean| ((*name).to_owned(), mean)));
    }
    let balanced = after.iter().find(|(_, skew)| *skew < 1.2);
    figures.extend(balanced.map(|(at, _)| ("balanced_after_s".to_owned(), seconds(at.saturating_sub(added)))));
    if let Some(newest) = observed.connections.iter().max_by_key(|pod| pod.samples.first().map(|(at, _)| *at)) {
        let newcomers = run.header.sessions.iter().filter(|session| {
            session.joined_us.is_some() && (added..added + NEWCOMERS_US).contains(&u64::from(session.attempted_us))
        });
        let (mut all, mut new) = (0_u32, 0_u32);
        for session in newcomers {
            all += 1;
            new += u32::from(session.pod.as_deref() == Some(newest.pod.as_str()));
        }
        if all > 0 {
            let pods = u32::try_from(observed.connections.len()).unwrap_or(u32::MAX);
            figures.insert("newcomers_to_new_pod_10s".into(), f64::from(new) / f64::from(all));
            figures.insert("even_share".into(), 1.0 / f64::from(pods));
        }
    }
    for (name, p99) in fullest_and_emptiest(run, observed) {
        figures.insert(name.into(), p99);
    }
    if let Some(observed) = &mut run.header.observed {
        observed.figures.extend(figures);
    }
}

/// The pod that answers fast and wrongly: [`crate::compare::stack`] breaks the first one.
const BROKEN: &str = "pod-1";

/// The broken pod is taken away when the window ends, so that every viewer can end on the final value.
#[must_use]
pub fn steps_broken(planned: &Planned) -> Vec<Step> {
    vec![Step { at: planned.phases.measure, fault: Fault::Kill(Target::Pod(BROKEN.into())) }]
}

/// Figures of a cell in which a pod answers fast and wrongly: whom it attracts, and who notices. A pod that refuses says
/// so in its counters; one that answers 200 and ends is known by the name its answers carried.
pub fn judge_broken(run: &mut RunResult, broken_admin: &str) {
    let answered = |admin: Option<&str>| -> f64 {
        let pods = run.header.pods.iter().filter(|pod| admin.is_none_or(|admin| pod.admin_url.contains(admin)));
        let series = ["pushlab_accepted_total", "pushlab_streams_refused_total", "pushlab_fallback_streams_total"];
        let counters = pods.flat_map(|pod| &pod.other);
        counters.filter(|(name, _)| series.iter().any(|s| name.starts_with(s))).fold(0.0, |sum, (_, value)| sum + value)
    };
    let end = u32::try_from(run.header.measure_end_us).unwrap_or(u32::MAX);
    let tried = || run.header.sessions.iter().filter(|session| session.attempted_us < end);
    let (all, failed) = (count(tried().count()), count(tried().filter(|session| session.joined_us.is_none()).count()));
    let named = count(tried().filter(|session| session.pod.as_deref() == Some(BROKEN)).count());
    let by_counters = answered(Some(broken_admin));
    let share = if by_counters > 0.0 { by_counters / answered(None) } else { named / all.max(1.0) };
    if let Some(observed) = &mut run.header.observed {
        observed.figures.insert("answered_by_broken_pod".into(), share);
        observed.figures.insert("attempts_that_failed".into(), failed / all.max(1.0));
    }
    if share <= 0.0 {
        run.header.generator.problems.push("the fault did not fire: nobody reached the broken pod".into());
    }
}

/// (when, most ÷ mean connections) of each second of the span in which every pod known by then was read.
fn skews(observed: &Observed, from: u64, to: u64) -> Vec<(u64, f64)> {
    let mut seconds: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let pods: Vec<&PodConnections> = observed.connections.iter().collect();
    for pod in &pods {
        for (at, open) in pod.samples.iter().filter(|(at, _)| (from..to).contains(at)) {
            seconds.entry(at / 1_000_000).or_default().push(*open);
        }
    }
    let known = |second: u64| {
        let there = pods.iter().filter(|pod| pod.samples.first().is_some_and(|(at, _)| at / 1_000_000 <= second));
        there.count()
    };
    let whole = seconds.into_iter().filter(|(second, open)| open.len() >= known(*second));
    let skew = whole.filter_map(|(second, open)| {
        let mean = mean(open.iter().map(|open| f64::from(*open)))?;
        (mean > 0.0).then(|| (second * 1_000_000, f64::from(open.iter().copied().max().unwrap_or(0)) / mean))
    });
    skew.collect()
}

/// commit → arrival p99 of the viewers on the pod with most, and on that with fewest connections over the window.
fn fullest_and_emptiest(run: &RunResult, observed: &Observed) -> Vec<(&'static str, f64)> {
    let (begin, end) = (run.header.warmup_end_us, run.header.measure_end_us);
    let load = |pod: &PodConnections| {
        mean(pod.samples.iter().filter(|(at, _)| (begin..end).contains(at)).map(|(_, open)| f64::from(*open)))
    };
    let mut pods: Vec<_> = observed.connections.iter().filter_map(|pod| Some((load(pod)?, pod.pod.as_str()))).collect();
    pods.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (Some((_, emptiest)), Some((_, fullest))) = (pods.first(), pods.last()) else { return Vec::new() };
    let events = &run.events;
    let committed: HashMap<(u32, u32), u32> =
        (0..events.version.len()).map(|i| ((events.post[i], events.version[i]), events.committed_us[i])).collect();
    let p99 = |name: &str| {
        let mut delays = Vec::new();
        for (i, &number) in run.arrivals.session.iter().enumerate() {
            let (session, at) = (&run.header.sessions[number as usize], run.arrivals.at_us[i]);
            if session.pod.as_deref() != Some(name) || at & SNAPSHOT != 0 || !(begin..end).contains(&u64::from(at)) {
                continue;
            }
            let committed = committed.get(&(session.post, run.arrivals.version[i])).filter(|at| **at > 0);
            delays.extend(committed.map(|committed| at.saturating_sub(*committed)));
        }
        delays.sort_unstable();
        // A p99 of fewer than a thousand deliveries says nothing.
        (delays.len() >= 1_000).then(|| f64::from(delays[delays.len() * 99 / 100]))
    };
    let named = [("p99_us_on_fullest_pod", fullest), ("p99_us_on_emptiest_pod", emptiest)];
    named.into_iter().filter_map(|(name, pod)| Some((name, p99(pod)?))).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}

fn seconds(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Marker, Session};

    fn pod(name: &str, from: u64, open: &[u32]) -> PodConnections {
        let samples = open.iter().zip(from..).map(|(open, s)| (s * 1_000_000 + 300_000, *open)).collect();
        PodConnections { pod: name.into(), samples }
    }

    #[test]
    fn skew_and_newcomers_of_a_known_history() {
        let mut run = RunResult::default();
        (run.header.warmup_end_us, run.header.measure_end_us) = (0, 20_000_000);
        let viewer = |at: u32, pod: &str| Session {
            attempted_us: at,
            joined_us: Some(at + 1_000),
            pod: Some(pod.into()),
            ..Session::default()
        };
        run.header.sessions =
            vec![viewer(1, "a"), viewer(10_000_100, "a"), viewer(11_000_000, "c"), viewer(12_000_000, "c")];
        let filling = pod("c", 11, &[0, 5, 10, 20, 25, 25, 25, 25, 25]);
        run.header.observed = Some(Observed {
            markers: vec![Marker { at_us: 10_000_000, label: "c added".into(), recovery: false }],
            connections: vec![pod("a", 0, &[30; 20]), pod("b", 0, &[30; 20]), filling],
            ..Observed::default()
        });
        judge(&mut run);
        let figures = &run.header.observed.unwrap().figures;
        assert!((figures["max_over_mean_before"] - 1.0).abs() < 1e-9, "{figures:?}");
        assert!((figures["newcomers_to_new_pod_10s"] - 2.0 / 3.0).abs() < 1e-9, "{figures:?}");
        assert!((figures["even_share"] - 1.0 / 3.0).abs() < 1e-9);
        // Second 14 holds 30, 30 and 20: 30 over 26.7 is the first below 1.2.
        assert!((figures["balanced_after_s"] - 4.0).abs() < 1e-9, "{figures:?}");
        assert!(figures["max_over_mean"] > figures["max_over_mean_settled"], "{figures:?}");
    }
}
