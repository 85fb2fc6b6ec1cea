//! Which like goes to which user, and what became of it. Shared by the pacer (submits) and the likers' thread (the rest).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use mio::{Interest, Registry, Token};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::user::{News, Over, UserLink};
use super::{Liked, LikerOptions};
use crate::load::pacer::Due;
use crate::load::recorder::Shared;
use crate::load::socket::StampedReader;
use crate::result::{LikeColumns, Outcome};

/// Back-off of reconnects and of repeated likes: full jitter below a bound that doubles from the first to the last.
const BACKOFF_MS: (u32, u32) = (100, 2_000);

struct User {
    link: Option<UserLink>,
    /// The like on its way and when it is given up.
    in_flight: Option<(u32, u32)>,
    /// Stands in the idle queue.
    queued: bool,
    attempts: u32,
    /// When to connect again; none: connected, or in the queue of those that connect.
    connect_at_us: Option<u32>,
}

/// See the module.
pub(super) struct Pool {
    options: LikerOptions,
    shared: Arc<Shared>,
    registry: Registry,
    users: Vec<User>,
    /// Users free to like, the longest idle first; some may have lost their connection since.
    idle: VecDeque<usize>,
    /// Likes that found no user free, in order of due time.
    waiting: VecDeque<u32>,
    /// Likes to be repeated, by time.
    retries: BinaryHeap<Reverse<(u32, u32)>>,
    /// How often each like was sent without a known outcome (idempotent runs).
    tries: Vec<u8>,
    likes: LikeColumns,
    lag: Histogram<u64>,
    rng: StdRng,
    next_connect_us: u32,
    /// Next look for time-outs and heart-beats.
    next_look_us: u32,
}

impl Pool {
    pub(super) fn new(options: LikerOptions, due: &[Due], shared: Arc<Shared>, registry: Registry) -> Self {
        let user = || User { link: None, in_flight: None, queued: false, attempts: 0, connect_at_us: Some(0) };
        let likes = LikeColumns {
            due_us: due.iter().map(|due| due.at_us).collect(),
            sent_us: vec![0; due.len()],
            answered_us: vec![0; due.len()],
            post: due.iter().map(|due| due.post).collect(),
            version: vec![0; due.len()],
            outcome: vec![Outcome::Unsent as u8; due.len()],
        };
        Self {
            users: (0..options.likers).map(|_| user()).collect(),
            rng: StdRng::seed_from_u64(options.seed ^ 0x6c69_6b65),
            tries: vec![0; if options.keys.is_some() { due.len() } else { 0 }],
            options,
            shared,
            registry,
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            retries: BinaryHeap::new(),
            likes,
            lag: Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("bounds are constant and good"),
            next_connect_us: 0,
            next_look_us: 0,
        }
    }

    /// Due times become times of the run.
    pub(super) fn begin(&mut self, at_us: u32) {
        self.likes.due_us.iter_mut().for_each(|due| *due += at_us);
    }

    /// Likes without an outcome that were submitted.
    pub(super) fn open(&self) -> usize {
        self.waiting.len() + self.retries.len() + self.users.iter().filter(|user| user.in_flight.is_some()).count()
    }

    /// The pacer's: this like is due now.
    pub(super) fn submit(&mut self, like: u32) {
        let due = self.likes.due_us[like as usize];
        match self.free_user() {
            Some(i) => self.send(i, like),
            None => self.waiting.push_back(like),
        }
        if self.shared.measured(due) {
            // With no user free the waiting is the service's; the pacer's own lateness is not.
            let sent = self.likes.sent_us[like as usize];
            let ready = if sent > 0 { sent } else { self.shared.clock.now() };
            let lag = ready.saturating_sub(due);
            self.lag.saturating_record(u64::from(lag));
            if let Some(live) = &self.shared.live {
                live.lag.observe(Duration::from_micros(lag.into()));
            }
        }
    }

    fn free_user(&mut self) -> Option<usize> {
        while let Some(i) = self.idle.pop_front() {
            let user = &mut self.users[i];
            user.queued = false;
            if user.in_flight.is_none() && user.link.as_ref().is_some_and(|link| link.ready) {
                return Some(i);
            }
        }
        None
    }

    /// A user is free: it takes the oldest like that waits, or queues up.
    fn free(&mut self, i: usize) {
        match self.waiting.pop_front() {
            Some(like) => self.send(i, like),
            None if !self.users[i].queued => {
                self.users[i].queued = true;
                self.idle.push_back(i);
            }
            None => {}
        }
    }

    fn send(&mut self, i: usize, like: u32) {
        let slot = like as usize;
        let target = &self.options.targets[i % self.options.targets.len()];
        let post = self.options.posts[self.likes.post[slot] as usize];
        let key = self.options.keys.as_ref().map(|prefix| format!("{prefix}-{like}"));
        let user = &mut self.users[i];
        let Some(link) = &mut user.link else { return self.waiting.push_front(like) };
        link.request(target, post, like, key.as_deref());
        let now = self.shared.clock.now();
        if self.likes.sent_us[slot] == 0 {
            self.likes.sent_us[slot] = now.max(1);
        }
        let timeout = u32::try_from(self.options.timeout.as_micros()).unwrap_or(u32::MAX / 4);
        user.in_flight = Some((like, now.saturating_add(timeout)));
        if let Err(over) = link.flush() {
            self.lose(i, &over);
        }
    }

    /// A like ended.
    fn finish(&mut self, like: u32, outcome: Outcome, version: u32, at_us: u32) {
        let slot = like as usize;
        // A refusal says nothing of an earlier try whose outcome is unknown.
        let open = match outcome {
            Outcome::Unknown => self.options.keys.is_some(),
            Outcome::Failed => self.tries.get(slot).is_some_and(|tries| *tries > 0),
            Outcome::Ok | Outcome::Unsent => false,
        };
        if open {
            let tries = u32::from(self.tries[slot]);
            self.tries[slot] = self.tries[slot].saturating_add(1);
            let at = self.shared.clock.now() + self.jitter_us(tries);
            self.retries.push(Reverse((at, like)));
            return;
        }
        self.likes.outcome[slot] = outcome as u8;
        self.likes.version[slot] = version;
        if outcome != Outcome::Unknown {
            self.likes.answered_us[slot] = at_us;
        }
        self.shared.answered.fetch_add(1, Ordering::Relaxed);
        if let Some(live) = &self.shared.live {
            live.ended(outcome, self.likes.post[slot], version, self.likes.due_us[slot]);
        }
    }

    fn jitter_us(&mut self, attempts: u32) -> u32 {
        let bound = BACKOFF_MS.0.saturating_mul(1 << attempts.min(10)).min(BACKOFF_MS.1);
        self.rng.random_range(0..=bound * 1_000)
    }

    /// A user's socket is ready.
    pub(super) fn serve(&mut self, i: usize, writable: bool, readable: bool, reader: &mut StampedReader) {
        let done = self.try_serve(i, writable, readable, reader);
        if let Err(over) = done {
            self.lose(i, &over);
        }
    }

    fn try_serve(&mut self, i: usize, writable: bool, readable: bool, reader: &mut StampedReader) -> Result<(), Over> {
        let Some(link) = &mut self.users[i].link else { return Ok(()) };
        if writable && link.flush()? {
            self.ready(i);
        }
        if !readable {
            return Ok(());
        }
        loop {
            let user = &mut self.users[i];
            let Some(link) = &mut user.link else { return Ok(()) };
            let read = reader.read(&link.stream).map_err(|e| Over(e.to_string()))?;
            let Some(read) = read else { return Ok(()) };
            let now = self.shared.clock.now();
            link.last_read_us = now;
            let at = read.stamp.map_or(now, |stamp| self.shared.clock.of_stamp(stamp));
            let number = user.in_flight.map(|(like, _)| like);
            let news = link.feed(reader.bytes(read.len), number)?;
            if !link.outbox.is_empty() {
                link.flush()?;
            }
            match (news, number) {
                (Some(News::Ready), _) => self.ready(i),
                (Some(News::Answer(outcome, version)), Some(like)) => {
                    user.in_flight = None;
                    let usable = link.ready;
                    self.finish(like, outcome, version, at);
                    if !usable {
                        return Err(Over("the server closes after this answer".into()));
                    }
                    self.free(i);
                }
                _ if read.len == 0 => return Err(Over("eof".into())),
                _ => {}
            }
        }
    }

    fn ready(&mut self, i: usize) {
        self.users[i].attempts = 0;
        self.shared.likers.fetch_add(1, Ordering::Relaxed);
        self.free(i);
    }

    /// A user's connection is over: its like is unknown, and it connects again after a back-off.
    fn lose(&mut self, i: usize, over: &Over) {
        tracing::debug!(user = i, reason = over.0, "a liking user lost its connection");
        let now = self.shared.clock.now();
        let user = &mut self.users[i];
        if let Some(mut link) = user.link.take() {
            let _ = self.registry.deregister(&mut link.stream);
            // `ready` is also false after a last answer; the count is of users that were ready once.
            if user.attempts == 0 {
                self.shared.likers.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let (attempts, in_flight) = (user.attempts, user.in_flight.take());
        user.attempts += 1;
        if let Some((like, _)) = in_flight {
            self.finish(like, Outcome::Unknown, 0, now);
        }
        let at = now + self.jitter_us(attempts);
        self.users[i].connect_at_us = Some(at);
    }

    /// Reconnects, repeats, time-outs and heart-beats.
    pub(super) fn tick(&mut self) {
        let now = self.shared.clock.now();
        self.connect_some(now);
        while let Some(Reverse((at, like))) = self.retries.peek().copied() {
            if at > now {
                break;
            }
            let Some(i) = self.free_user() else { break };
            self.retries.pop();
            self.send(i, like);
        }
        if now >= self.next_look_us {
            self.next_look_us = now + 100_000;
            (0..self.users.len()).for_each(|i| self.look(i, now));
        }
    }

    fn connect_some(&mut self, now: u32) {
        // What could not be used of the last tick's turns is lost, except for one tick's worth.
        self.next_connect_us = self.next_connect_us.max(now.saturating_sub(40_000));
        for i in 0..self.users.len() {
            if self.next_connect_us > now {
                return;
            }
            if self.users[i].connect_at_us.is_none_or(|at| at > now) {
                continue;
            }
            self.next_connect_us += 1_000_000 / self.options.connect_rate.max(1);
            self.users[i].connect_at_us = None;
            if let Err(over) = self.connect(i, now) {
                // Not ready yet, so not counted as such.
                self.users[i].attempts = self.users[i].attempts.max(1);
                self.lose(i, &over);
            }
        }
    }

    fn connect(&mut self, i: usize, now: u32) -> Result<(), Over> {
        let target = &self.options.targets[i % self.options.targets.len()];
        let heartbeat = u32::try_from(self.options.heartbeat.as_millis()).unwrap_or(u32::MAX);
        let opened = UserLink::open(self.options.channel, target, heartbeat, now);
        let mut link = opened.map_err(|e| Over(e.to_string()))?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.registry.register(&mut link.stream, Token(i), interest).map_err(|e| Over(e.to_string()))?;
        // From here to its readiness an end is a failed attempt.
        self.users[i].attempts = self.users[i].attempts.max(1);
        self.users[i].link = Some(link);
        Ok(())
    }

    fn look(&mut self, i: usize, now: u32) {
        let beat = u32::try_from(self.options.heartbeat.as_micros()).unwrap_or(u32::MAX / 4);
        let user = &mut self.users[i];
        let Some(link) = &mut user.link else { return };
        if user.in_flight.is_some_and(|(_, until)| now > until) {
            return self.lose(i, &Over("no answer in time".into()));
        }
        if link.beats() && now.saturating_sub(link.last_read_us) > beat.saturating_mul(2) {
            return self.lose(i, &Over("silent".into()));
        }
        if now.saturating_sub(link.last_beat_us) >= beat / 2 {
            link.last_beat_us = now;
            link.heartbeat();
            if let Err(over) = link.flush() {
                self.lose(i, &over);
            }
        }
    }

    /// The end: what has no outcome is unknown if it was sent, else unsent.
    pub(super) fn take(&mut self) -> Liked {
        for (outcome, sent) in self.likes.outcome.iter_mut().zip(&self.likes.sent_us) {
            if *outcome != Outcome::Unsent as u8 {
                continue;
            }
            if *sent > 0 {
                *outcome = Outcome::Unknown as u8;
            }
            if let Some(live) = &self.shared.live {
                live.ended(if *sent > 0 { Outcome::Unknown } else { Outcome::Unsent }, 0, 0, 0);
            }
        }
        let lag = Histogram::new_from(&self.lag);
        let retried = self.tries.iter().map(|tries| u64::from(*tries)).sum();
        Liked { likes: std::mem::take(&mut self.likes), lag: std::mem::replace(&mut self.lag, lag), retried }
    }
}
