//! One task per post at a time. Asked for again while it runs, it runs once more: so nothing that was asked for is missed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::PostId;

/// Posts whose task runs, and whether it was asked for again.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<PostId, bool>>>);

/// A task's right to run. Dropped (also by a panic) it makes room for the next.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    post: PostId,
    over: bool,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, HashMap<PostId, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when the post's task runs already: it will run again.
    pub(super) fn begin(&self, post: PostId) -> Option<Turn> {
        match self.lock().entry(post) {
            Entry::Occupied(mut again) => {
                again.insert(true);
                None
            }
            Entry::Vacant(place) => {
                place.insert(false);
                Some(Turn { turns: self.clone(), post, over: false })
            }
        }
    }
}

impl Turn {
    /// Whether the task was asked for again since it began, or since this was last asked. If not, its turn is over.
    pub(super) fn again(&mut self) -> bool {
        let mut posts = self.turns.lock();
        match posts.get_mut(&self.post) {
            Some(again) if *again => {
                *again = false;
                true
            }
            _ => {
                posts.remove(&self.post);
                self.over = true;
                false
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over {
            self.turns.lock().remove(&self.post);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_while_a_task_runs_is_done_by_it() {
        let (turns, post) = (Turns::default(), PostId::new(1).unwrap());
        let mut first = turns.begin(post).unwrap();
        assert!(turns.begin(post).is_none() && turns.begin(post).is_none());
        assert!(first.again() && !first.again());
        let second = turns.begin(post).unwrap();
        drop(first);
        assert!(turns.begin(post).is_none(), "the first one's end does not end the second");
        drop(second);
        assert!(turns.begin(post).is_some());
    }
}
