//! One walk along the arrival matrix: what reached which viewer when, and how old what it had not seen was.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::figures::histogram;
use super::index::Index;
use super::{RunResult, SNAPSHOT, Session};

/// Period in which a viewer's staleness is sampled, in µs.
const SAMPLE_US: u32 = 100_000;

/// What the walk along the arrivals collects.
pub(super) struct Walk {
    pub(super) due_to_arrival: Histogram<u64>,
    pub(super) commit_to_arrival: Histogram<u64>,
    pub(super) staleness: Histogram<u64>,
    pub(super) by_second: BTreeMap<u32, Histogram<u64>>,
    /// Versions × viewers of the window: received, missing, covered by a snapshot.
    pub(super) delivered: u64,
    pub(super) missing: u64,
    pub(super) snapshot: u64,
    /// Updates that arrived within the window.
    pub(super) deliveries: u64,
    /// Last arrival of each version at any viewer, by post.
    pub(super) last: Vec<Vec<u32>>,
}

/// What is known of one version.
#[derive(Clone, Copy, Default)]
pub(super) struct Fact {
    in_window: bool,
    due: Option<u32>,
    /// Commit of the event that covers it.
    committed: Option<u32>,
}

/// Whether it lies in the window, which is judged.
pub(super) fn in_window(run: &RunResult, at_us: u32) -> bool {
    (run.header.warmup_end_us..run.header.measure_end_us).contains(&u64::from(at_us))
}

/// What is known of each version, by post and version − first version.
pub(super) fn facts(run: &RunResult, index: &Index) -> Vec<Vec<Fact>> {
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

/// Walks along the arrivals, in their order.
pub(super) fn walk(run: &RunResult, index: &Index, facts: &[Vec<Fact>]) -> Walk {
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

/// From each commit of the window to the last viewer it reached.
pub(super) fn commit_to_last(run: &RunResult, facts: &[Vec<Fact>], index: &Index, last: &[Vec<u32>]) -> Histogram<u64> {
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
