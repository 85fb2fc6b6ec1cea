//! When viewers noticed that something was wrong, and when each of them was well again: two times, never one.
//!
//! *Noticed*: the viewer's connection ended without being asked to, counted from the fault. *Healed*: the viewer holds the
//! newest state again, counted from the same fault: it joined anew after a loss, or caught up with a change that was
//! committed and did not reach it (a broker that was away costs no connection, and is noticed by no viewer).

use std::collections::BTreeMap;

use super::index::Index;
use super::{GAVE_UP, RunResult, SNAPSHOT, Session};

/// A viewer without a committed change for longer than this is unwell, in µs.
const STALE_US: u32 = 500_000;

/// Times in µs, one per viewer and fault.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outages {
    /// From the fault to the end of a connection.
    pub(super) noticed: Vec<u64>,
    /// From the fault (without markers: from the loss) to being well.
    pub(super) healed: Vec<u64>,
}

/// Of one viewer and one fault.
#[derive(Default)]
struct Outage {
    noticed: Option<u64>,
    /// A connection was lost and no snapshot came since.
    open: bool,
    healed: Option<u64>,
}

/// Walks every viewer's sessions and arrivals.
pub(super) fn outages(run: &RunResult, index: &Index) -> Outages {
    let markers = run.header.observed.as_ref().map(|observed| &observed.markers[..]).unwrap_or_default();
    let faults: Vec<u64> = markers.iter().filter(|marker| !marker.recovery).map(|marker| marker.at_us).collect();
    // A loss before any fault, or without one, counts from itself.
    let begun = |at: u64| faults.iter().copied().filter(|fault| *fault <= at).max();
    let mut outages: BTreeMap<(u32, u64), Outage> = BTreeMap::new();
    let mut lost: BTreeMap<u32, u64> = BTreeMap::new();
    for session in run.header.sessions.iter().filter(|session| !session.slow) {
        // An attempt that failed heals nobody.
        if let Some(joined) = session.joined_us
            && let Some(from) = lost.remove(&session.viewer)
        {
            let outage = outages.entry((session.viewer, from)).or_default();
            (outage.open, outage.healed) = (false, Some(u64::from(joined).saturating_sub(from)));
        }
        let Some(ended) = session.ended_us.map(u64::from).filter(|_| !by_plan(session)) else { continue };
        if session.joined_us.is_some() {
            let fault = begun(ended);
            let from = fault.unwrap_or(ended);
            let outage = outages.entry((session.viewer, from)).or_default();
            outage.open = true;
            outage.noticed = outage.noticed.or_else(|| fault.map(|fault| ended - fault));
            lost.insert(session.viewer, from);
        }
    }
    if !faults.is_empty() {
        for (viewer, begin, end) in stale(run, index) {
            let Some(fault) = begun(u64::from(end)).filter(|fault| u64::from(begin) + u64::from(STALE_US) >= *fault)
            else {
                continue;
            };
            let outage = outages.entry((viewer, fault)).or_default();
            outage.healed = outage.healed.max(Some(u64::from(end) - fault));
        }
    }
    let mut all = Outages::default();
    for outage in outages.into_values() {
        all.noticed.extend(outage.noticed);
        all.healed.extend(outage.healed.filter(|_| !outage.open));
    }
    all
}

/// Left as planned, or a client that does not come back: nobody to be healed.
fn by_plan(session: &Session) -> bool {
    session
        .reason
        .as_deref()
        .is_some_and(|reason| reason == "left" || (reason.starts_with(GAVE_UP) && session.joined_us.is_none()))
}

/// (viewer, when the first change it lacked was committed, when it caught up), where that took long.
fn stale(run: &RunResult, index: &Index) -> Vec<(u32, u32, u32)> {
    let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
    let mut found = Vec::new();
    for (i, number) in run.arrivals.session.iter().enumerate() {
        let session = &run.header.sessions[*number as usize];
        if session.slow {
            continue;
        }
        let (version, at) = (run.arrivals.version[i], run.arrivals.at_us[i] & !SNAPSHOT);
        let Some(cursor) = seen.insert(session.viewer, version) else { continue };
        let lacked =
            (cursor.saturating_add(1)..=version).find_map(|version| committed(run, index, session.post, version));
        if let Some(since) = lacked.filter(|since| at.saturating_sub(*since) > STALE_US) {
            found.push((session.viewer, since, at));
        }
    }
    found
}

/// When a version was committed: as its event says, else not after its like was answered.
fn committed(run: &RunResult, index: &Index, post: u32, version: u32) -> Option<u32> {
    let event = index.event(post, version).map(|event| run.events.committed_us[event]);
    event.or_else(|| index.like(post, version).map(|like| run.likes.answered_us[like]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::synthetic::good;
    use crate::result::{Marker, Observed};

    fn of(run: &RunResult) -> Outages {
        outages(run, &Index::new(run).unwrap())
    }

    fn mark(run: &mut RunResult, markers: &[(u64, bool)]) {
        let marker =
            |(at_us, recovery): &(u64, bool)| Marker { at_us: *at_us, label: String::new(), recovery: *recovery };
        run.header.observed = Some(Observed { markers: markers.iter().map(marker).collect(), ..Observed::default() });
    }

    #[test]
    fn a_recovery_is_no_fault() {
        let mut run = good();
        mark(&mut run, &[(990_000, false), (995_000, true)]);
        assert_eq!(of(&run), Outages { noticed: vec![10_000], healed: vec![56_500] });
    }

    #[test]
    fn a_viewer_that_falls_behind_on_a_connection_that_stays_is_healed_when_it_catches_up() {
        let mut run = good();
        // Viewer 0 gets nothing between versions 100 (committed at 496 ms) and 250, which comes at 1.2462 s.
        let keep = |i: &usize| run.arrivals.session[*i] != 0 || !(101..250).contains(&run.arrivals.version[*i]);
        let keep: Vec<_> = (0..run.arrivals.version.len()).filter(keep).collect();
        for column in [&mut run.arrivals.session, &mut run.arrivals.version, &mut run.arrivals.at_us] {
            *column = keep.iter().map(|i| column[*i]).collect();
        }
        mark(&mut run, &[(500_000, false)]);
        // Viewer 1 is cut at 1 s, which is the same fault's.
        assert_eq!(of(&run), Outages { noticed: vec![500_000], healed: vec![746_200, 546_500] });
    }

    #[test]
    fn attempts_that_fail_count_into_the_time_to_heal() {
        let mut run = good();
        mark(&mut run, &[(990_000, false)]);
        let failed = Session {
            joined_us: None,
            ended_us: Some(1_020_000),
            reason: Some("refused".into()),
            ..run.header.sessions[2].clone()
        };
        run.header.sessions.insert(2, failed);
        run.arrivals.session.iter_mut().filter(|session| **session >= 2).for_each(|session| *session += 1);
        assert_eq!(of(&run), Outages { noticed: vec![10_000], healed: vec![56_500] });
    }

    #[test]
    fn who_never_comes_back_is_not_healed() {
        let mut run = good();
        mark(&mut run, &[(990_000, false)]);
        run.header.sessions[2].joined_us = None;
        run.header.sessions[2].reason = Some(format!("{GAVE_UP}refused"));
        run.header.sessions[2].ended_us = Some(1_010_000);
        run.arrivals.session.iter_mut().filter(|session| **session == 2).for_each(|session| *session = 3);
        assert_eq!(of(&run), Outages { noticed: vec![10_000], healed: vec![] });
    }
}
