//! A post's row under its lock, and what one like or a batch of them makes of it. Pure: every strategy and database shares it.

use std::collections::{BTreeMap, BTreeSet};

use super::{LikeOp, LikeRequest, StoreError};
use crate::domain::{LikesState, MAX_SAFE_INTEGER, PostId, Version};

/// Count and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) likes: u64,
    pub(super) version: u64,
}

impl Row {
    /// The row after `op`, or `None` when nothing changes: a count never falls below 0.
    pub(super) fn after(self, op: LikeOp) -> Result<Option<Self>, StoreError> {
        let likes = match op {
            LikeOp::Like => Some(self.likes + 1),
            LikeOp::Unlike => self.likes.checked_sub(1),
        };
        let version = self.version + 1;
        if version > MAX_SAFE_INTEGER {
            return Err(StoreError::Limit("the post's version has reached 2^53 − 1"));
        }
        Ok(likes.map(|likes| Self { likes, version }))
    }

    pub(super) fn state(self, post_id: PostId) -> LikesState {
        LikesState { post_id, likes: self.likes, version: Version(self.version) }
    }
}

/// What one request of a batch comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// The row when it was this request's turn.
    pub(super) before: Row,
    /// The row after it; the same when nothing changed.
    pub(super) after: Row,
}

impl Step {
    pub(super) fn changed(&self) -> bool {
        self.after.version > self.before.version
    }
}

/// What a batch comes to, its requests taken one after the other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch<'a> {
    /// The row after all of them.
    pub(super) row: Row,
    /// One per request, in their order.
    pub(super) steps: Vec<Result<Step, StoreError>>,
    /// Users whose one like is new, in order.
    pub(super) liked: BTreeSet<&'a str>,
    /// Users whose one like is gone, in order.
    pub(super) unliked: BTreeSet<&'a str>,
}

impl<'a> Batch<'a> {
    /// `has_liked`: those of the users in `requests` who have their one like now.
    pub(super) fn of(
        mut row: Row,
        requests: impl IntoIterator<Item = &'a LikeRequest>,
        has_liked: &BTreeSet<String>,
    ) -> Self {
        let mut now: BTreeMap<&str, bool> = BTreeMap::new();
        let mut steps = Vec::new();
        for request in requests {
            let wanted = request.op == LikeOp::Like;
            let own = request.user_once().map(|user| (user, *now.get(user).unwrap_or(&has_liked.contains(user))));
            if own.is_some_and(|(_, has)| has == wanted) {
                steps.push(Ok(Step { before: row, after: row }));
                continue;
            }
            steps.push(row.after(request.op).map(|after| {
                let step = Step { before: row, after: after.unwrap_or(row) };
                row = step.after;
                // Her like goes also when somebody unknown has taken one back before.
                if let Some((user, _)) = own {
                    now.insert(user, wanted);
                }
                step
            }));
        }
        let changed = |to: bool| {
            let users = now.iter().filter(move |(user, has)| **has == to && has_liked.contains(**user) != to);
            users.map(|(user, _)| *user).collect()
        };
        Self { row, steps, liked: changed(true), unliked: changed(false) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Who;

    fn by(user: Option<&str>, op: LikeOp) -> LikeRequest {
        let who = user.map_or(Who::Anonymous, |user| Who::User(user.into()));
        LikeRequest { op, once: user.is_some(), who, ..LikeRequest::anonymous_like(PostId::new(1).unwrap()) }
    }

    #[test]
    fn a_batch_is_its_requests_one_after_the_other() {
        use LikeOp::{Like, Unlike};
        let requests = [
            by(None, Unlike),        // at 0: nothing
            by(Some("ann"), Unlike), // has one, the count is 0: hers goes, nothing else
            by(Some("ann"), Like),
            by(Some("ann"), Like), // has one
            by(None, Like),
            by(Some("bob"), Like),
            by(Some("bob"), Unlike),
            by(Some("eve"), Unlike), // has none
            by(Some("joe"), Unlike),
        ];
        let has_liked = BTreeSet::from(["ann".to_owned(), "joe".to_owned()]);
        let batch = Batch::of(Row { likes: 0, version: 7 }, &requests, &has_liked);
        let states: Vec<_> = batch.steps.iter().map(|step| step.as_ref().unwrap().after).collect();
        let rows = [(0, 7), (0, 7), (1, 8), (1, 8), (2, 9), (3, 10), (2, 11), (2, 11), (1, 12)];
        assert_eq!(states, rows.map(|(likes, version)| Row { likes, version }));
        let changed: Vec<_> = batch.steps.iter().map(|step| step.as_ref().unwrap().changed()).collect();
        assert_eq!(changed, [false, false, true, false, true, true, true, false, true]);
        assert_eq!(batch.row, Row { likes: 1, version: 12 });
        // Ann has one as before, Bob none as before.
        assert_eq!((batch.liked, batch.unliked), (BTreeSet::new(), BTreeSet::from(["joe"])));
    }

    #[test]
    fn the_last_version_refuses_one_by_one() {
        let row = Row { likes: 1, version: MAX_SAFE_INTEGER - 1 };
        let requests = [by(None, LikeOp::Like), by(None, LikeOp::Like)];
        let batch = Batch::of(row, &requests, &BTreeSet::new());
        assert!(batch.steps[0].as_ref().is_ok_and(Step::changed) && batch.steps[1].is_err());
        assert_eq!(batch.row.version, MAX_SAFE_INTEGER);
    }
}
