//! What a viewer that comes back had, and what it is given.

use super::WatchGuard;
use crate::domain::{Epoch, LikesChanged, LikesState, Version};

/// What a viewer that comes back has seen last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The epoch of `version`.
    pub epoch: Epoch,
    /// The newest version it has.
    pub version: Version,
}

/// What a viewer that comes back is given. In the order of how much it lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resumed {
    /// It had nothing: the state.
    Fresh,
    /// It has the newest version: the state.
    Current,
    /// The events it missed, one by one.
    Replayed,
    /// It missed events that are not kept (or the policy keeps none): the state.
    Behind,
    /// What it named is no position of ours: the state.
    Malformed,
    /// It has versions of another epoch: the state.
    OtherEpoch,
    /// It has a version that the database has not reached in this epoch (a restored database, or an invention): nothing,
    /// until there is a newer version or a new epoch, as for viewers that never left. A version never goes back.
    Ahead,
}

impl Resumed {
    /// What a viewer that had `had` is given at `latest`, when no events are kept.
    pub(in super::super) fn of(had: Option<Position>, epoch: Epoch, latest: Version) -> Self {
        match had {
            None => Self::Fresh,
            Some(had) if had.epoch != epoch => Self::OtherEpoch,
            Some(had) if had.version == latest => Self::Current,
            Some(had) if had.version > latest => Self::Ahead,
            Some(_) => Self::Behind,
        }
    }

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Current => "current",
            Self::Replayed => "replayed",
            Self::Behind => "behind",
            Self::Malformed => "malformed",
            Self::OtherEpoch => "other_epoch",
            Self::Ahead => "ahead",
        }
    }
}

/// A viewer's beginning on a post.
#[derive(Debug)]
pub struct Joined<G = WatchGuard> {
    /// The epoch of all versions here.
    pub epoch: Epoch,
    /// The newest known state; to be sent, marked as a snapshot, unless `missed` is sent or the viewer is ahead.
    pub state: LikesState,
    /// The newest version the viewer has after its first bytes: what is newer is to be sent.
    pub cursor: Version,
    /// [`Resumed::Replayed`]: the events up to `state`, instead of it.
    pub missed: Vec<LikesChanged>,
    /// What it is given.
    pub resumed: Resumed,
    /// Keeps the post watched.
    pub guard: G,
}

impl<G> Joined<G> {
    /// The same with another guard.
    pub(in super::super) fn guarded_by<H>(self, guard: impl FnOnce(G) -> H) -> Joined<H> {
        let Self { epoch, state, cursor, missed, resumed, guard: ours } = self;
        Joined { epoch, state, cursor, missed, resumed, guard: guard(ours) }
    }

    /// The state instead of the missed events, which are too many for this viewer.
    pub fn without_replay(&mut self) {
        if self.resumed == Resumed::Replayed {
            self.resumed = Resumed::Behind;
            self.missed = Vec::new();
        }
    }
}
