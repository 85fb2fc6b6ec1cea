//! Mailboxes that keep more than the newest, and new epochs.

use std::num::NonZeroUsize;

use super::*;
use crate::domain::unix_micros;
use crate::hub::Mailbox;

fn depth(depth: usize) -> NonZeroUsize {
    NonZeroUsize::new(depth).unwrap()
}

fn with(mailbox: Mailbox) -> Hub<Lines> {
    hub(&EngineOptions { mailbox, ..EngineOptions::default() })
}

/// Committed just now: the sum of so many latencies since 1970 would not fit.
fn fresh(version: u64) -> Update {
    match changed(1, version - 1, version) {
        Update::Changed(event) => Update::Changed(LikesChanged { committed_at: unix_micros(), ..event }),
        other => other,
    }
}

/// The versions in what a viewer was sent.
fn versions(text: &str) -> Vec<u64> {
    text.lines().filter_map(|line| line.strip_prefix("1:")?.parse().ok()).collect()
}

#[test]
fn a_queue_sends_each_update_of_a_burst() {
    for mailbox in [Mailbox::DropOldest(depth(50)), Mailbox::Disconnect(depth(50))] {
        let hub = with(mailbox);
        let mut readers: Vec<_> = (0..5).map(|_| join(&hub, 0, vec![viewer(1, 0, 1, 0)])).collect();
        (1..=50).for_each(|version| hub.publish(changed(1, version - 1, version), 0));
        for reader in &mut readers {
            assert_eq!(versions_until(reader, 50), (1..=50).collect::<Vec<_>>());
        }
        // One that comes late, from within the ring.
        let mut late = join(&hub, 0, vec![viewer(1, 0, 1, 47)]);
        assert_eq!(versions_until(&mut late, 50), [48, 49, 50]);
        eventually("counts", || hub.counters().of(Transport::Sse).deliveries == 5 * 50 + 3);
        let counters = *hub.counters().of(Transport::Sse);
        assert_eq!((counters.dropped, counters.conflated, counters.superseded), (0, 0, 0));
    }
}

#[test]
fn drop_oldest_keeps_the_newest_of_a_stalled_reader_and_counts_the_rest() {
    let hub = with(Mailbox::DropOldest(depth(8)));
    let mut stalled = join(&hub, 4096, vec![viewer(1, 0, 1, 0)]);
    let mut quick = join(&hub, 0, vec![viewer(1, 0, 1, 0)]);
    const LAST: u64 = 20_000;
    for version in 1..=LAST {
        hub.publish(fresh(version), 0);
        if version % 8 == 0 {
            versions_until(&mut quick, version);
        }
    }
    let seen = versions_until(&mut stalled, LAST);
    assert!(seen.len() < 4_000, "{} stale events were buffered", seen.len());
    assert_eq!(seen[seen.len() - 8..], (LAST - 7..=LAST).collect::<Vec<_>>(), "the newest eight waited");
    eventually("counts", || {
        let c = *hub.counters().of(Transport::Sse);
        c.deliveries + c.dropped == 2 * LAST && c.dropped == LAST - seen.len() as u64
    });
    assert_eq!(hub.counters().of(Transport::Sse).conflated, 0);
}

#[test]
fn disconnect_ends_a_stalled_reader_that_would_lose_an_update_and_nobody_else() {
    let hub = with(Mailbox::Disconnect(depth(8)));
    let mut stalled = join(&hub, 4096, vec![viewer(1, 0, 1, 0)]);
    let mut quick = join(&hub, 0, vec![viewer(1, 0, 1, 0)]);
    const LAST: u64 = 8_000;
    for version in 1..=LAST {
        hub.publish(fresh(version), 0);
        if version % 8 == 0 {
            assert_eq!(versions_until(&mut quick, version).len(), 8, "the quick one gets each");
        }
    }
    let mut rest = String::new();
    stalled.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("\nmailbox_full\n"), "{}", &rest[rest.len().saturating_sub(40)..]);
    let seen = versions(&rest);
    assert!(seen.iter().enumerate().all(|(i, version)| *version == i as u64 + 1), "nothing is lost before the end");
    drop(stalled);
    eventually("closed", || closed(&hub, CloseReason::MailboxFull) == 1);
    let counters = *hub.counters().of(Transport::Sse);
    assert_eq!((counters.dropped, counters.closed_total()), (0, 1));
}

#[test]
fn what_is_superseded_is_not_called_dropped() {
    let hub = with(Mailbox::DropOldest(depth(2)));
    let mut reader = join(&hub, 0, vec![viewer(1, 0, 1, 10)]);
    hub.publish(changed(1, 12, 13), 2);
    assert_eq!(versions_until(&mut reader, 13), [13]);
    hub.publish(Update::Snapshot(LikesState { post_id: post(1), likes: 1, version: Version(20) }), 0);
    hub.publish(changed(1, 20, 21), 0);
    assert_eq!(versions_until(&mut reader, 21), [20, 21]);
    let counters = *hub.counters().of(Transport::Sse);
    assert_eq!((counters.superseded, counters.dropped), (2, 0));
}

#[test]
fn a_new_epoch_sends_everybody_back_and_mixes_nothing() {
    for mailbox in [Mailbox::Conflate, Mailbox::DropOldest(depth(8))] {
        let hub = with(mailbox);
        let mut old: Vec<_> = (0..20).map(|_| join(&hub, 0, vec![viewer(1, 0, 1, 0)])).collect();
        hub.publish(changed(1, 39, 40), 39);
        old.iter_mut().for_each(|reader| assert_eq!(versions_until(reader, 40), [40]));
        hub.renew(Epoch(9), Duration::from_millis(200));
        let late = join(&hub, 0, vec![viewer(1, 0, 1, 40)]);
        let mut new = join(&hub, 0, vec![Subscription { epoch: Epoch(9), ..viewer(1, 0, 1, 3) }]);
        hub.publish(changed(1, 3, 4), 0);
        assert_eq!(versions_until(&mut new, 4), [4], "lower than in the epoch before");
        for mut reader in old.into_iter().chain([late]) {
            let mut rest = String::new();
            reader.read_to_string(&mut rest).unwrap();
            assert!(rest.ends_with("new_epoch\n") && versions(&rest).is_empty(), "{rest:?}");
        }
        eventually("closed", || closed(&hub, CloseReason::NewEpoch) == 21);
        hub.publish(changed(1, 4, 5), 0);
        assert_eq!(versions_until(&mut new, 5), [5], "who came in the new epoch stays");
    }
}
