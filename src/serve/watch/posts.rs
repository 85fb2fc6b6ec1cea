//! What is watched and what is due when. Pure but for the dice: the caller brings the time, does the reading and tells the hub.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::recent::Recent;
use super::{JoinError, Position, Resumed, WatchOptions};
use crate::domain::{Epoch, LikesChanged, LikesState, PostId, Version};
use crate::hub::topic::{Accepted, Topic};

/// Tells those who wait for a post's first snapshot that it is there, or why not.
pub(super) type Done = watch::Receiver<Option<Result<(), JoinError>>>;

/// Which of the entries a post has had: a guard of an earlier one must not touch a later one.
pub(super) type Generation = u64;

/// Everything watched.
#[derive(Debug)]
pub(super) struct Posts {
    /// The epoch of all versions here.
    epoch: Epoch,
    /// Raised with each new epoch: what was read before it is worth nothing.
    era: u64,
    entries: HashMap<PostId, Entry>,
    /// Events kept in all rings.
    kept: usize,
    /// Entries without a viewer that wait to be left.
    idle: usize,
    /// Live, but the broker has not confirmed the subscription yet.
    unconfirmed: HashSet<PostId>,
    /// When to look at which post. An item counts only if it is the entry's `looked_at`.
    due: BinaryHeap<Reverse<(Instant, PostId)>>,
    generations: Generation,
}

#[derive(Debug)]
struct Entry {
    generation: Generation,
    phase: Phase,
    viewers: usize,
    /// When to stop watching; set while there is no viewer.
    leave: Option<Instant>,
    /// When to read in any case: newly watched, after a reconnect, after a failed read.
    reread: Option<Instant>,
    /// When to read if the gap is still open.
    gap: Option<Instant>,
    last_gap_read: Option<Instant>,
    /// When to read if no event comes before.
    quiet: Option<Instant>,
    looked_at: Option<Instant>,
}

#[derive(Debug)]
enum Phase {
    /// The subscription is not in force yet, or the snapshot not read. The newest event that came meanwhile.
    Joining {
        early: Option<LikesChanged>,
        done: Done,
    },
    Live {
        topic: Topic,
        state: LikesState,
        recent: Recent,
    },
}

/// How a viewer finds a post.
#[derive(Debug)]
pub(super) enum Entered {
    /// Watched, and its newest state is known.
    Known,
    /// Somebody else is joining already.
    Wait(Done),
}

/// What a viewer begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) epoch: Epoch,
    pub(super) state: LikesState,
    pub(super) missed: Vec<LikesChanged>,
    pub(super) resumed: Resumed,
}

/// Why a post is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Newly watched, after a reconnect, after a failed read.
    Reread,
    /// Skipped versions did not come.
    Gap,
    /// No event for long.
    Quiet,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// To be read.
    pub(super) read: Vec<(PostId, Why)>,
    /// Watched no longer: unsubscribe, forget.
    pub(super) left: Vec<PostId>,
}

impl Posts {
    /// Nothing is watched yet.
    pub(super) fn new(epoch: Epoch) -> Self {
        let (entries, unconfirmed, due) = (HashMap::new(), HashSet::new(), BinaryHeap::new());
        Self { epoch, era: 0, entries, kept: 0, idle: 0, unconfirmed, due, generations: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The epoch, and a number that differs whenever it has changed.
    pub(super) fn epoch(&self) -> (Epoch, u64) {
        (self.epoch, self.era)
    }

    /// Events kept for viewers that come back.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    /// Whether anybody watches this post, or is about to.
    pub(super) fn contains(&self, post: PostId) -> bool {
        self.entries.contains_key(&post)
    }

    /// Begins another epoch: nothing that was known holds any more. What was watched.
    pub(super) fn renew(&mut self, epoch: Epoch) -> Vec<PostId> {
        let generations = self.generations;
        let era = self.era + 1;
        let old = std::mem::replace(self, Self { era, generations, ..Self::new(epoch) });
        old.entries.into_keys().collect()
    }

    /// One more viewer of a post that is watched.
    pub(super) fn enter(&mut self, post: PostId) -> Option<(Generation, Entered)> {
        let entry = self.entries.get_mut(&post)?;
        entry.viewers += 1;
        if entry.leave.take().is_some() {
            self.idle -= 1;
        }
        let entered = match &entry.phase {
            Phase::Joining { done, .. } => Entered::Wait(done.clone()),
            Phase::Live { .. } => Entered::Known,
        };
        Some((entry.generation, entered))
    }

    /// The first viewer of a post.
    pub(super) fn begin(&mut self, post: PostId, done: Done) -> Generation {
        self.generations += 1;
        let entry = Entry {
            generation: self.generations,
            phase: Phase::Joining { early: None, done },
            viewers: 1,
            leave: None,
            reread: None,
            gap: None,
            last_gap_read: None,
            quiet: None,
            looked_at: None,
        };
        self.entries.insert(post, entry);
        self.generations
    }

    /// The snapshot was read, and after the subscription was in force if there is one.
    pub(super) fn live(&mut self, snapshot: LikesState, generation: Generation, now: Instant, options: &WatchOptions) {
        let post = snapshot.post_id;
        let Some(entry) = self.entries.get_mut(&post).filter(|entry| entry.generation == generation) else { return };
        let Phase::Joining { early, .. } = &entry.phase else { return };
        let state = early.map_or(snapshot, |event| newer(snapshot, state_of(&event)));
        entry.phase = Phase::Live { topic: Topic::new(state.version), state, recent: Recent::default() };
        entry.reread = Some(now + options.settle);
        entry.quiet = quiet_at(now, options);
        if entry.viewers == 0 {
            entry.leave = Some(now + options.linger);
            self.idle += 1;
        }
        self.schedule(post);
    }

    /// Joining did not succeed: nobody watches this post.
    pub(super) fn fail(&mut self, post: PostId, generation: Generation) {
        if self.entries.get(&post).is_some_and(|entry| entry.generation == generation) {
            self.remove(post);
        }
    }

    fn remove(&mut self, post: PostId) {
        let Some(entry) = self.entries.remove(&post) else { return };
        if let Phase::Live { recent, .. } = &entry.phase {
            self.kept -= recent.len();
        }
        self.idle -= usize::from(entry.leave.is_some());
        self.unconfirmed.remove(&post);
    }

    /// What a viewer that had `had` begins with on a live post.
    pub(super) fn start(
        &self,
        post: PostId,
        generation: Generation,
        had: Option<Position>,
        replay: bool,
    ) -> Option<Start> {
        let entry = self.entries.get(&post).filter(|entry| entry.generation == generation)?;
        let Phase::Live { state, recent, .. } = &entry.phase else { return None };
        let (epoch, state) = (self.epoch, *state);
        let resumed = Resumed::of(had, epoch, state.version);
        let missed = match had {
            Some(had) if replay && resumed == Resumed::Behind => recent.after(had.version, state.version),
            _ => None,
        };
        let resumed = if missed.is_some() { Resumed::Replayed } else { resumed };
        Some(Start { epoch, state, missed: missed.unwrap_or_default(), resumed })
    }

    /// A viewer goes; true when the caller should look at what is due.
    pub(super) fn leave(&mut self, post: PostId, generation: Generation, now: Instant, options: &WatchOptions) -> bool {
        let Some(entry) = self.entries.get_mut(&post).filter(|entry| entry.generation == generation) else {
            return false;
        };
        let had = entry.viewers;
        entry.viewers = had.saturating_sub(1);
        if had != 1 || matches!(entry.phase, Phase::Joining { .. }) {
            return false;
        }
        // A ring is of use only as long as the post is watched.
        let keep = options.replay_depth > 0 && self.idle < options.replay_idle;
        let linger = if keep { options.linger.max(options.replay_keep) } else { options.linger };
        entry.leave = Some(now + linger);
        self.idle += 1;
        self.schedule(post)
    }

    /// An event from the broker. `None` when the post is not watched, or not live yet; otherwise whether the caller
    /// should look at what is due.
    pub(super) fn event(
        &mut self,
        event: &LikesChanged,
        now: Instant,
        options: &WatchOptions,
    ) -> Option<(Accepted, bool)> {
        // All rings together stay below their bound: many posts have shorter ones.
        let share = options.replay_depth.min(options.replay_events / self.entries.len().max(1));
        let entry = self.entries.get_mut(&event.post_id)?;
        let (topic, state, recent) = match &mut entry.phase {
            Phase::Live { topic, state, recent } => (topic, state, recent),
            Phase::Joining { early, .. } => {
                if early.is_none_or(|early| early.version < event.version) {
                    *early = Some(*event);
                }
                return None;
            }
        };
        let accepted = topic.accept(event);
        if let Accepted::New { .. } = accepted {
            *state = state_of(event);
            let had = recent.len();
            let room = had + options.replay_events.saturating_sub(self.kept);
            recent.push(*event, share.min(room));
            self.kept = self.kept - had + recent.len();
            // Not scheduled for every event: whoever looks at the old time finds the new one.
            entry.quiet = quiet_at(now, options);
        }
        if topic.gap_open() && entry.gap.is_none() {
            let pause = entry.last_gap_read.map(|last| last + options.gap_pause);
            entry.gap = Some(pause.map_or(now + options.gap, |pause| pause.max(now + options.gap)));
            return Some((accepted, self.schedule(event.post_id)));
        }
        Some((accepted, false))
    }

    /// A state that was read; true when it is news.
    pub(super) fn read(&mut self, read: LikesState) -> bool {
        let Some(Entry { phase: Phase::Live { topic, state, recent }, .. }) = self.entries.get_mut(&read.post_id)
        else {
            return false;
        };
        let news = topic.accept_state(&read);
        if news {
            *state = read;
            self.kept -= recent.len();
            recent.trim(0);
        }
        news
    }

    /// The newest known version of a live post.
    pub(super) fn version(&self, post: PostId) -> Option<Version> {
        match self.entries.get(&post)?.phase {
            Phase::Live { state, .. } => Some(state.version),
            Phase::Joining { .. } => None,
        }
    }

    /// The subscription of this post is in force: if it was not when the snapshot was read, read it once more.
    pub(super) fn confirmed(&mut self, post: PostId, now: Instant) -> bool {
        let late = self.unconfirmed.remove(&post);
        if let Some(entry) = self.entries.get_mut(&post).filter(|_| late) {
            entry.reread = Some(now);
            self.schedule(post);
        }
        late
    }

    /// Its snapshot was read, but its subscription is not known to be in force.
    pub(super) fn is_unconfirmed(&mut self, post: PostId, generation: Generation) {
        if self.entries.get(&post).is_some_and(|entry| entry.generation == generation) {
            self.unconfirmed.insert(post);
        }
    }

    /// Those whose subscription is not known to be in force.
    pub(super) fn unconfirmed(&self) -> &HashSet<PostId> {
        &self.unconfirmed
    }

    /// Whether a state that was read is newer than what is known, without taking it.
    pub(super) fn is_news(&self, read: &LikesState) -> bool {
        let entry = self.entries.get(&read.post_id);
        matches!(entry, Some(Entry { phase: Phase::Live { state, .. }, .. }) if state.version < read.version)
    }

    /// These could not be read: once more after `pause`.
    pub(super) fn put_off(&mut self, posts: &[(PostId, Why)], now: Instant, pause: Duration) {
        for (post, why) in posts.iter().filter(|(_, why)| *why != Why::Quiet) {
            let Some(entry) = self.entries.get_mut(post) else { continue };
            let at = now + dice(pause);
            match why {
                // The gap is open still, and nothing else would ask again.
                Why::Gap => entry.gap = Some(at),
                _ => entry.reread = Some(entry.reread.map_or(at, |due| due.min(at))),
            }
            self.schedule(*post);
        }
    }

    /// Events may have been missed: read everything once more, spread over `spread` (longer for very many posts).
    pub(super) fn reread_all(&mut self, now: Instant, spread: Duration) {
        let posts: Vec<PostId> = self.entries.keys().copied().collect();
        let spread = spread.max(Duration::from_millis(posts.len() as u64 / 2));
        for post in posts {
            let Some(entry) = self.entries.get_mut(&post) else { continue };
            let at = now + spread.mul_f64(rand::random());
            // An earlier one that is due anyhow serves as well, if it is still to come.
            entry.reread = Some(at);
            self.schedule(post);
        }
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }

    /// What is due, at most `most` posts to read.
    pub(super) fn take_due(&mut self, now: Instant, most: usize, options: &WatchOptions) -> Due {
        let mut due = Due::default();
        let share = options.replay_depth.min(options.replay_events / self.entries.len().max(1));
        while due.read.len() < most
            && let Some(Reverse((at, post))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            let Some(entry) = self.entries.get_mut(&post) else { continue };
            if entry.looked_at != Some(at) {
                continue;
            }
            entry.looked_at = None;
            let has_come = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if has_come(entry.leave) {
                self.remove(post);
                due.left.push(post);
                continue;
            }
            let open = matches!(&entry.phase, Phase::Live { topic, .. } if topic.gap_open());
            let mut why = None;
            if has_come(entry.quiet) {
                entry.quiet = quiet_at(now, options);
                why = Some(Why::Quiet);
                if let Phase::Live { recent, .. } = &mut entry.phase {
                    let had = recent.len();
                    recent.trim(share);
                    self.kept = self.kept - had + recent.len();
                }
            }
            if has_come(entry.gap) {
                entry.gap = None;
                if open {
                    entry.last_gap_read = Some(now);
                    why = Some(Why::Gap);
                }
            }
            if has_come(entry.reread) {
                entry.reread = None;
                why = Some(Why::Reread);
            }
            due.read.extend(why.map(|why| (post, why)));
            self.schedule(post);
        }
        due
    }

    /// Puts the entry's next time into the heap; true when it is now the first of all.
    fn schedule(&mut self, post: PostId) -> bool {
        let Some(entry) = self.entries.get_mut(&post) else { return false };
        let times = [entry.leave, entry.reread, entry.gap, entry.quiet];
        let Some(next) = times.into_iter().flatten().min() else { return false };
        if entry.looked_at.is_some_and(|at| at <= next) {
            return false;
        }
        entry.looked_at = Some(next);
        let first = self.next().is_none_or(|at| next < at);
        self.due.push(Reverse((next, post)));
        first
    }
}

fn state_of(event: &LikesChanged) -> LikesState {
    LikesState { post_id: event.post_id, likes: event.likes, version: event.version }
}

fn newer(a: LikesState, b: LikesState) -> LikesState {
    if b.version > a.version { b } else { a }
}

/// The time ± 50 %, so that pods and posts do not read in step.
fn dice(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.5..1.5))
}

fn quiet_at(now: Instant, options: &WatchOptions) -> Option<Instant> {
    options.anti_entropy.then(|| now + dice(options.quiet))
}

#[cfg(test)]
mod tests;
