//! Time: one striped sweep for heart-beats, time-outs and lingering closes; the paced drain; the end.

use std::time::{Duration, Instant};

use super::conn::Tick;
use super::{Engine, TICK};
use crate::domain::Epoch;
use crate::hub::{CloseReason, Protocol};

/// A stripe per this time.
const STEP: Duration = Duration::from_millis(100);
/// A pass over all connections takes this many steps.
const STRIPES: usize = 10;
/// After our end of a connection: how long the peer may take for its own.
const LINGER: Tick = 100;

/// Where the sweep is.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) due: Instant,
    stripe: usize,
}

impl Sweep {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now + STEP, stripe: 0 }
    }
}

/// A drain under way.
#[derive(Debug)]
pub(super) struct Draining {
    why: CloseReason,
    /// Only connections up to this generation; those that come meanwhile stay.
    up_to: Option<u32>,
    since: Instant,
    over: Duration,
    total: usize,
    told: usize,
    at: usize,
}

impl<P: Protocol> Engine<P> {
    /// One step when it is due.
    pub(super) fn sweep(&mut self) {
        if self.now < self.sweep.due {
            return;
        }
        self.sweep.due = self.now + STEP;
        let stripe = self.sweep.stripe;
        self.sweep.stripe = (stripe + 1) % STRIPES;
        for key in (stripe..self.conns.capacity()).step_by(STRIPES) {
            if self.conns.contains(key) {
                self.sweep_one(u32::try_from(key).expect("fewer than 2^32 connections"));
            }
        }
        self.drain_some();
    }

    fn sweep_one(&mut self, key: u32) {
        let conn = &mut self.conns[key as usize];
        if conn.doomed {
            return;
        }
        let waited = self.tick.wrapping_sub(conn.since);
        let write_timeout = Tick::try_from(self.options.write_timeout.as_millis() / TICK.as_millis());
        if let Some(reason) = conn.closing {
            if waited >= if conn.shut { LINGER } else { LINGER * 5 } {
                self.doom(key, reason);
            }
            return;
        }
        if conn.blocked {
            if waited >= write_timeout.unwrap_or(Tick::MAX) {
                self.doom(key, CloseReason::WriteTimeout);
            }
            return;
        }
        let at = |tick: Tick| self.started + TICK * tick;
        let (read, written) = (at(conn.last_read), at(conn.last_write));
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        let flow = self.conns[key as usize].protocol.sweep(self.now, read, written, &mut out);
        self.apply(key, &out, flow);
        self.scratch = out;
    }

    /// Starts to end all connections over `over`.
    pub(super) fn drain(&mut self, over: Duration) {
        self.start_drain(CloseReason::Drain, None, over);
    }

    fn start_drain(&mut self, why: CloseReason, up_to: Option<u32>, over: Duration) {
        self.draining = Some(Draining { why, up_to, since: self.now, over, total: self.conns.len(), told: 0, at: 0 });
        self.drain_some();
    }

    /// Forgets all states, sends nothing more to the connections there are, and ends them over `over`.
    pub(super) fn renew(&mut self, epoch: Epoch, over: Duration) {
        self.epoch = epoch;
        self.forget_all();
        // A pod that leaves ends everybody anyhow.
        if self.draining.as_ref().is_none_or(|draining| draining.up_to.is_some()) {
            self.start_drain(CloseReason::NewEpoch, Some(self.generation), over);
        }
    }

    /// As many as are due by now; when the time is over, all, also those that came meanwhile.
    fn drain_some(&mut self) {
        let Some(mut draining) = self.draining.take() else { return };
        let elapsed = self.now.duration_since(draining.since);
        let over = elapsed >= draining.over;
        let share = if over { 1.0 } else { elapsed.as_secs_f64() / draining.over.as_secs_f64() };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
        let target = (draining.total as f64 * share).ceil() as usize;
        if over {
            draining.at = 0;
        }
        while (over || draining.told < target) && draining.at < self.conns.capacity() {
            // Generations wrap around: the half of the circle before `up_to` is older.
            let meant =
                |generation: u32| draining.up_to.is_none_or(|last| last.wrapping_sub(generation) <= u32::MAX / 2);
            let open = |conn: &super::Conn<P>| conn.closing.is_none() && !conn.doomed && meant(conn.generation);
            if self.conns.get(draining.at).is_some_and(open) {
                self.last_words(u32::try_from(draining.at).expect("fewer than 2^32 connections"), draining.why);
                draining.told += 1;
            }
            draining.at += 1;
        }
        let done = over && draining.up_to.is_some();
        self.draining = (!done).then_some(draining);
    }

    pub(super) fn last_words(&mut self, key: u32, why: CloseReason) {
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        self.conns[key as usize].protocol.end(why, &mut out);
        self.apply(key, &out, crate::hub::Flow::Close(why));
        self.scratch = out;
    }

    /// Ends those that are to leave; serving a viewer that moved up may find another.
    pub(super) fn end_leaving(&mut self) {
        while let Some((key, why)) = self.leaving.pop() {
            if self.conns.get(key as usize).is_some_and(|conn| conn.closing.is_none() && !conn.doomed) {
                self.last_words(key, why);
            }
        }
    }

    /// Ends everything at once, with last words where the socket takes them.
    pub(super) fn end(&mut self) {
        for key in 0..self.conns.capacity() {
            if self.conns.get(key).is_some_and(|conn| conn.closing.is_none() && !conn.doomed) {
                let key = u32::try_from(key).expect("fewer than 2^32 connections");
                self.last_words(key, CloseReason::Drain);
            }
        }
        for key in 0..self.conns.capacity() {
            if self.conns.contains(key) {
                let key = u32::try_from(key).expect("fewer than 2^32 connections");
                self.doom(key, CloseReason::Stopped);
            }
        }
        self.reap();
    }
}
