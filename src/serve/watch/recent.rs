//! The newest events of a watched post, for viewers that come back (`--resume replay`). Pure.
//!
//! Invariant: each event begins where the one before it ended, so that whoever is at a version within is owed exactly
//! those after it.

use std::collections::VecDeque;

use crate::domain::{LikesChanged, Version};

/// The ring of one post.
#[derive(Debug, Default)]
pub(super) struct Recent(VecDeque<LikesChanged>);

impl Recent {
    /// How many events are kept.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The newest event; at most `depth` are kept. One that does not follow the one before begins a new ring.
    pub(super) fn push(&mut self, event: LikesChanged, depth: usize) {
        if self.0.back().is_some_and(|last| event.prev > last.version) {
            self.0.clear();
        }
        self.trim(depth.saturating_sub(1));
        if depth > 0 {
            self.0.push_back(event);
        }
    }

    /// Forgets all but the newest `depth` events.
    pub(super) fn trim(&mut self, depth: usize) {
        self.0.drain(..self.0.len().saturating_sub(depth));
        if self.0.is_empty() {
            // A post that has had its hour gives its memory back.
            self.0 = VecDeque::new();
        }
    }

    /// The events a viewer at `had` lacks up to `latest`; `None` when they are not all here.
    pub(super) fn after(&self, had: Version, latest: Version) -> Option<Vec<LikesChanged>> {
        let first = self.0.partition_point(|event| event.version <= had);
        let whole = self.0.back().is_some_and(|last| last.version == latest)
            && self.0.get(first).is_some_and(|event| event.prev <= had);
        whole.then(|| self.0.range(first..).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::PostId;

    fn event(prev: u64, version: u64) -> LikesChanged {
        let post_id = PostId::new(1).unwrap();
        LikesChanged { post_id, likes: version, version: Version(version), prev: Version(prev), committed_at: 0 }
    }

    fn versions(recent: &Recent, had: u64, latest: u64) -> Option<Vec<u64>> {
        let events = recent.after(Version(had), Version(latest))?;
        Some(events.iter().map(|event| event.version.0).collect())
    }

    #[test]
    fn what_a_viewer_lacks_is_there_or_nothing_is_said() {
        let mut recent = Recent::default();
        assert_eq!(versions(&recent, 3, 3), None);
        [(4, 5), (5, 8), (8, 9)].into_iter().for_each(|(prev, version)| recent.push(event(prev, version), 3));
        assert_eq!(versions(&recent, 4, 9), Some(vec![5, 8, 9]));
        assert_eq!(versions(&recent, 6, 9), Some(vec![8, 9]), "a version within a combined commit");
        assert_eq!(versions(&recent, 8, 9), Some(vec![9]));
        assert_eq!(versions(&recent, 3, 9), None, "too old");
        assert_eq!(versions(&recent, 5, 10), None, "the newest came by another way");
        recent.push(event(9, 10), 3);
        assert_eq!((versions(&recent, 4, 10), recent.len()), (None, 3), "the oldest went");
    }

    #[test]
    fn a_gap_begins_a_new_ring() {
        let mut recent = Recent::default();
        recent.push(event(4, 5), 9);
        recent.push(event(6, 7), 9);
        assert_eq!((versions(&recent, 5, 7), versions(&recent, 6, 7)), (None, Some(vec![7])));
        recent.push(event(7, 8), 0);
        assert_eq!(recent.len(), 0, "no room at all");
    }
}
