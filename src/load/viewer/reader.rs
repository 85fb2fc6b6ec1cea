//! The epoll loop of one viewer thread. Its inputs: sockets, commands (through the waker), and timers for coming,
//! leaving, reconnecting, heart-beats and silence.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use anyhow::Context;
use mio::{Events, Interest, Poll, Token, Waker};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::link::Link;
use super::{Behind, Command, ViewerOptions, Visit};
use crate::domain::Update;
use crate::load::config::SseClient;
use crate::load::live::Waiting;
use crate::load::recorder::{Recorder, Shared};
use crate::load::socket::{self, StampedReader};
use crate::load::wire::{Ask, Ended, Wire};
use crate::result::{GAVE_UP, Session};

const WAKE: Token = Token(usize::MAX);
/// Longest wait for events, so that a command cannot be missed for long.
const TICK: Duration = Duration::from_millis(100);
/// Back-off of reconnects: full jitter below a bound that doubles from the first to the last.
const BACKOFF_MS: (u32, u32) = (100, 2_000);
/// A native EventSource's wait before it reconnects, unless the stream named one by `retry:`.
const NATIVE_RETRY_MS: u32 = 3_000;
/// A slow reader's receive buffer, in bytes: its stall reaches the sender soon.
const SLOW_BUFFER: usize = 4_096;

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// Come, or come back.
    Connect,
    /// Leave.
    Leave,
    /// See whether a heart-beat is due, or has been missed; of this generation of its link.
    Look(u32),
}

/// One viewer.
struct Viewer {
    visit: Visit,
    link: Option<Link>,
    /// Counts links: a timer of an earlier one is void.
    generation: u32,
    /// Attempts since the last snapshot.
    attempts: u32,
    /// The last version and id seen by any of its sessions.
    last_version: Option<u32>,
    last_id: String,
    /// The last `retry:` seen by any of its sessions, in ms.
    retry_ms: Option<u32>,
    /// Left for good.
    gone: bool,
}

/// A thread's state.
pub(super) struct Reader {
    options: ViewerOptions,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    poll: Poll,
    waker: Arc<Waker>,
    viewers: Vec<Viewer>,
    timers: BinaryHeap<Reverse<(u32, usize, Timer)>>,
    /// Viewers that wait for their turn to connect, and when the next may.
    queue: VecDeque<usize>,
    next_connect_us: u32,
    settled: bool,
    rng: StdRng,
    recorder: Recorder,
    stamped: StampedReader,
    /// What `--metrics-listen` has not booked yet.
    waiting: Waiting,
    /// The last body of each post and what it says: all viewers of a post get the same bytes.
    memo: Vec<(Vec<u8>, Option<Update>)>,
}

impl Reader {
    /// Nothing is connected yet; viewers without an arrival time queue up.
    pub(super) fn new(
        options: ViewerOptions,
        visits: Vec<Visit>,
        recorder: Recorder,
        shared: Arc<Shared>,
        commands: Receiver<Command>,
    ) -> anyhow::Result<Self> {
        let poll = Poll::new().context("epoll")?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).context("eventfd")?);
        let viewer = |visit| Viewer {
            visit,
            link: None,
            generation: 0,
            attempts: 0,
            last_version: None,
            last_id: String::new(),
            retry_ms: None,
            gone: false,
        };
        let queue = visits.iter().enumerate().filter(|(_, v)| v.arrives_us.is_none()).map(|(i, _)| i).collect();
        Ok(Self {
            rng: StdRng::seed_from_u64(options.seed),
            memo: vec![(Vec::new(), None); options.posts.len()],
            viewers: visits.into_iter().map(viewer).collect(),
            options,
            shared,
            commands,
            poll,
            waker,
            timers: BinaryHeap::new(),
            queue,
            next_connect_us: 0,
            settled: false,
            recorder,
            stamped: StampedReader::new(),
            waiting: Waiting::default(),
        })
    }

    /// Wakes the loop after a command was sent.
    pub(super) fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Runs until told to stop.
    pub(super) fn run(mut self) -> anyhow::Result<Recorder> {
        let mut events = Events::with_capacity(1_024);
        loop {
            match self.poll.poll(&mut events, Some(self.patience())) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.context("epoll_wait")?,
            }
            for event in &events {
                if event.token() == WAKE {
                    if !self.obey() {
                        return Ok(self.close());
                    }
                    continue;
                }
                let i = event.token().0;
                let done = self.serve(i, event.is_writable(), event.is_readable(), event.is_read_closed());
                if let Err(ended) = done {
                    self.lose(i, &ended);
                }
            }
            self.on_timers();
            self.connect_queued();
            if let Some(live) = &self.shared.live {
                self.waiting.settle(self.shared.clock.now(), live, &self.shared);
            }
        }
    }

    /// How long the loop may wait.
    fn patience(&self) -> Duration {
        let now = self.shared.clock.now();
        let timer = self.timers.peek().map(|Reverse((at, ..))| *at);
        let connect = (!self.queue.is_empty()).then_some(self.next_connect_us);
        let next = timer.into_iter().chain(connect).min();
        next.map_or(TICK, |at| Duration::from_micros(at.saturating_sub(now).into()).min(TICK))
    }

    /// Carries out what was told; false: stop.
    fn obey(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Start(at)) => {
                    for (i, viewer) in self.viewers.iter().enumerate() {
                        let visit = viewer.visit;
                        self.timers.extend(visit.arrives_us.map(|us| Reverse((at + us, i, Timer::Connect))));
                        self.timers.extend(visit.leaves_us.map(|us| Reverse((at + us, i, Timer::Leave))));
                    }
                }
                Ok(Command::Settle) => self.settle(),
                Ok(Command::Behind(versions, answer)) => {
                    let _ = answer.send(self.behind(&versions));
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn settle(&mut self) {
        self.settled = true;
        for i in 0..self.viewers.len() {
            let Some(link) = &mut self.viewers[i].link else { continue };
            if std::mem::take(&mut link.stalled) {
                link.last_life_us = self.shared.clock.now();
                // What waits in the socket raises no further edge.
                if let Err(ended) = self.serve(i, true, true, true) {
                    self.lose(i, &ended);
                }
            }
        }
    }

    fn behind(&self, versions: &[u64]) -> Behind {
        let mut sum = Behind::default();
        for viewer in self.viewers.iter().filter(|viewer| !viewer.gone && viewer.generation > 0) {
            let wanted = versions[self.post(&viewer.visit)];
            let seen = viewer.link.as_ref().and_then(|link| self.recorder.last_version(link.session));
            let seen = seen.map(u64::from);
            sum.behind += u32::from(seen != Some(wanted));
            sum.beyond += u32::from(seen > Some(wanted));
        }
        sum
    }

    fn post(&self, visit: &Visit) -> usize {
        visit.viewer as usize % self.options.posts.len()
    }

    fn on_timers(&mut self) {
        let now = self.shared.clock.now();
        while let Some(Reverse((at, i, timer))) = self.timers.peek().copied() {
            if at > now {
                return;
            }
            self.timers.pop();
            match timer {
                Timer::Connect => self.queue.push_back(i),
                Timer::Leave if self.settled => {}
                Timer::Leave => self.leave(i, now),
                Timer::Look(generation) => self.look(i, generation, now),
            }
        }
    }

    fn leave(&mut self, i: usize, now: u32) {
        let viewer = &mut self.viewers[i];
        viewer.gone = true;
        if viewer.link.is_none() && viewer.generation > 0 {
            // It leaves while it waits to come back: the record says so, or it would pass for a live viewer.
            let (visit, resumed_from) = (viewer.visit, viewer.last_version.map(u64::from));
            let post = u32::try_from(self.post(&visit)).unwrap_or(u32::MAX);
            let (viewer, ended_us, reason) = (visit.viewer, Some(now), Some("left".to_owned()));
            let session =
                Session { viewer, post, attempted_us: now, resumed_from, ended_us, reason, ..Session::default() };
            self.recorder.begin(session);
        }
        self.end(i, "left");
    }

    /// Opens the connections whose turn it is.
    fn connect_queued(&mut self) {
        let now = self.shared.clock.now();
        let gap = (1_000_000 / self.options.connect_rate).max(1);
        // Turns that could not be used are not made up for by a burst.
        self.next_connect_us = self.next_connect_us.max(now.saturating_sub(10_000));
        while self.next_connect_us <= now {
            let Some(i) = self.queue.pop_front() else { return };
            if self.viewers[i].gone || self.viewers[i].link.is_some() {
                continue;
            }
            if self.settled && self.viewers[i].generation == 0 {
                // It would come when nobody comes any more.
                continue;
            }
            self.next_connect_us += gap;
            if let Err(ended) = self.open(i) {
                self.lose(i, &ended);
            }
        }
    }

    fn open(&mut self, i: usize) -> Result<(), Ended> {
        let now = self.shared.clock.now();
        let (visit, half) = (self.viewers[i].visit, self.half_beat());
        let post = self.post(&visit);
        let target = &self.options.targets[visit.viewer as usize % self.options.targets.len()];
        let viewer = &mut self.viewers[i];
        viewer.generation += 1;
        viewer.attempts += 1;
        let session = self.recorder.begin(Session {
            viewer: visit.viewer,
            post: u32::try_from(post).unwrap_or(u32::MAX),
            attempted_us: now,
            resumed_from: viewer.last_version.map(u64::from),
            slow: visit.slow,
            ..Session::default()
        });
        let ask = Ask {
            transport: self.options.transport,
            authority: &target.authority,
            prefix: &target.prefix,
            authorization: target.authorization.as_deref(),
            post: self.options.posts[post],
            last_id: &viewer.last_id,
            heartbeat_ms: u32::try_from(self.options.heartbeat.as_millis()).unwrap_or(u32::MAX),
            gzip: self.options.gzip,
            named_beats: self.options.client == SseClient::NamedHeartbeat,
        };
        let mut outbox = Vec::new();
        let wire = Wire::open(&ask, &mut outbox);
        let opened = socket::connect(target.addr, visit.slow.then_some(SLOW_BUFFER)).and_then(|mut stream| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(i), interest)?;
            Ok(stream)
        });
        let stream = opened.map_err(|e| {
            let ended = Ended::new(socket::word(&e));
            self.recorder.sessions[session].ended_us = Some(now);
            self.recorder.sessions[session].reason = Some(ended.reason.clone());
            ended
        })?;
        self.shared.open.fetch_add(1, Ordering::Relaxed);
        let (stalled, connected) = (false, false);
        viewer.link =
            Some(Link { stream, wire, session, connected, stalled, last_life_us: now, last_beat_us: now, outbox });
        self.timers.push(Reverse((now + half, i, Timer::Look(viewer.generation))));
        Ok(())
    }

    fn beat(&self) -> u32 {
        u32::try_from(self.options.heartbeat.as_micros()).unwrap_or(u32::MAX / 4)
    }

    fn half_beat(&self) -> u32 {
        self.beat() / 2
    }

    /// A socket is ready.
    fn serve(&mut self, i: usize, writable: bool, readable: bool, closed: bool) -> Result<(), Ended> {
        let Some(link) = &mut self.viewers[i].link else { return Ok(()) };
        if writable {
            link.flush()?;
        }
        if !readable {
            return Ok(());
        }
        loop {
            let Some(link) = &mut self.viewers[i].link else { return Ok(()) };
            if link.stalled {
                return Ok(());
            }
            let Some(read) = link.read(&mut self.stamped)? else { return Ok(()) };
            self.take(i, &read)?;
            // A short read empties the socket; only an end of the stream can still be behind it.
            if !self.stamped.was_full(read.len) && !closed {
                return Ok(());
            }
        }
    }

    /// Bytes were read: book the updates in them.
    fn take(&mut self, i: usize, read: &socket::Read) -> Result<(), Ended> {
        let now = self.shared.clock.now();
        let at = read.stamp.map_or(now, |stamp| self.shared.clock.of_stamp(stamp));
        let viewer = &mut self.viewers[i];
        let Some(link) = &mut viewer.link else { return Ok(()) };
        if self.shared.measured(at) {
            self.recorder.stamp_to_read.saturating_record(u64::from(now.saturating_sub(at)));
            self.recorder.received_bytes += read.len as u64;
            self.recorder.unstamped += u64::from(read.stamp.is_none());
        }
        let session = link.session;
        let post = self.recorder.sessions[session].post as usize;
        let (recorder, memo) = (&mut self.recorder, &mut self.memo[post]);
        let (shared, waiting) = (&self.shared, &mut self.waiting);
        let live = shared.live.as_ref().filter(|_| !viewer.visit.slow);
        let (last_version, last_id) = (&mut viewer.last_version, &mut viewer.last_id);
        let (mut updates, mut joined) = (0, false);
        let wanted = self.options.posts[post];
        let beats = link.wire.named_beats;
        let done = link.wire.feed(self.stamped.bytes(read.len), &mut link.outbox, |body, id| {
            if memo.0 != body {
                memo.0.clear();
                memo.0.extend_from_slice(body);
                memo.1 = Update::from_json(body).ok().filter(|update| update.post_id() == wanted);
            }
            let Some(update) = &memo.1 else {
                recorder.unreadable += 1;
                return;
            };
            updates += 1;
            if let Some(live) = live {
                waiting.push(recorder.arrival(session, update, at), live, shared);
            }
            joined |= recorder.update(session, update, at);
            *last_version = recorder.last_version(session);
            last_id.clear();
            last_id.push_str(id);
        });
        let events = updates > 0 || link.wire.named_beats > beats;
        // A page on EventSource is shown events and no comments; the others see every byte.
        if events || !matches!(self.options.client, SseClient::Watchdog | SseClient::NamedHeartbeat) {
            link.last_life_us = now;
        }
        self.shared.updates.fetch_add(updates, Ordering::Relaxed);
        if joined {
            self.recorder.sessions[session].pod.clone_from(&link.wire.pod);
            viewer.attempts = 0;
            self.shared.joined.fetch_add(1, Ordering::Relaxed);
            link.stalled = viewer.visit.slow && !self.settled;
        }
        done?;
        if link.outbox.is_empty() { Ok(()) } else { link.flush() }
    }

    /// Sends the heart-beat that is due, and gives up a connection that was silent for two.
    fn look(&mut self, i: usize, generation: u32, now: u32) {
        let (beat, half) = (self.beat(), self.half_beat());
        let viewer = &mut self.viewers[i];
        let Some(link) = viewer.link.as_mut().filter(|_| viewer.generation == generation) else { return };
        let watched = self.options.client != SseClient::Native && !link.stalled;
        if watched && now.saturating_sub(link.last_life_us) > beat.saturating_mul(2) {
            return self.lose(i, &Ended::new("silent"));
        }
        if now.saturating_sub(link.last_beat_us) >= half {
            link.last_beat_us = now;
            link.wire.heartbeat(&mut link.outbox);
            if let Err(ended) = link.flush() {
                return self.lose(i, &ended);
            }
        }
        // Half a beat, less a little, so that two looks never let a whole beat pass.
        self.timers.push(Reverse((now + half.saturating_sub(half / 10).max(1_000), i, Timer::Look(generation))));
    }

    /// A connection ended without being asked to: it is booked, and the viewer comes back after a back-off.
    fn lose(&mut self, i: usize, ended: &Ended) {
        self.shared.losses.fetch_add(1, Ordering::Relaxed);
        let native = self.options.client == SseClient::Native;
        let viewer = &mut self.viewers[i];
        viewer.retry_ms = viewer.link.as_ref().and_then(|link| link.wire.eof().retry_ms).or(viewer.retry_ms);
        let refused = ended.reason == "refused" || ended.reason.starts_with("error: content-type");
        if native && refused && viewer.link.as_ref().is_some_and(|link| link.wire.answered) {
            viewer.gone = true;
            return self.end(i, &format!("{GAVE_UP}{}", ended.reason));
        }
        self.end(i, &ended.reason);
        let viewer = &self.viewers[i];
        if viewer.gone {
            return;
        }
        if native {
            // The last `retry:` of any of its streams, else what Chromium takes; no jitter of its own.
            let wait_ms = viewer.retry_ms.unwrap_or(NATIVE_RETRY_MS).min(60_000);
            let at = self.shared.clock.now().saturating_add(wait_ms * 1_000);
            return self.timers.push(Reverse((at, i, Timer::Connect)));
        }
        let bound = BACKOFF_MS.0.saturating_mul(1 << viewer.attempts.min(10)).min(BACKOFF_MS.1);
        // The server's wish comes on top of the jitter: not all of those it sent away come at one instant.
        let wait_ms = ended.retry_ms.unwrap_or(0).min(10_000) + self.rng.random_range(0..=bound);
        let at = self.shared.clock.now().saturating_add(wait_ms.saturating_mul(1_000));
        self.timers.push(Reverse((at, i, Timer::Connect)));
    }

    /// Closes a viewer's connection, if it has one, and says why in its session.
    fn end(&mut self, i: usize, reason: &str) {
        let Some(mut link) = self.viewers[i].link.take() else { return };
        let _ = self.poll.registry().deregister(&mut link.stream);
        let session = &mut self.recorder.sessions[link.session];
        session.ended_us = Some(self.shared.clock.now());
        session.reason = Some(reason.to_owned());
        if session.pod.is_none() {
            session.pod.clone_from(&link.wire.pod);
        }
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
        if session.joined_us.is_some() {
            self.shared.joined.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The end of the run: those who are connected stay "alive" in the record.
    fn close(mut self) -> Recorder {
        for viewer in &mut self.viewers {
            viewer.link = None;
        }
        if let Some(live) = &self.shared.live {
            self.waiting.settle(u32::MAX, live, &self.shared);
        }
        self.recorder
    }
}
