//! A post's place in the order of versions: which events are new, late or repeated. Pure.
//!
//! Invariant: `latest` never goes back; what is accepted is newer than everything accepted before.

use crate::domain::{LikesChanged, LikesState, Version};

/// Open holes remembered at most; of older ones only the fact that they were skipped stays known.
const HOLES: usize = 32;

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Newer than all before: to be delivered.
    New {
        /// Versions between the newest known and this event's `prev`: skipped for every viewer.
        gap: u64,
    },
    /// Arrived after a newer one: delivered to nobody, counted.
    Superseded,
    /// Seen before, or covered by a snapshot.
    Duplicate,
}

/// One watched post in the pod.
#[derive(Debug, Clone)]
pub struct Topic {
    latest: Version,
    /// Ranges (after, up to] that were skipped and have not arrived since, ascending.
    holes: Vec<(u64, u64)>,
}

impl Topic {
    /// A post whose state is known up to `latest`.
    #[must_use]
    pub const fn new(latest: Version) -> Self {
        Self { latest, holes: Vec::new() }
    }

    /// The newest version known.
    #[must_use]
    pub const fn latest(&self) -> Version {
        self.latest
    }

    /// Whether skipped versions are still missing.
    #[must_use]
    pub const fn gap_open(&self) -> bool {
        !self.holes.is_empty()
    }

    /// Takes an event that arrived from the broker.
    pub fn accept(&mut self, event: &LikesChanged) -> Accepted {
        if event.version > self.latest {
            let gap = event.prev.0.saturating_sub(self.latest.0);
            if gap > 0 {
                if self.holes.len() == HOLES {
                    self.holes.remove(0);
                }
                self.holes.push((self.latest.0, event.prev.0));
            }
            self.latest = event.version;
            return Accepted::New { gap };
        }
        if self.fill(event.prev.0, event.version.0) { Accepted::Superseded } else { Accepted::Duplicate }
    }

    /// Takes a state read from the database; true when it is newer than all before. It answers every question about
    /// versions up to its own, so holes below it are closed.
    pub fn accept_state(&mut self, state: &LikesState) -> bool {
        self.fill(0, state.version.0);
        let newer = state.version > self.latest;
        self.latest = self.latest.max(state.version);
        newer
    }

    /// Removes (after, up to] from the holes; false when it touched none.
    fn fill(&mut self, after: u64, up_to: u64) -> bool {
        let mut touched = false;
        let mut left = Vec::new();
        for &(from, to) in &self.holes {
            let (low, high) = (from.max(after), to.min(up_to));
            if low >= high {
                left.push((from, to));
                continue;
            }
            touched = true;
            left.extend([(from, low), (high, to)].into_iter().filter(|(a, b)| a < b));
        }
        if touched {
            self.holes = left;
        }
        touched
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::PostId;

    fn event(prev: u64, version: u64) -> LikesChanged {
        let post_id = PostId::new(1).unwrap();
        LikesChanged { post_id, likes: 0, version: Version(version), prev: Version(prev), committed_at: 0 }
    }

    fn state(version: u64) -> LikesState {
        LikesState { post_id: PostId::new(1).unwrap(), likes: 0, version: Version(version) }
    }

    #[test]
    fn a_late_event_is_superseded_once() {
        let mut topic = Topic::new(Version(4));
        assert_eq!(topic.accept(&event(6, 7)), Accepted::New { gap: 2 });
        assert!(topic.gap_open());
        assert_eq!(topic.accept(&event(4, 5)), Accepted::Superseded);
        assert_eq!(topic.accept(&event(4, 5)), Accepted::Duplicate);
        assert!(topic.gap_open());
        assert_eq!(topic.accept(&event(5, 6)), Accepted::Superseded);
        assert!(!topic.gap_open());
        assert_eq!(topic.accept(&event(6, 7)), Accepted::Duplicate);
        assert_eq!(topic.latest(), Version(7));
    }

    #[test]
    fn a_snapshot_closes_what_is_below_it_and_never_goes_back() {
        let mut topic = Topic::new(Version(0));
        assert_eq!(topic.accept(&event(8, 9)), Accepted::New { gap: 8 });
        assert!(!topic.accept_state(&state(9)));
        assert!(!topic.gap_open());
        assert!(topic.accept_state(&state(12)));
        assert!(!topic.accept_state(&state(11)));
        assert_eq!(topic.accept(&event(11, 12)), Accepted::Duplicate);
        assert_eq!(topic.accept(&event(12, 13)), Accepted::New { gap: 0 });
    }

    proptest! {
        /// Any order and repetition of a history cut into commits: the model keeps a set of covered versions.
        #[test]
        fn any_arrival_order_matches_a_set_of_versions(
            sizes in prop::collection::vec(1u64..4, 1..24),
            arrivals in prop::collection::vec((0usize..24, any::<bool>()), 0..80),
        ) {
            let mut commits = vec![];
            let mut version = 0;
            for size in sizes {
                commits.push((version, version + size));
                version += size;
            }
            let (mut topic, mut seen, mut latest) = (Topic::new(Version(0)), BTreeSet::new(), 0);
            for (which, snapshot) in arrivals {
                let (prev, version) = commits[which % commits.len()];
                if snapshot && which % 7 == 0 {
                    prop_assert_eq!(topic.accept_state(&state(version)), version > latest);
                    seen.extend(1..=version);
                } else {
                    let expected = if version > latest {
                        Accepted::New { gap: prev.saturating_sub(latest) }
                    } else if (prev + 1..=version).any(|v| !seen.contains(&v)) {
                        Accepted::Superseded
                    } else {
                        Accepted::Duplicate
                    };
                    prop_assert_eq!(topic.accept(&event(prev, version)), expected);
                    seen.extend(prev + 1..=version);
                }
                latest = latest.max(version);
                prop_assert_eq!(topic.latest(), Version(latest));
                prop_assert_eq!(topic.gap_open(), (1..=latest).any(|v| !seen.contains(&v)));
            }
        }
    }
}
