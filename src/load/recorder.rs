//! What viewers saw, kept small: per arrival 8 bytes, per event once, per session once.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hdrhistogram::Histogram;

use super::clock::Clock;
use super::live::{Arrival, Live};
use crate::domain::{LikesChanged, LikesState, Update};
use crate::result::{ArrivalColumns, EventColumns, SNAPSHOT, Session};

/// What all threads of the generator look at.
#[derive(Debug)]
pub(super) struct Shared {
    /// The clock.
    pub(super) clock: Clock,
    /// Start and end of the measured window, µs after the origin; before they are known: never.
    pub(super) window: [AtomicU32; 2],
    /// Viewers that have their snapshot and are connected.
    pub(super) joined: AtomicU32,
    /// Viewer connections open.
    pub(super) open: AtomicU32,
    /// Updates received.
    pub(super) updates: AtomicU64,
    /// Connections that ended without being asked to, and attempts that failed.
    pub(super) losses: AtomicU64,
    /// Liking users that are ready.
    pub(super) likers: AtomicU32,
    /// Likes with a final outcome.
    pub(super) answered: AtomicU32,
    /// What is told while the run goes on, if anybody asks.
    pub(super) live: Option<Live>,
}

impl Shared {
    /// Nothing happened yet; the clock's origin is now.
    pub(super) fn new() -> Self {
        Self {
            clock: Clock::start(),
            window: [AtomicU32::new(u32::MAX), AtomicU32::new(u32::MAX)],
            joined: AtomicU32::new(0),
            open: AtomicU32::new(0),
            updates: AtomicU64::new(0),
            losses: AtomicU64::new(0),
            likers: AtomicU32::new(0),
            answered: AtomicU32::new(0),
            live: None,
        }
    }

    /// Whether `at_us` is within the measured window.
    pub(super) fn measured(&self, at_us: u32) -> bool {
        at_us >= self.window[0].load(Ordering::Relaxed) && at_us < self.window[1].load(Ordering::Relaxed)
    }
}

/// What became of an event; `likes` of [`UNSEEN`]: nobody saw it yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    prev: u32,
    likes: u32,
    committed: u32,
}

const UNSEEN: Seen = Seen { prev: 0, likes: u32::MAX, committed: 0 };

/// The events of one post.
#[derive(Debug, Default)]
struct PostEvents {
    /// (likes, version) before the first like.
    base: (u64, u64),
    /// By version − base − 1.
    table: Vec<Seen>,
    /// What contradicts the table, or lies outside of it.
    odd: Vec<(u32, Seen)>,
}

/// What one reader thread recorded.
#[derive(Debug)]
pub(super) struct Recorder {
    clock: Clock,
    /// Sessions in order of their first attempt.
    pub(super) sessions: Vec<Session>,
    /// (version, stamp) of each session.
    arrivals: Vec<Vec<(u32, u32)>>,
    events: Vec<PostEvents>,
    /// user-space read − kernel stamp within the window, in µs.
    pub(super) stamp_to_read: Histogram<u64>,
    /// Bytes received within the window.
    pub(super) received_bytes: u64,
    /// Reads without a kernel stamp within the window (the first ones of a machine have none).
    pub(super) unstamped: u64,
    /// Bodies that could not be read: not ours, or of another post.
    pub(super) unreadable: u64,
}

/// Most versions beyond the known ones that are believed at once.
const LEAP: usize = 1 << 26;

impl Recorder {
    /// For posts whose state before the run is `initial`: (likes, version).
    pub(super) fn new(clock: Clock, initial: &[(u64, u64)]) -> Self {
        let post = |base: &(u64, u64)| PostEvents { base: *base, ..PostEvents::default() };
        Self {
            clock,
            sessions: Vec::new(),
            arrivals: Vec::new(),
            events: initial.iter().map(post).collect(),
            stamp_to_read: Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds are constant and good"),
            received_bytes: 0,
            unstamped: 0,
            unreadable: 0,
        }
    }

    /// A connection is attempted: a new session, by its index.
    pub(super) fn begin(&mut self, session: Session) -> usize {
        self.sessions.push(session);
        self.arrivals.push(Vec::new());
        self.sessions.len() - 1
    }

    /// An update arrived; returns whether it was the session's first.
    pub(super) fn update(&mut self, session: usize, update: &Update, at_us: u32) -> bool {
        let record = &mut self.sessions[session];
        let post = &mut self.events[record.post as usize];
        let version = u32::try_from(update.version().0).unwrap_or(u32::MAX);
        let mark = match update {
            Update::Changed(event) => {
                post.change(event, self.clock);
                0
            }
            Update::Snapshot(state) => {
                post.snapshot(state);
                SNAPSHOT
            }
        };
        self.arrivals[session].push((version, (at_us & !SNAPSHOT) | mark));
        let first = record.joined_us.is_none();
        if first {
            record.joined_us = Some(at_us);
            record.joined_version = u64::from(version);
        }
        first
    }

    /// The same as the exporter of metrics wants it; to be asked before [`Recorder::update`].
    pub(super) fn arrival(&self, session: usize, update: &Update, at: u32) -> Arrival {
        let record = &self.sessions[session];
        let version = narrow(update.version().0);
        let before = self.last_version(session).or(record.resumed_from.map(narrow));
        let committed = match update {
            Update::Changed(event) => Some(self.clock.relative(event.committed_at).max(1)),
            Update::Snapshot(_) => None,
        };
        Arrival { post: record.post, from: before.unwrap_or(version), version, at, committed }
    }

    /// The last version a session saw.
    pub(super) fn last_version(&self, session: usize) -> Option<u32> {
        self.arrivals[session].last().map(|(version, _)| *version)
    }
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX - 1)
}

impl PostEvents {
    fn change(&mut self, event: &LikesChanged, clock: Clock) {
        let seen = Seen {
            prev: narrow(event.prev.0),
            likes: narrow(event.likes),
            // Zero marks a snapshot, and no commit of this run precedes its origin.
            committed: clock.relative(event.committed_at).max(1),
        };
        let slot = event.version.0.checked_sub(self.base.1 + 1).and_then(|slot| usize::try_from(slot).ok());
        match slot {
            Some(slot) if slot < self.table.len() + LEAP => {
                if slot >= self.table.len() {
                    self.table.resize(slot + 1, UNSEEN);
                }
                match self.table[slot] {
                    UNSEEN => self.table[slot] = seen,
                    same if same == seen => {}
                    _ => self.add_odd(narrow(event.version.0), seen),
                }
            }
            _ => self.add_odd(narrow(event.version.0), seen),
        }
    }

    /// Snapshots are no events; one is kept only when its count contradicts its version.
    fn snapshot(&mut self, state: &LikesState) {
        let rise = (state.likes.wrapping_sub(self.base.0), state.version.0.wrapping_sub(self.base.1));
        if rise.0 != rise.1 {
            let version = narrow(state.version.0);
            self.add_odd(version, Seen { prev: version, likes: narrow(state.likes), committed: 0 });
        }
    }

    fn add_odd(&mut self, version: u32, seen: Seen) {
        // One witness of a contradiction is enough.
        if self.odd.len() < 1_000 && !self.odd.contains(&(version, seen)) {
            self.odd.push((version, seen));
        }
    }

    /// Takes another thread's events in.
    fn merge(&mut self, other: &Self) {
        for (slot, seen) in other.table.iter().enumerate().filter(|(_, seen)| **seen != UNSEEN) {
            if slot >= self.table.len() {
                self.table.resize(slot + 1, UNSEEN);
            }
            match self.table[slot] {
                UNSEEN => self.table[slot] = *seen,
                same if same == *seen => {}
                _ => self.add_odd(narrow(self.base.1 + 1 + slot as u64), *seen),
            }
        }
        other.odd.iter().for_each(|(version, seen)| self.add_odd(*version, *seen));
    }
}

/// What several reader threads recorded, as columns.
pub(super) fn merge(recorders: Vec<Recorder>) -> (Vec<Session>, EventColumns, ArrivalColumns) {
    let (mut sessions, mut arrivals) = (Vec::new(), ArrivalColumns::default());
    let mut events: Vec<PostEvents> = Vec::new();
    for recorder in recorders {
        if events.is_empty() {
            events = recorder.events;
        } else {
            events.iter_mut().zip(&recorder.events).for_each(|(mine, theirs)| mine.merge(theirs));
        }
        for (session, seen) in recorder.sessions.into_iter().zip(recorder.arrivals) {
            let number = u32::try_from(sessions.len()).unwrap_or(u32::MAX);
            sessions.push(session);
            arrivals.session.extend(std::iter::repeat_n(number, seen.len()));
            arrivals.version.extend(seen.iter().map(|(version, _)| *version));
            arrivals.at_us.extend(seen.iter().map(|(_, at)| *at));
        }
    }
    let mut columns = EventColumns::default();
    for (post, events) in (0_u32..).zip(&events) {
        let first = narrow(events.base.1 + 1);
        let table = (first..).zip(events.table.iter().copied()).filter(|(_, seen)| *seen != UNSEEN);
        for (version, seen) in table.chain(events.odd.iter().copied()) {
            columns.post.push(post);
            columns.version.push(version);
            columns.prev.push(seen.prev);
            columns.likes.push(seen.likes);
            columns.committed_us.push(seen.committed);
        }
    }
    (sessions, columns, arrivals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{PostId, Version};

    fn change(clock: Clock, version: u64, likes: u64) -> Update {
        Update::Changed(LikesChanged {
            post_id: PostId::new(1).unwrap(),
            likes,
            version: Version(version),
            prev: Version(version - 1),
            committed_at: clock.origin_us + version,
        })
    }

    fn snapshot(version: u64, likes: u64) -> Update {
        Update::Snapshot(LikesState { post_id: PostId::new(1).unwrap(), likes, version: Version(version) })
    }

    #[test]
    fn columns_hold_each_event_once_and_each_arrival() {
        let clock = Clock::start();
        let mut both = [Recorder::new(clock, &[(10, 10)]), Recorder::new(clock, &[(10, 10)])];
        for (viewer, recorder) in (0..).zip(&mut both) {
            let session = recorder.begin(Session { viewer, ..Session::default() });
            assert!(recorder.update(session, &snapshot(10, 10), 5));
            assert!(!recorder.update(session, &change(clock, 11, 11), 6));
            recorder.update(session, &change(clock, 13, 13), 7);
            assert_eq!(recorder.last_version(session), Some(13));
        }
        let (sessions, events, arrivals) = merge(both.into());
        assert_eq!(sessions.iter().map(|s| (s.viewer, s.joined_us)).collect::<Vec<_>>(), [(0, Some(5)), (1, Some(5))]);
        assert_eq!((events.version, events.committed_us), (vec![11, 13], vec![11, 13]));
        assert_eq!(arrivals.session, [0, 0, 0, 1, 1, 1]);
        assert_eq!(arrivals.at_us[..3], [5 | SNAPSHOT, 6, 7]);
    }

    #[test]
    fn contradictions_are_kept() {
        let clock = Clock::start();
        let mut recorder = Recorder::new(clock, &[(0, 0)]);
        let session = recorder.begin(Session::default());
        recorder.update(session, &change(clock, 1, 1), 1);
        recorder.update(session, &change(clock, 1, 2), 2);
        recorder.update(session, &snapshot(5, 4), 3);
        let (_, events, _) = merge(vec![recorder]);
        assert_eq!((events.version, events.likes), (vec![1, 1, 5], vec![1, 2, 4]));
    }
}
