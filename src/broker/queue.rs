//! What waits for the connection: in order while there is room, then only the newest event of each post, then nothing.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::domain::{LikesChanged, PostId};
use crate::telemetry::trace::Publishing;

/// An event, and the span of its waiting; that of one that is not sent ends with it.
pub(super) type Waiting = (LikesChanged, Publishing);

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queued {
    /// It waits.
    Waits,
    /// It waits in the place of an older one of its post, or such a newer one waits already.
    Merged,
    /// There was no room.
    Dropped,
}

/// The queue. Bounded in both parts.
#[derive(Debug)]
pub(super) struct Queue {
    in_order: VecDeque<Waiting>,
    newest: HashMap<PostId, Waiting>,
    max_in_order: usize,
    max_newest: usize,
}

impl Queue {
    pub(super) fn new(max_in_order: usize, max_newest: usize) -> Self {
        Self { in_order: VecDeque::new(), newest: HashMap::new(), max_in_order, max_newest }
    }

    pub(super) fn push(&mut self, (event, span): Waiting) -> Queued {
        if self.newest.is_empty() && self.in_order.len() < self.max_in_order {
            self.in_order.push_back((event, span));
            return Queued::Waits;
        }
        let full = self.newest.len() >= self.max_newest;
        match self.newest.entry(event.post_id) {
            Entry::Occupied(mut entry) => {
                if entry.get().0.version < event.version {
                    entry.insert((event, span));
                }
                Queued::Merged
            }
            Entry::Vacant(_) if full => Queued::Dropped,
            Entry::Vacant(entry) => {
                entry.insert((event, span));
                Queued::Waits
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<Waiting> {
        if self.in_order.is_empty() {
            self.in_order.extend(self.newest.drain().map(|(_, event)| event));
        }
        self.in_order.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_order.is_empty() && self.newest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Version;

    fn event(post: u64, version: u64) -> LikesChanged {
        let post_id = PostId::new(post).unwrap();
        LikesChanged { post_id, likes: version, version: Version(version), prev: Version(version - 1), committed_at: 0 }
    }

    #[test]
    fn the_newest_of_each_post_survives_a_full_queue() {
        let mut queue = Queue::new(2, 2);
        let pushed = [(1, 1), (1, 2), (1, 3), (1, 5), (1, 4), (2, 1), (3, 1)]
            .map(|(p, v)| queue.push((event(p, v), Publishing::default())));
        use Queued::{Dropped, Merged, Waits};
        assert_eq!(pushed, [Waits, Waits, Waits, Merged, Merged, Waits, Dropped]);
        let first: Vec<_> = (0..2).map(|_| queue.pop().unwrap().0).collect();
        assert_eq!(first, [event(1, 1), event(1, 2)]);
        let mut rest: Vec<_> = std::iter::from_fn(|| Some(queue.pop()?.0)).collect();
        rest.sort_by_key(|e| e.post_id);
        assert_eq!(rest, [event(1, 5), event(2, 1)]);
        assert!(queue.is_empty());
    }
}
