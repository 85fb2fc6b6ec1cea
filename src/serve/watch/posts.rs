//! What is watched and what is due when. Pure but for the dice: the caller brings the time, does the reading and tells the hub.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{JoinError, WatchOptions};
use crate::domain::{LikesChanged, LikesState, PostId};
use crate::hub::topic::{Accepted, Topic};

/// Tells those who wait for a post's first snapshot that it is there, or why not.
pub(super) type Done = watch::Receiver<Option<Result<(), JoinError>>>;

/// Which of the entries a post has had: a guard of an earlier one must not touch a later one.
pub(super) type Generation = u64;

/// Everything watched.
#[derive(Debug, Default)]
pub(super) struct Posts {
    entries: HashMap<PostId, Entry>,
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
    },
}

/// How a viewer finds a post.
#[derive(Debug)]
pub(super) enum Entered {
    /// Watched, and this is its newest state.
    Known(LikesState),
    /// Somebody else is joining already.
    Wait(Done),
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
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// One more viewer of a post that is watched.
    pub(super) fn enter(&mut self, post: PostId) -> Option<(Generation, Entered)> {
        let entry = self.entries.get_mut(&post)?;
        entry.viewers += 1;
        entry.leave = None;
        let entered = match &entry.phase {
            Phase::Joining { done, .. } => Entered::Wait(done.clone()),
            Phase::Live { state, .. } => Entered::Known(*state),
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

    /// The subscription is in force and `snapshot` was read after that.
    pub(super) fn live(&mut self, snapshot: LikesState, now: Instant, options: &WatchOptions) {
        let post = snapshot.post_id;
        let Some(entry) = self.entries.get_mut(&post) else { return };
        let Phase::Joining { early, .. } = &entry.phase else { return };
        let state = early.map_or(snapshot, |event| newer(snapshot, state_of(&event)));
        entry.phase = Phase::Live { topic: Topic::new(state.version), state };
        entry.reread = Some(now + options.settle);
        entry.quiet = quiet_at(now, options);
        if entry.viewers == 0 {
            entry.leave = Some(now + options.linger);
        }
        self.schedule(post);
    }

    /// Joining did not succeed: nobody watches this post.
    pub(super) fn fail(&mut self, post: PostId) {
        self.entries.remove(&post);
    }

    /// The newest known state of a live post.
    pub(super) fn state(&self, post: PostId, generation: Generation) -> Option<LikesState> {
        let entry = self.entries.get(&post).filter(|entry| entry.generation == generation)?;
        match entry.phase {
            Phase::Live { state, .. } => Some(state),
            Phase::Joining { .. } => None,
        }
    }

    /// A viewer goes; true when the caller should look at what is due.
    pub(super) fn leave(&mut self, post: PostId, generation: Generation, now: Instant, linger: Duration) -> bool {
        let Some(entry) = self.entries.get_mut(&post).filter(|entry| entry.generation == generation) else {
            return false;
        };
        entry.viewers = entry.viewers.saturating_sub(1);
        if entry.viewers > 0 || matches!(entry.phase, Phase::Joining { .. }) {
            return false;
        }
        entry.leave = Some(now + linger);
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
        let entry = self.entries.get_mut(&event.post_id)?;
        let (topic, state) = match &mut entry.phase {
            Phase::Live { topic, state } => (topic, state),
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
        let Some(Entry { phase: Phase::Live { topic, state }, .. }) = self.entries.get_mut(&read.post_id) else {
            return false;
        };
        let news = topic.accept_state(&read);
        if news {
            *state = read;
        }
        news
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
                self.entries.remove(&post);
                due.left.push(post);
                continue;
            }
            let open = matches!(&entry.phase, Phase::Live { topic, .. } if topic.gap_open());
            let mut why = None;
            if has_come(entry.quiet) {
                entry.quiet = quiet_at(now, options);
                why = Some(Why::Quiet);
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
mod tests {
    use super::*;
    use crate::domain::Version;

    const POST: PostId = PostId::new(1).unwrap();

    fn state(version: u64) -> LikesState {
        LikesState { post_id: POST, likes: version, version: Version(version) }
    }

    fn event(version: u64) -> LikesChanged {
        let (version, prev) = (Version(version), Version(version - 1));
        LikesChanged { post_id: POST, likes: version.0, version, prev, committed_at: 0 }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A post with one viewer, live at version 10, its first re-read done.
    fn live(options: &WatchOptions) -> (Posts, Generation, Instant) {
        let (mut posts, now) = (Posts::default(), Instant::now());
        let (_, done) = watch::channel(None);
        let generation = posts.begin(POST, done);
        posts.live(state(10), now, options);
        let now = now + options.settle;
        assert_eq!(posts.take_due(now, 9, options).read, [(POST, Why::Reread)]);
        (posts, generation, now)
    }

    fn off() -> WatchOptions {
        WatchOptions { anti_entropy: false, ..WatchOptions::default() }
    }

    #[test]
    fn an_event_that_came_before_the_snapshot_is_not_lost() {
        let (mut posts, now) = (Posts::default(), Instant::now());
        let (_, done) = watch::channel(None);
        let generation = posts.begin(POST, done);
        assert!(matches!(posts.enter(POST), Some((_, Entered::Wait(_)))));
        for version in [12, 11] {
            assert!(posts.event(&event(version), now, &off()).is_none());
        }
        posts.live(state(10), now, &off());
        assert_eq!(posts.state(POST, generation), Some(state(12)));
        assert!(matches!(posts.enter(POST), Some((_, Entered::Known(known))) if known == state(12)));
    }

    #[test]
    fn a_gap_is_read_only_if_it_stays_open_and_once_a_second() {
        let options = off();
        let (mut posts, _, now) = live(&options);
        posts.event(&event(12), now, &options);
        posts.event(&event(11), now + ms(50), &options);
        assert_eq!(posts.take_due(now + ms(100), 9, &options), Due::default(), "closed in time");

        let now = now + ms(200);
        posts.event(&event(14), now, &options);
        posts.event(&event(16), now + ms(1), &options);
        assert_eq!(posts.take_due(now + ms(99), 9, &options), Due::default());
        assert_eq!(posts.take_due(now + ms(100), 9, &options).read, [(POST, Why::Gap)]);
        assert!(!posts.read(state(16)), "no news, but it closes the gaps");
        posts.event(&event(18), now + ms(101), &options);
        assert_eq!(posts.take_due(now + ms(1_099), 9, &options), Due::default());
        assert_eq!(posts.take_due(now + ms(1_100), 9, &options).read, [(POST, Why::Gap)]);
        posts.put_off(&[(POST, Why::Gap)], now + ms(1_100), ms(1_000));
        assert_eq!(posts.take_due(now + ms(2_700), 9, &options).read, [(POST, Why::Gap)]);
    }

    #[test]
    fn only_quiet_posts_are_read_again() {
        let options = WatchOptions::default();
        let (mut posts, _, mut now) = live(&options);
        for version in 11..40 {
            now += ms(2_000);
            posts.event(&event(version), now, &options);
            assert_eq!(posts.take_due(now, 9, &options), Due::default());
        }
        let mut reads = 0;
        for _ in 0..1_000 {
            now += ms(50);
            reads += posts.take_due(now, 9, &options).read.len();
        }
        assert!((7..=19).contains(&reads), "{reads} reads in 50 s");
    }

    #[test]
    fn a_quick_return_keeps_the_post_watched() {
        let options = off();
        let (mut posts, generation, now) = live(&options);
        assert!(posts.leave(POST, generation, now, options.linger));
        assert!(posts.enter(POST).is_some());
        assert_eq!(posts.take_due(now + ms(60_000), 9, &options), Due::default());
        posts.leave(POST, generation, now, options.linger);
        posts.leave(POST, generation + 1, now, options.linger);
        assert_eq!(posts.take_due(now + options.linger, 9, &options).left, [POST]);
        assert_eq!(posts.len(), 0);
        assert!(!posts.leave(POST, generation, now, options.linger), "a guard of an entry that is gone");
    }

    #[test]
    fn a_reconnect_reads_everything_within_the_spread() {
        let options = off();
        let (mut posts, _, now) = live(&options);
        posts.reread_all(now, ms(1_000));
        assert_eq!(posts.take_due(now + ms(1_000), 9, &options).read, [(POST, Why::Reread)]);
        assert!(posts.is_news(&state(11)) && !posts.is_news(&state(10)));
        assert!(posts.read(state(11)) && !posts.read(state(11)));
    }
}
