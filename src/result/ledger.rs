//! The ledger: joins likes, events and arrivals into classes and proves that nothing was lost or counted twice.
//!
//! The generator only likes, so a post's count and its version rise together; a run on which somebody else liked too
//! does not close, and should not.

use std::collections::BTreeMap;

use super::index::Index;
use super::summary::Account;
use super::{GAVE_UP, Outcome, RunResult, SNAPSHOT};

/// How far two readings of one machine's clock may seem out of order, in µs.
const CLOCK_TOLERANCE_US: u32 = 1_000;

/// How long a pod may go on writing to (and counting) a connection that its viewer has lost, in µs; in a run with a pod
/// that was held, or a path that was black-holed, until the end: it learns of the loss only after that.
const NOTICE_US: u32 = 2_000_000;

/// Books every version that every session was to see, and checks every rule of RELIABILITY.md §7 that the file can decide.
#[must_use]
pub fn account(run: &RunResult) -> Account {
    let mut rules = Broken::default();
    let Some(index) = Index::new(run) else {
        let violations = vec!["the versions of a post span more than 2^26: the file is damaged".into()];
        return Account { violations, ..Account::default() };
    };
    let mut account = Account::default();
    check_likes(run, &mut account, &mut rules);
    check_events(run, &index, &mut rules);
    let cursors = check_arrivals(run, &index, &mut account, &mut rules);
    let slack = check_sessions(run, &index, &cursors, &mut account, &mut rules);
    compare_with_pods(run, slack, &mut account, &mut rules);
    account.violations = rules.sentences();
    account
}

/// Broken rules: how often, and the first instance in words.
#[derive(Default)]
struct Broken(BTreeMap<&'static str, (u64, String)>);

impl Broken {
    fn add(&mut self, rule: &'static str, instance: impl FnOnce() -> String) {
        self.0.entry(rule).or_insert_with(|| (0, instance())).0 += 1;
    }

    fn sentences(self) -> Vec<String> {
        let sentence = |(rule, (times, first))| match times {
            1 => format!("{rule}: {first}"),
            _ => format!("{rule}: {times} times, first: {first}"),
        };
        self.0.into_iter().map(sentence).collect()
    }
}

/// Likes against the posts' states before and after.
fn check_likes(run: &RunResult, account: &mut Account, rules: &mut Broken) {
    let posts = run.header.posts.len();
    let (mut ok, mut unknown) = (vec![0_u64; posts], vec![0_u64; posts]);
    let mut answered: Vec<Vec<u32>> = vec![Vec::new(); posts];
    for (i, outcome) in run.likes.outcome.iter().enumerate() {
        let (post, version) = (run.likes.post[i] as usize, run.likes.version[i]);
        if *outcome == Outcome::Ok as u8 {
            account.ok += 1;
            // Version 0: answered ok, and nothing was changed.
            if version > 0 {
                ok[post] += 1;
                answered[post].push(version);
            }
        } else if *outcome == Outcome::Unknown as u8 {
            account.unknown += 1;
            unknown[post] += 1;
        }
    }
    for (post, id) in run.header.posts.iter().enumerate() {
        let (first, last) = (run.header.initial[post], run.header.finals[post]);
        let delta = last.1.saturating_sub(first.1);
        account.version_delta += delta;
        let (ok, unknown) = (ok[post], unknown[post]);
        if last.1 < first.1 {
            rules.add("a post's version fell", || format!("post {id} from {} to {}", first.1, last.1));
        }
        if delta < ok || delta > ok + unknown {
            rules.add("a post's version did not rise by its likes", || {
                format!("post {id} by {delta}, with {ok} likes answered ok and {unknown} unknown")
            });
        }
        if i128::from(last.0) - i128::from(first.0) != i128::from(last.1) - i128::from(first.1) {
            rules.add("a post's count did not rise with its version", || {
                format!("post {id} from (likes, version) {first:?} to {last:?}, and nobody took a like back")
            });
        }
        let answered = &mut answered[post];
        answered.sort_unstable();
        for pair in answered.windows(2).filter(|pair| pair[0] == pair[1]) {
            rules.add("two likes were answered with one version", || format!("post {id} version {}", pair[0]));
        }
        for version in answered.iter().filter(|v| u64::from(**v) <= first.1 || u64::from(**v) > last.1) {
            rules.add("a like was answered ok with a version the post never had", || {
                format!("post {id} version {version}, which went from {} to {}", first.1, last.1)
            });
        }
    }
}

/// Events against each other, against the posts' states and against their likes.
fn check_events(run: &RunResult, index: &Index, rules: &mut Broken) {
    let (events, header) = (&run.events, &run.header);
    let name = |i: usize| format!("post {} version {}", header.posts[events.post[i] as usize], events.version[i]);
    for i in index.odd_events() {
        match index.event(events.post[i], events.version[i]) {
            Some(other) => rules.add("one version was seen as two different events", || {
                format!("{} with {} and with {} likes", name(i), events.likes[other], events.likes[i])
            }),
            None => rules.add("an event has a version the post never had", || name(i)),
        }
    }
    let one_clock = header.config.base_urls.iter().all(|url| is_local(url));
    for i in 0..events.version.len() {
        let (first, version) = (header.initial[events.post[i] as usize], u64::from(events.version[i]));
        if u64::from(events.likes[i]) + first.1 != first.0 + version {
            rules.add("an event's count does not belong to its version", || {
                format!("{} with {} likes, from (likes, version) {first:?}", name(i), events.likes[i])
            });
        }
        // An entry that covers nothing is a snapshot kept because it contradicts.
        if events.prev[i] >= events.version[i] && events.committed_us[i] > 0 {
            rules.add("an event covers no version", || format!("{} after {}", name(i), events.prev[i]));
        }
        let Some(like) = index.like(events.post[i], events.version[i]).filter(|_| one_clock) else { continue };
        let (sent, committed, answered) =
            (run.likes.sent_us[like], events.committed_us[i], run.likes.answered_us[like]);
        // A pod that is held between its COMMIT and its look at the clock stamps late; a like sent again has its answer from another.
        let late = committed > answered.saturating_add(CLOCK_TOLERANCE_US) && header.generator.retried == 0;
        if late || committed + CLOCK_TOLERANCE_US < sent {
            rules.add("a like was not committed between its sending and its answer", || {
                format!("{}: sent {sent}, committed {committed}, answered {answered} µs", name(i))
            });
        }
    }
}

/// Walks the arrival matrix; returns the last version of each session (none: it had no snapshot).
fn check_arrivals(run: &RunResult, index: &Index, account: &mut Account, rules: &mut Broken) -> Vec<Option<u32>> {
    let header = &run.header;
    let one_clock = header.config.base_urls.iter().all(|url| is_local(url));
    let mut cursors: Vec<Option<u32>> = vec![None; header.sessions.len()];
    for (i, number) in run.arrivals.session.iter().enumerate() {
        let (session, version, at) =
            (&header.sessions[*number as usize], run.arrivals.version[i], run.arrivals.at_us[i]);
        let name =
            || format!("viewer {} session {number} post {}", session.viewer, header.posts[session.post as usize]);
        let snapshot = at & SNAPSHOT != 0;
        let slot = &mut cursors[*number as usize];
        // A replay: the first event goes on where the viewer was when it came back.
        let replayed = || {
            let from = u32::try_from(session.resumed_from?).ok()?;
            let event = index.event(session.post, version).filter(|_| !snapshot)?;
            (run.events.prev[event] <= from && from < version).then_some(from)
        };
        let Some(cursor) = slot.or_else(replayed) else {
            if !snapshot {
                rules.add("a session did not start with a snapshot", || format!("{} with {version}", name()));
            } else if u64::from(version) != session.joined_version {
                rules.add("a session's first snapshot is not the one it joined with", || {
                    format!("{}: {version}, joined with {}", name(), session.joined_version)
                });
            }
            let from = session.resumed_from.unwrap_or(u64::from(version));
            if u64::from(version) < from {
                rules.add("a resumed session started below what its viewer had seen", || {
                    format!("{} with {version}, seen {from}", name())
                });
            }
            account.snapshot += u64::from(version).saturating_sub(from);
            *slot = Some(version);
            continue;
        };
        if version < cursor || (version == cursor && !snapshot) {
            rules.add("versions did not strictly increase within a session", || {
                format!("{}: {version} after {cursor}", name())
            });
            continue;
        }
        *slot = Some(version);
        if snapshot {
            account.snapshot += u64::from(version - cursor);
            continue;
        }
        let Some(event) = index.event(session.post, version) else {
            rules.add("an update arrived that is no recorded event", || format!("{} version {version}", name()));
            continue;
        };
        let (prev, committed) = (run.events.prev[event], run.events.committed_us[event]);
        account.missing += u64::from(prev.saturating_sub(cursor));
        account.received += u64::from(version.saturating_sub(prev.max(cursor)));
        if one_clock && at + CLOCK_TOLERANCE_US < committed {
            rules.add("an event arrived before it was committed", || {
                format!("{} version {version}: committed {committed}, arrived {at} µs", name())
            });
        }
    }
    cursors
}

/// Ends of sessions and of viewers; returns how many versions pods may have counted as left out on lost connections.
fn check_sessions(
    run: &RunResult,
    index: &Index,
    cursors: &[Option<u32>],
    account: &mut Account,
    rules: &mut Broken,
) -> u64 {
    let header = &run.header;
    let mut last: BTreeMap<u32, usize> = BTreeMap::new();
    for (i, session) in header.sessions.iter().enumerate() {
        last.insert(session.viewer, i);
    }
    let held = header.observed.iter().flat_map(|observed| &observed.markers).any(|marker| marker.recovery);
    let mut slack = 0;
    for (session, cursor) in header.sessions.iter().zip(cursors) {
        if let (Some(ended), Some(cursor)) = (session.ended_us, cursor) {
            let notice = if held { u32::MAX } else { NOTICE_US };
            let newest = index.newest_until(session.post, ended.saturating_add(notice));
            slack += u64::from(newest.saturating_sub(*cursor));
        }
    }
    for (viewer, i) in last {
        let session = &header.sessions[i];
        if session.reason.as_deref().is_some_and(|reason| reason == "left" || reason.starts_with(GAVE_UP)) {
            continue;
        }
        account.live_viewers += 1;
        let last = header.finals[session.post as usize].1;
        let from = cursors[i].map(u64::from).or(session.resumed_from);
        if cursors[i].is_some() && session.ended_us.is_none() && from == Some(last) {
            account.on_final += 1;
            continue;
        }
        account.lost += from.map_or(0, |from| last.saturating_sub(from));
        rules.add("a live viewer did not end on the final value", || {
            let state = session.reason.as_deref().unwrap_or("connected");
            let seen = from.map_or("nothing".into(), |v| v.to_string());
            format!("viewer {viewer} ({state}) saw {seen} of {last}")
        });
    }
    account.expected = account.received + account.snapshot + account.missing + account.lost;
    slack
}

/// What the generator missed against what the pods say they left out; and the classes of it.
fn compare_with_pods(run: &RunResult, slack: u64, account: &mut Account, rules: &mut Broken) {
    let pods = &run.header.pods;
    let sum = |field: fn(&super::PodCounters) -> u64| pods.iter().map(field).sum::<u64>();
    account.superseded = sum(|pod| pod.superseded);
    account.dropped = sum(|pod| pod.dropped);
    account.pods_missing = sum(|pod| pod.conflated) + account.superseded + account.dropped;
    let (missing, theirs) = (account.missing, account.pods_missing);
    if !pods.is_empty() && pods.iter().all(|pod| pod.complete) {
        let agree = theirs >= missing && theirs <= missing + slack;
        account.counters_agree = Some(agree);
        account.lost += missing.saturating_sub(theirs);
        if !agree {
            rules.add("the pods' counters and the generator disagree about versions left out", || {
                format!(
                    "the generator missed {missing}, the pods left out {theirs} (+ at most {slack} on lost connections)"
                )
            });
        }
    }
    // What lost connections hide makes the pods' sums larger than what was missed: the classes add up to the latter.
    let known = if account.counters_agree == Some(false) { missing.min(theirs) } else { missing };
    account.superseded = account.superseded.min(known);
    account.dropped = account.dropped.min(known - account.superseded);
    account.conflated = known - account.superseded - account.dropped;
}

/// Is this URL on the generator's own machine, so that the pods' clock is ours?
fn is_local(url: &str) -> bool {
    let authority = url.split("://").last().unwrap_or_default();
    ["127.", "localhost", "[::1]"].iter().any(|local| authority.starts_with(local))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::synthetic::{LIKES, VIEWERS, good};

    /// Breaks a good history and says which rule must find it.
    #[track_caller]
    fn breaks(rule: &str, mutate: impl FnOnce(&mut RunResult)) {
        let mut run = good();
        mutate(&mut run);
        let found = account(&run).violations;
        assert!(found.iter().any(|sentence| sentence.contains(rule)), "expected {rule:?}, found {found:?}");
    }

    /// Index of the arrival of `version` at session 0.
    fn at(run: &RunResult, version: u32) -> usize {
        (0..run.arrivals.version.len())
            .find(|i| run.arrivals.session[*i] == 0 && run.arrivals.version[*i] == version)
            .unwrap()
    }

    fn remove(run: &mut RunResult, arrival: usize) {
        let a = &mut run.arrivals;
        a.session.remove(arrival);
        a.version.remove(arrival);
        a.at_us.remove(arrival);
    }

    #[test]
    fn a_good_history_closes_and_its_classes_add_up() {
        let a = account(&good());
        assert_eq!(a.violations, Vec::<String>::new());
        assert_eq!(a.expected, u64::from(LIKES * VIEWERS));
        assert_eq!((a.received, a.conflated, a.snapshot), (u64::from(LIKES * VIEWERS) - 11, 1, 10));
        assert_eq!((a.superseded, a.dropped, a.lost, a.missing, a.pods_missing), (0, 0, 0, 1, 1));
        assert_eq!((a.counters_agree, a.live_viewers, a.on_final), (Some(true), 3, 3));
        assert_eq!((a.ok, a.unknown, a.version_delta), (u64::from(LIKES), 0, u64::from(LIKES)));
        assert_eq!(a.expected, a.received + a.conflated + a.superseded + a.dropped + a.snapshot + a.lost);
    }

    /// Makes the session that came back at 210, having seen 200, one that got the events between one by one.
    fn replayed(run: &mut RunResult) {
        let back = run.header.sessions.iter().position(|session| session.resumed_from == Some(200)).unwrap();
        let number = u32::try_from(back).unwrap();
        let a = &mut run.arrivals;
        let first = a.session.iter().position(|session| *session == number).unwrap();
        let at = a.at_us[first] & !SNAPSHOT;
        (a.version[first], a.at_us[first]) = (201, at);
        for (i, version) in (202..=210).enumerate() {
            a.session.insert(first + 1 + i, number);
            a.version.insert(first + 1 + i, version);
            a.at_us.insert(first + 1 + i, at);
        }
        run.header.sessions[back].joined_version = 201;
    }

    #[test]
    fn a_replay_closes_and_counts_as_received() {
        let mut run = good();
        replayed(&mut run);
        let a = account(&run);
        assert_eq!(a.violations, Vec::<String>::new());
        assert_eq!((a.received, a.snapshot), (u64::from(LIKES * VIEWERS) - 1, 0));
        breaks("did not start with a snapshot", |run| {
            replayed(run);
            // Without its first event it begins behind a hole.
            let back = run.header.sessions.iter().position(|session| session.resumed_from == Some(200)).unwrap();
            let first = run.arrivals.session.iter().position(|session| *session as usize == back).unwrap();
            remove(run, first);
        });
    }

    #[test]
    fn a_dropped_arrival_is_found() {
        breaks("disagree", |run| remove(run, at(run, 50)));
    }

    #[test]
    fn a_duplicated_arrival_is_found() {
        breaks("strictly increase", |run| {
            let (i, a) = (at(run, 50), &mut run.arrivals);
            a.session.insert(i, a.session[i]);
            a.version.insert(i, a.version[i]);
            a.at_us.insert(i, a.at_us[i]);
        });
    }

    #[test]
    fn a_commit_may_be_stamped_after_the_answer_where_likes_were_sent_again() {
        let mut run = good();
        run.events.committed_us[70] = run.likes.answered_us[70] + 1_000_000;
        run.header.generator.retried = 1;
        assert!(
            !account(&run).violations.iter().any(|v| v.contains("between its sending")),
            "{:?}",
            account(&run).violations
        );
    }

    #[test]
    fn swapped_arrivals_are_found() {
        breaks("strictly increase", |run| {
            let i = at(run, 50);
            run.arrivals.version.swap(i, i + 1);
        });
    }

    #[test]
    fn a_changed_count_is_found() {
        breaks("count does not belong", |run| run.events.likes[70] += 1);
        breaks("count did not rise", |run| run.header.finals[0].0 -= 1);
    }

    #[test]
    fn two_counts_for_one_version_are_found() {
        breaks("two different events", |run| {
            let e = &mut run.events;
            e.post.push(0);
            e.version.push(70);
            e.prev.push(70);
            e.likes.push(71);
            e.committed_us.push(0);
        });
    }

    #[test]
    fn a_cut_tail_is_found() {
        breaks("did not end on the final value", |run| {
            let last = run.arrivals.version.len() - 1;
            remove(run, last);
        });
        breaks("did not end on the final value", |run| {
            let first = run.arrivals.session.iter().position(|s| *s == 3).unwrap();
            let a = &mut run.arrivals;
            a.session.truncate(first);
            a.version.truncate(first);
            a.at_us.truncate(first);
        });
    }

    #[test]
    fn a_cut_tail_is_booked_as_lost() {
        let mut run = good();
        let last = run.arrivals.version.len() - 1;
        remove(&mut run, last);
        let a = account(&run);
        assert_eq!((a.lost, a.expected), (1, u64::from(LIKES * VIEWERS)));
    }

    #[test]
    fn an_altered_pod_counter_is_found() {
        breaks("disagree", |run| run.header.pods[0].conflated = 0);
        // More than lost connections can explain.
        breaks("disagree", |run| run.header.pods[0].superseded = 1_000);
    }

    #[test]
    fn a_lost_answer_is_found() {
        breaks("did not rise by its likes", |run| {
            let l = &mut run.likes;
            l.due_us.remove(9);
            l.sent_us.remove(9);
            l.answered_us.remove(9);
            l.post.remove(9);
            l.version.remove(9);
            l.outcome.remove(9);
        });
        breaks("did not rise by its likes", |run| run.likes.outcome[9] = Outcome::Failed as u8);
    }

    #[test]
    fn an_unknown_like_may_or_may_not_have_been_counted() {
        let mut run = good();
        run.likes.outcome[9] = Outcome::Unknown as u8;
        run.likes.version[9] = 0;
        let a = account(&run);
        assert_eq!((a.violations, a.ok, a.unknown), (Vec::new(), u64::from(LIKES) - 1, 1));
    }

    #[test]
    fn a_version_answered_twice_is_found() {
        breaks("answered with one version", |run| run.likes.version[9] = 11);
    }

    #[test]
    fn an_answer_beyond_the_final_version_is_found() {
        breaks("a version the post never had", |run| run.likes.version[399] = 500);
    }

    #[test]
    fn a_commit_before_its_like_was_sent_or_after_its_answer_is_found() {
        breaks("between its sending and its answer", |run| run.events.committed_us[99] -= 5_000);
        breaks("between its sending and its answer", |run| run.events.committed_us[99] += 5_000);
    }

    #[test]
    fn an_arrival_before_its_commit_is_found() {
        breaks("before it was committed", |run| {
            let i = at(run, 50);
            run.arrivals.at_us[i] -= 5_000;
        });
    }

    #[test]
    fn a_resume_below_what_was_seen_is_found() {
        breaks("started below", |run| run.header.sessions[2].resumed_from = Some(215));
    }

    #[test]
    fn a_change_before_the_snapshot_is_found() {
        breaks("did not start with a snapshot", |run| run.arrivals.at_us[0] = 0);
    }

    #[test]
    fn a_viewer_that_never_came_back_is_found_and_one_that_left_is_not() {
        let cut = |run: &mut RunResult, reason: &str| {
            run.header.sessions.truncate(3);
            run.header.sessions[2] = crate::result::Session {
                ended_us: Some(1_900_000),
                reason: Some(reason.into()),
                ..run.header.sessions[2].clone()
            };
            let keep = run.arrivals.session.iter().position(|s| *s == 3).unwrap();
            let a = &mut run.arrivals;
            a.session.truncate(keep);
            a.version.truncate(keep);
            a.at_us.truncate(keep);
        };
        breaks("did not end on the final value", |run| cut(run, "eof"));
        let mut run = good();
        cut(&mut run, "left");
        let a = account(&run);
        assert_eq!((a.violations, a.live_viewers), (Vec::new(), 1));
        // An emulated client that does not come back by its own rules is no live viewer either.
        let mut run = good();
        cut(&mut run, "gave up: refused");
        assert_eq!(account(&run).violations, Vec::<String>::new());
    }

    #[test]
    fn without_a_killed_pods_counters_nothing_is_claimed() {
        let mut run = good();
        run.header.pods[0] = super::super::PodCounters { complete: false, ..Default::default() };
        let a = account(&run);
        assert_eq!((a.counters_agree, a.violations, a.conflated), (None, Vec::new(), 1));
    }
}
