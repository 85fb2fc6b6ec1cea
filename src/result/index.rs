//! Finds the event and the like of a (post, version): dense tables, since versions are gapless.

use super::{Outcome, RunResult};

/// Widest span of versions of one post that is believed; a wider one is damage, not likes.
const WIDEST: u64 = 1 << 26;

/// Tables by version, one per post.
pub(super) struct Index {
    posts: Vec<PostIndex>,
}

struct PostIndex {
    /// The state before the first like.
    base: u64,
    /// Entry `v − base − 1`: index of the event with newest version v, plus one; 0: nobody saw it as a change.
    event: Vec<u32>,
    /// Likewise of the like that was answered with v.
    like: Vec<u32>,
    /// (committed, newest version committed until then), in order of time.
    commits: Vec<(u32, u32)>,
    /// Events that cannot be stored: the same version again, or out of range.
    odd: Vec<usize>,
}

impl Index {
    /// Tables for the versions in (initial, final] of each post. None when a post's versions span more than is plausible.
    pub(super) fn new(run: &RunResult) -> Option<Self> {
        let header = &run.header;
        let mut posts = Vec::with_capacity(header.posts.len());
        for (initial, last) in header.initial.iter().zip(&header.finals) {
            let span = last.1.saturating_sub(initial.1);
            let span = usize::try_from(span).ok().filter(|_| span <= WIDEST)?;
            let (event, like) = (vec![0; span], vec![0; span]);
            posts.push(PostIndex { base: initial.1, event, like, commits: Vec::new(), odd: Vec::new() });
        }
        for (i, (post, version)) in run.events.post.iter().zip(&run.events.version).enumerate() {
            let post = &mut posts[*post as usize];
            match post.slot(*version).map(|slot| &mut post.event[slot]) {
                Some(entry) if *entry == 0 => *entry = number(i),
                _ => post.odd.push(i),
            }
            post.commits.push((run.events.committed_us[i], *version));
        }
        for post in &mut posts {
            post.commits.sort_unstable();
            let mut newest = 0;
            for (_, version) in &mut post.commits {
                newest = newest.max(*version);
                *version = newest;
            }
        }
        for (i, (post, version)) in run.likes.post.iter().zip(&run.likes.version).enumerate() {
            let post = &mut posts[*post as usize];
            if run.likes.outcome[i] == Outcome::Ok as u8
                && let Some(slot) = post.slot(*version)
                && post.like[slot] == 0
            {
                post.like[slot] = number(i);
            }
        }
        Some(Self { posts })
    }

    /// The event whose newest version is `version`.
    pub(super) fn event(&self, post: u32, version: u32) -> Option<usize> {
        let post = self.posts.get(post as usize)?;
        (*post.event.get(post.slot(version)?)? as usize).checked_sub(1)
    }

    /// The first like that was answered with `version`.
    pub(super) fn like(&self, post: u32, version: u32) -> Option<usize> {
        let post = self.posts.get(post as usize)?;
        (*post.like.get(post.slot(version)?)? as usize).checked_sub(1)
    }

    /// The newest version of a post that was committed until `until_us`; 0: none.
    pub(super) fn newest_until(&self, post: u32, until_us: u32) -> u32 {
        let commits = &self.posts[post as usize].commits;
        let after = commits.partition_point(|(committed, _)| *committed <= until_us);
        if after == 0 { 0 } else { commits[after - 1].1 }
    }

    /// Every version of a post after its initial one, in order.
    pub(super) fn versions(&self, post: u32) -> std::ops::Range<u32> {
        let post = &self.posts[post as usize];
        let first = u32::try_from(post.base + 1).unwrap_or(u32::MAX);
        first..first.saturating_add(u32::try_from(post.event.len()).unwrap_or(0))
    }

    /// Events that have the same version as another one of their post, or one outside (initial, final].
    pub(super) fn odd_events(&self) -> impl Iterator<Item = usize> {
        self.posts.iter().flat_map(|post| post.odd.iter().copied())
    }
}

impl PostIndex {
    fn slot(&self, version: u32) -> Option<usize> {
        let slot = usize::try_from(u64::from(version).checked_sub(self.base + 1)?).ok()?;
        (slot < self.event.len()).then_some(slot)
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index + 1).expect("columns have fewer than 2^32 entries")
}
