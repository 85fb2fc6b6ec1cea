//! Makes one run of the parts that several generators made of it: exactly what one generator would have written.
//!
//! Parts are told apart by [`Part`]: of the same schedule and the same viewers each takes every n-th. Columns are joined,
//! times are put on the earliest origin; only the quantiles of the generator's own health cannot be joined, and are those
//! of the worst part.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{EventColumns, GeneratorHealth, RunResult, SNAPSHOT};

/// Which part of a run: `2/3` is the second of three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// Its number, from 1.
    pub number: u32,
    /// How many there are.
    pub of: u32,
}

impl Part {
    /// The whole run.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// Whether this is all of it.
    #[must_use]
    pub const fn is_whole(self) -> bool {
        self.of == 1
    }

    /// Whether the `i`-th like, viewer or user (from 0) is this part's.
    #[must_use]
    pub const fn takes(self, i: usize) -> bool {
        i % self.of as usize == self.number as usize - 1
    }

    /// How many of `count` are this part's.
    #[must_use]
    pub const fn share(self, count: u32) -> u32 {
        count / self.of + if count % self.of >= self.number { 1 } else { 0 }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no part of a run: write for example 2/3 for the second of three");
        let (number, of) = text.split_once('/').ok_or_else(bad)?;
        let (number, of) = (number.parse().map_err(|_| bad())?, of.parse().map_err(|_| bad())?);
        if number < 1 || number > of || of > 1_000 {
            return Err(bad());
        }
        Ok(Self { number, of })
    }
}

/// The run whose parts these are.
///
/// # Errors
/// When they are not all parts of one run: a part is missing or there twice, or they disagree in what must be equal.
pub fn merge(mut parts: Vec<RunResult>) -> anyhow::Result<RunResult> {
    let part = |run: &RunResult| run.header.config.part.unwrap_or(Part::WHOLE);
    parts.sort_by_key(part);
    let of = parts.first().map_or(1, |first| part(first).of);
    let expected = (1..=of).map(|number| Part { number, of });
    let found: Vec<_> = parts.iter().map(part).collect();
    if !expected.eq(found.iter().copied()) {
        let found: Vec<_> = found.iter().map(Part::to_string).collect();
        bail!("{of} parts of a run are needed, and these are there: {}", found.join(", "));
    }
    let origin = parts.iter().map(|part| part.header.origin_us).min().unwrap_or_default();
    for (number, run) in (1..).zip(&mut parts) {
        shift(run, origin).with_context(|| format!("part {number}"))?;
    }
    let mut parts = parts.into_iter();
    let mut whole = parts.next().context("no part of a run")?;
    whole.header.config.part = None;
    let mut health = vec![whole.header.generator.clone()];
    let mut events = Events::default();
    events.add(&whole.events);
    for (number, mut run) in (2..).zip(parts) {
        run.header.config.part = None;
        same(&whole, &run).with_context(|| format!("part {number} is of another run than part 1"))?;
        let before = u32::try_from(whole.header.sessions.len()).context("too many sessions")?;
        whole.header.sessions.append(&mut run.header.sessions);
        whole.arrivals.session.extend(run.arrivals.session.iter().map(|session| session + before));
        whole.arrivals.version.append(&mut run.arrivals.version);
        whole.arrivals.at_us.append(&mut run.arrivals.at_us);
        whole.header.converged &= run.header.converged;
        whole.header.pods.append(&mut run.header.pods);
        events.add(&run.events);
        let (ours, mut theirs) = (&mut whole.likes, run.likes);
        ours.due_us.append(&mut theirs.due_us);
        ours.sent_us.append(&mut theirs.sent_us);
        ours.answered_us.append(&mut theirs.answered_us);
        ours.post.append(&mut theirs.post);
        ours.version.append(&mut theirs.version);
        ours.outcome.append(&mut theirs.outcome);
        health.push(run.header.generator);
    }
    whole.events = events.columns();
    in_due_order(&mut whole);
    whole.header.generator = joined(&health);
    Ok(whole)
}

/// Puts a part's times on another origin, which is not later than its own.
fn shift(run: &mut RunResult, origin_us: u64) -> anyhow::Result<()> {
    let by = run.header.origin_us - origin_us;
    let late = || "began so much later than the others that its times cannot be kept";
    let by32 = u32::try_from(by).ok().filter(|by| *by < SNAPSHOT).with_context(late)?;
    let header = &mut run.header;
    header.origin_us = origin_us;
    for end in [&mut header.warmup_end_us, &mut header.measure_end_us, &mut header.cooldown_end_us] {
        *end += by;
    }
    for session in &mut header.sessions {
        session.attempted_us += by32;
        session.joined_us = session.joined_us.map(|at| at + by32);
        session.ended_us = session.ended_us.map(|at| at + by32);
    }
    let likes = &mut run.likes;
    for at in likes.due_us.iter_mut().chain(&mut likes.sent_us) {
        *at += by32;
    }
    // Zero is no time: a like without an answer, a snapshot that was kept as a contradiction.
    for at in likes.answered_us.iter_mut().chain(&mut run.events.committed_us).filter(|at| **at > 0) {
        *at += by32;
    }
    for at in &mut run.arrivals.at_us {
        let moved = (*at & !SNAPSHOT).checked_add(by32).filter(|moved| *moved < SNAPSHOT).with_context(late)?;
        *at = moved | *at & SNAPSHOT;
    }
    Ok(())
}

/// Refuses parts that disagree.
fn same(one: &RunResult, other: &RunResult) -> anyhow::Result<()> {
    let (a, b) = (&one.header, &other.header);
    ensure!(a.pushlab == b.pushlab, "they were made by pushlab {} and {}", a.pushlab, b.pushlab);
    ensure!(a.config == b.config, "they were asked for different things");
    ensure!(a.posts == b.posts, "their posts are {:?} and {:?}", a.posts, b.posts);
    ensure!(a.initial == b.initial, "before the first like they saw {:?} and {:?}", a.initial, b.initial);
    ensure!(a.finals == b.finals, "after the last like they saw {:?} and {:?}", a.finals, b.finals);
    let ends = |header: &super::Header| [header.warmup_end_us, header.measure_end_us, header.cooldown_end_us];
    ensure!(ends(a) == ends(b), "their phases end at {:?} and {:?} µs", ends(a), ends(b));
    let viewers: std::collections::HashSet<_> = a.sessions.iter().map(|session| session.viewer).collect();
    if let Some(session) = b.sessions.iter().find(|session| viewers.contains(&session.viewer)) {
        bail!("both have viewer {}", session.viewer);
    }
    Ok(())
}

/// What an event is, apart from its post and version: previous version, likes, commit.
type Event = (u32, u32, u32);

/// Every distinct event of all parts: one that two parts saw is one, and a contradiction between them stays one.
#[derive(Default)]
struct Events(BTreeMap<(u32, u32), Vec<Event>>);

impl Events {
    fn add(&mut self, columns: &EventColumns) {
        for i in 0..columns.version.len() {
            let event = (columns.prev[i], columns.likes[i], columns.committed_us[i]);
            let seen = self.0.entry((columns.post[i], columns.version[i])).or_default();
            if !seen.contains(&event) {
                seen.push(event);
            }
        }
    }

    fn columns(self) -> EventColumns {
        let mut columns = EventColumns::default();
        for ((post, version), seen) in self.0 {
            for (prev, likes, committed) in seen {
                columns.post.push(post);
                columns.version.push(version);
                columns.prev.push(prev);
                columns.likes.push(likes);
                columns.committed_us.push(committed);
            }
        }
        columns
    }
}

/// Likes as one generator writes them: in due order.
fn in_due_order(run: &mut RunResult) {
    let likes = &mut run.likes;
    let mut order: Vec<usize> = (0..likes.due_us.len()).collect();
    order.sort_by_key(|i| likes.due_us[*i]);
    for column in [&mut likes.due_us, &mut likes.sent_us, &mut likes.answered_us, &mut likes.post, &mut likes.version] {
        *column = order.iter().map(|i| column[*i]).collect();
    }
    likes.outcome = order.iter().map(|i| likes.outcome[*i]).collect();
}

/// Sums, and of what cannot be summed the worst.
fn joined(parts: &[GeneratorHealth]) -> GeneratorHealth {
    let mut all = GeneratorHealth { kernel_stamps: true, ..GeneratorHealth::default() };
    let worst = |mine: &mut [f64], theirs: &[f64]| {
        mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine = mine.max(*theirs));
    };
    for (number, part) in (1..).zip(parts) {
        worst(&mut all.schedule_lag_us, &part.schedule_lag_us);
        worst(&mut all.stamp_to_read_us, &part.stamp_to_read_us);
        worst(&mut all.p90_us, &part.p90_us);
        all.window_s = all.window_s.max(part.window_s);
        // Two parts on one machine see the same theft.
        all.stolen_s = all.stolen_s.max(part.stolen_s);
        all.cpu_s += part.cpu_s;
        all.awake_s += part.awake_s;
        all.cores += part.cores;
        all.kernel_stamps &= part.kernel_stamps;
        all.received_bytes += part.received_bytes;
        all.viewer_connections += part.viewer_connections;
        all.liker_connections += part.liker_connections;
        all.fds += part.fds;
        all.retried += part.retried;
        let of = |problem: &String| if parts.len() > 1 { format!("part {number}: {problem}") } else { problem.clone() };
        all.problems.extend(part.problems.iter().map(of));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::synthetic::good;
    use crate::result::{ledger, summary};

    /// What `of` generators would have written of the good history, each with a clock of its own.
    fn parts(of: u32) -> Vec<RunResult> {
        let whole = good();
        let all = (1..=of).map(|number| {
            let part = Part { number, of };
            let mut run = whole.clone();
            run.header.config.part = Some(part);
            let mine = |likes: &[u32]| {
                likes.iter().enumerate().filter(|(i, _)| part.takes(*i)).map(|(_, x)| *x).collect::<Vec<_>>()
            };
            let likes = &mut run.likes;
            for column in
                [&mut likes.due_us, &mut likes.sent_us, &mut likes.answered_us, &mut likes.post, &mut likes.version]
            {
                *column = mine(column);
            }
            likes.outcome.truncate(likes.due_us.len());
            let sessions = (0_u32..).zip(&whole.header.sessions);
            let kept: Vec<_> = sessions.filter(|(_, s)| part.takes(s.viewer as usize)).map(|(i, _)| i).collect();
            run.header.sessions = kept.iter().map(|i| whole.header.sessions[*i as usize].clone()).collect();
            run.arrivals = super::super::ArrivalColumns::default();
            for (i, session) in whole.arrivals.session.iter().enumerate() {
                let Some(at) = kept.iter().position(|kept| kept == session) else { continue };
                run.arrivals.session.push(u32::try_from(at).unwrap());
                run.arrivals.version.push(whole.arrivals.version[i]);
                run.arrivals.at_us.push(whole.arrivals.at_us[i]);
            }
            if number > 1 {
                run.header.pods.clear();
            }
            run
        });
        all.collect()
    }

    /// Moves a part's own origin to an earlier time, as if its clock had begun then.
    fn begun_earlier(mut run: RunResult, by: u64) -> RunResult {
        let origin = run.header.origin_us - by;
        shift(&mut run, origin).unwrap();
        run
    }

    #[test]
    fn the_ledger_of_merged_parts_is_the_ledger_of_one() {
        let whole = good();
        for of in [1, 2, 3] {
            for earlier in [0, 123_456] {
                let given = parts(of).into_iter().zip(1_u64..).map(|(run, i)| begun_earlier(run, i * earlier));
                // The order in which they come does not matter.
                let given: Vec<_> = given.collect::<Vec<_>>().into_iter().rev().collect();
                let merged = merge(given).unwrap();
                assert_eq!(ledger::account(&merged), ledger::account(&whole), "{of} parts");
                let expected = begun_earlier(whole.clone(), u64::from(of) * earlier);
                assert_eq!(merged.likes, expected.likes, "{of} parts");
                assert_eq!(merged.events, expected.events);
                let by_viewer = |run: &RunResult| {
                    let session = |i: usize| &run.header.sessions[run.arrivals.session[i] as usize];
                    let mut all: Vec<_> = (0..run.arrivals.version.len())
                        .map(|i| (session(i).viewer, session(i).attempted_us, i, run.arrivals.at_us[i]))
                        .collect();
                    all.sort_unstable();
                    all.into_iter().map(|(viewer, at, _, arrived)| (viewer, at, arrived)).collect::<Vec<_>>()
                };
                assert_eq!(by_viewer(&merged), by_viewer(&expected));
                let quantiles = |run: &RunResult| {
                    let summary = summary::summarize("", run);
                    (summary.commit_to_arrival, summary.due_to_arrival, summary.commit_to_last, summary.account)
                };
                assert_eq!(quantiles(&merged), quantiles(&whole));
            }
        }
    }

    #[test]
    fn what_is_not_one_run_is_refused() {
        let said = |parts: Vec<RunResult>| format!("{:#}", merge(parts).unwrap_err());
        let mut three = parts(3);
        three.pop();
        assert_eq!(said(three), "3 parts of a run are needed, and these are there: 1/3, 2/3");
        let mut two = parts(2);
        two[1].header.config.seed = 5;
        assert!(said(two).contains("different things"));
        let mut two = parts(2);
        two[1].header.finals[0].1 += 1;
        assert!(said(two).contains("after the last like"));
        let mut two = parts(2);
        two[1].header.measure_end_us += 1;
        assert!(said(two).contains("phases end"));
        let mut two = parts(2);
        two[1].header.sessions[0].viewer = 0;
        assert!(said(two).contains("both have viewer 0"));
    }

    #[test]
    fn a_contradiction_between_parts_stays_one() {
        let mut two = parts(2);
        two[1].events.likes[10] += 1;
        let account = ledger::account(&merge(two).unwrap());
        assert!(account.violations.iter().any(|v| v.contains("two different events")), "{account:?}");
    }

    #[test]
    fn parts_share_everything_without_rest_or_overlap() {
        for count in [0, 1, 7, 100] {
            let of = 3;
            let parts = (1..=of).map(|number| Part { number, of });
            let taken: usize = parts.clone().map(|part| (0..count).filter(|i| part.takes(*i)).count()).sum();
            let count = u32::try_from(count).unwrap();
            assert_eq!((taken as u32, parts.map(|part| part.share(count)).sum::<u32>()), (count, count));
        }
        assert_eq!("2/3".parse::<Part>().unwrap().to_string(), "2/3");
        for bad in ["0/1", "2/1", "x", "1/", "1/1001"] {
            assert!(bad.parse::<Part>().is_err(), "{bad}");
        }
    }
}
