//! The thread: epoll, slab, rounds, sweep. Its inputs: sockets, the inbox, and time.
//!
//! Invariants: the thread never waits for anything but epoll; between two looks at epoll and inbox it visits at most one
//! slice of viewers; a connection is removed only in `reap`, so a key stays good within a phase.

/// A connection.
mod conn;
/// Topics and rounds.
mod fanout;
/// Mailboxes with more than the newest.
mod queued;
/// Time-outs and drain.
mod sweep;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::{Events, Poll, Token, Waker};
use slab::Slab;

use self::conn::{Conn, Stream, Tick, Wrote, reason_of};
use super::handle::{Adopted, Command, Inbox};
use super::{Change, CloseReason, ConnKey, EngineCounters, EngineHandle, EngineOptions, Flow, Protocol};
use crate::affinity;
use crate::domain::{Epoch, PostId};

/// The unit of [`Tick`].
const TICK: Duration = Duration::from_millis(10);
/// The waker's token; no slab grows this far.
const WAKER: Token = Token(usize::MAX);
/// Answers that a connection may have pending before nothing more is read from it, bytes.
const STOP_READING: usize = 16 * 1024;
/// Reads of one connection in a row.
const READS: usize = 4;

/// One engine.
#[derive(Debug)]
struct Engine<P: Protocol> {
    inbox: Arc<Inbox<P>>,
    options: EngineOptions,
    poll: Poll,
    conns: Slab<Conn<P>>,
    topics: Slab<fanout::Topic<P>>,
    by_post: HashMap<PostId, u32>,
    /// Topics with a round under way.
    active: VecDeque<u32>,
    /// Topics whose flush window ends at that time, in this order.
    windows: VecDeque<(Instant, u32)>,
    /// To be removed, and why.
    doomed: Vec<(u32, CloseReason)>,
    /// To be ended with last words, and why.
    leaving: Vec<(u32, CloseReason)>,
    /// Whose versions these are.
    epoch: Epoch,
    /// Updates kept per topic; 0 is the newest only.
    depth: usize,
    /// Connections that had more to read than their turn allowed.
    unfinished: Vec<u32>,
    counters: EngineCounters,
    /// Whether deliveries are timed; always, but in the bench of what that costs.
    measuring: bool,
    /// When the last update was written to a viewer, Unix µs.
    wrote_at: u64,
    sweep: sweep::Sweep,
    draining: Option<sweep::Draining>,
    generation: u32,
    started: Instant,
    now: Instant,
    tick: Tick,
    read_buffer: Box<[u8]>,
    scratch: Vec<u8>,
}

/// Tells the handles that the thread has ended, also when it panics.
struct Alive<P: Protocol>(Arc<Inbox<P>>);

impl<P: Protocol> Drop for Alive<P> {
    fn drop(&mut self) {
        self.0.alive.store(false, Ordering::SeqCst);
        self.0.take(&mut Vec::new());
    }
}

/// Starts an engine.
pub(super) fn spawn<P: Protocol>(index: u16, options: EngineOptions) -> io::Result<(EngineHandle<P>, JoinHandle<()>)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    let inbox = Arc::new(Inbox::new(index, waker));
    let handle = EngineHandle { inbox: Arc::clone(&inbox) };
    let thread = std::thread::Builder::new().name(format!("engine-{index}")).spawn(move || {
        let alive = Alive(Arc::clone(&inbox));
        if let Err(error) = affinity::pin(options.cpu.as_slice()) {
            tracing::warn!(%error, "the engine's thread could not be pinned; it runs on any core");
        }
        Engine::new(poll, inbox, options).run();
        drop(alive);
    })?;
    Ok((handle, thread))
}

impl<P: Protocol> Engine<P> {
    fn new(poll: Poll, inbox: Arc<Inbox<P>>, options: EngineOptions) -> Self {
        let now = Instant::now();
        Self {
            inbox,
            epoch: options.epoch,
            depth: options.mailbox.depth(),
            options,
            poll,
            conns: Slab::new(),
            topics: Slab::new(),
            by_post: HashMap::new(),
            active: VecDeque::new(),
            windows: VecDeque::new(),
            doomed: Vec::new(),
            leaving: Vec::new(),
            unfinished: Vec::new(),
            counters: EngineCounters::default(),
            measuring: true,
            wrote_at: 0,
            sweep: sweep::Sweep::new(now),
            draining: None,
            generation: 0,
            started: now,
            now,
            tick: 0,
            read_buffer: vec![0; 16 * 1024].into_boxed_slice(),
            scratch: Vec::new(),
        }
    }

    fn run(&mut self) {
        let mut events = Events::with_capacity(1024);
        let mut commands = Vec::new();
        let mut busy = false;
        loop {
            let waits_from = Instant::now();
            self.counters.busy_us += u64::try_from((waits_from - self.now).as_micros()).unwrap_or(u64::MAX);
            if let Err(error) = self.poll.poll(&mut events, Some(self.timeout(busy, waits_from)))
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "epoll failed; the engine ends");
                break;
            }
            self.tell_time();
            for event in &events {
                if event.token() != WAKER {
                    self.on_event(u32::try_from(event.token().0).expect("keys are below 2^32"), event);
                }
            }
            for key in std::mem::take(&mut self.unfinished) {
                self.read(key);
            }
            self.inbox.take(&mut commands);
            for command in commands.drain(..) {
                if self.on_command(command) {
                    self.end();
                    self.inbox.published.store(&mut self.counters);
                    return;
                }
            }
            while self.windows.front().is_some_and(|(due, _)| *due <= self.now) {
                let (_, topic) = self.windows.pop_front().expect("just seen");
                self.topics[topic as usize].waiting = false;
                self.start_round(topic);
            }
            busy = self.run_slice() || !self.unfinished.is_empty();
            self.sweep();
            self.end_leaving();
            self.reap();
            self.inbox.published.store(&mut self.counters);
        }
    }

    fn timeout(&self, busy: bool, now: Instant) -> Duration {
        if busy {
            return Duration::ZERO;
        }
        let due = self.windows.front().map_or(self.sweep.due, |(due, _)| self.sweep.due.min(*due));
        due.saturating_duration_since(now)
    }

    fn tell_time(&mut self) {
        self.now = Instant::now();
        let ticks = self.now.duration_since(self.started).as_millis() / TICK.as_millis();
        self.tick = Tick::try_from(ticks).unwrap_or(Tick::MAX);
    }

    /// True means: end.
    fn on_command(&mut self, command: Command<P>) -> bool {
        match command {
            Command::Add(adopted) => self.add(*adopted),
            Command::Publish(update, gap, at, traced) => self.publish_traced(update, gap, at, traced),
            Command::PublishTo(key, slot, update, gap, at) => self.publish_to(key, slot, update, gap, at),
            Command::Reply(key, reply) => self.on_reply(key, reply),
            Command::Forget(post) => self.forget(post),
            Command::Renew(epoch, over) => self.renew(epoch, over),
            Command::Drain(over) => self.drain(over),
            Command::Measure(on) => self.measuring = on,
            Command::Stop => return true,
        }
        false
    }

    fn key_of(&self, key: u32) -> ConnKey {
        ConnKey { engine: self.inbox.index, index: key, generation: self.conns[key as usize].generation }
    }

    fn add(&mut self, adopted: Adopted<P>) {
        let Adopted { socket, protocol, unread, subscriptions, first } = adopted;
        let transport = protocol.transport();
        self.counters.of_mut(transport).accepted += 1;
        self.generation = self.generation.wrapping_add(1);
        let entry = self.conns.vacant_entry();
        let token = Token(entry.key());
        let stream = Stream::new(socket, &self.options).and_then(|mut stream| {
            stream.register(self.poll.registry(), token)?;
            Ok(stream)
        });
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "a socket could not be taken over");
                self.counters.of_mut(transport).closed(reason_of(&error));
                return;
            }
        };
        entry.insert(Conn::new(stream, protocol, self.generation, self.tick));
        let key = u32::try_from(token.0).expect("fewer than 2^32 connections");
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        out.extend_from_slice(&first);
        subscriptions.iter().for_each(|subscription| out.extend_from_slice(&subscription.first));
        self.apply(key, &out, Flow::Continue);
        self.scratch = out;
        subscriptions.into_iter().for_each(|subscription| self.subscribe(key, subscription));
        if !unread.is_empty() {
            self.feed(key, &unread);
        }
    }

    fn on_event(&mut self, key: u32, event: &mio::event::Event) {
        if !self.conns.contains(key as usize) {
            return;
        }
        if event.is_writable() {
            self.on_writable(key);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(key);
        }
    }

    fn on_writable(&mut self, key: u32) {
        let conn = &mut self.conns[key as usize];
        if conn.doomed {
            return;
        }
        conn.blocked = false;
        let mut calls = 0;
        let wrote = conn.flush(self.tick, &mut calls);
        let counters = self.counters.of_mut(conn.protocol.transport());
        match wrote {
            Wrote::Some(written) => {
                counters.socket_writes += calls;
                counters.written_bytes += written as u64;
            }
            Wrote::Nothing => {}
            Wrote::Failed(reason) => return self.doom(key, reason),
        }
        if conn.pending_bytes() > 0 {
            return;
        }
        if conn.closing.is_some() {
            return conn.shutdown_when_flushed(self.tick);
        }
        let unread = conn.input_waiting;
        self.deliver_links(key);
        if unread {
            self.read(key);
        }
    }

    /// Reads until the socket is empty, the protocol wants no more, or the turn is over.
    fn read(&mut self, key: u32) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        for _ in 0..READS {
            let Some(conn) = self.conns.get_mut(key as usize).filter(|conn| !conn.doomed) else { break };
            conn.input_waiting = true;
            if conn.closing.is_none() && (conn.paused || conn.pending_bytes() > STOP_READING) {
                break;
            }
            match conn.stream.read(&mut buffer) {
                Ok(0) => self.ended_by_peer(key, CloseReason::Peer),
                Ok(read) => {
                    conn.last_read = self.tick;
                    // A short read has emptied the socket; what comes later is a new event.
                    conn.input_waiting = read == buffer.len();
                    let more = conn.input_waiting;
                    if conn.closing.is_none() {
                        self.feed(key, &buffer[..read]);
                    }
                    if !more {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    conn.input_waiting = false;
                    break;
                }
                Err(error) => self.ended_by_peer(key, reason_of(&error)),
            }
        }
        self.read_buffer = buffer;
        let more = |conn: &Conn<P>| conn.input_waiting && !conn.paused && conn.pending_bytes() <= STOP_READING;
        if self.conns.get(key as usize).is_some_and(|conn| !conn.doomed && more(conn)) {
            self.unfinished.push(key);
        }
    }

    /// The peer's direction has ended. Without a word, and after a long silence, something in between has cut the stream.
    fn ended_by_peer(&mut self, key: u32, how: CloseReason) {
        let conn = &self.conns[key as usize];
        let silent = TICK * self.tick.wrapping_sub(conn.last_read.max(conn.last_write));
        let by_peer = conn.closing.is_none() && !conn.doomed && matches!(how, CloseReason::Peer | CloseReason::Reset);
        if by_peer && silent >= self.options.idle_cut {
            self.counters.of_mut(conn.protocol.transport()).idle_cuts += 1;
        }
        let reason = conn.closing.unwrap_or(how);
        self.doom(key, reason);
    }

    fn feed(&mut self, key: u32, input: &[u8]) {
        let name = self.key_of(key);
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        let flow = self.conns[key as usize].protocol.feed(name, input, &mut out);
        self.apply(key, &out, flow);
        self.scratch = out;
    }

    fn on_reply(&mut self, name: ConnKey, reply: P::Reply) {
        let alive = |conn: &&mut Conn<P>| conn.generation == name.generation && !conn.doomed && conn.closing.is_none();
        let Some(conn) = self.conns.get_mut(name.index as usize).filter(alive) else { return };
        let key = name.index;
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        let (flow, changes) = conn.protocol.reply(name, reply, &mut out);
        for change in &changes {
            if let Change::Subscribe(subscription) = change {
                out.extend_from_slice(&subscription.first);
            }
        }
        let resumed = conn.paused && flow == Flow::Continue;
        if resumed {
            conn.paused = false;
        }
        self.apply(key, &out, flow);
        self.scratch = out;
        for change in changes {
            if self.conns[key as usize].closing.is_some() {
                break;
            }
            match change {
                Change::Subscribe(subscription) => self.subscribe(key, subscription),
                Change::Unsubscribe { slot } => self.unsubscribe(key, slot),
            }
        }
        if resumed && self.conns[key as usize].input_waiting {
            self.unfinished.push(key);
        }
    }

    /// Writes a protocol's own bytes and does what it wants next.
    fn apply(&mut self, key: u32, out: &[u8], flow: Flow) {
        let conn = &mut self.conns[key as usize];
        if conn.doomed {
            return;
        }
        if !out.is_empty() {
            let counters = self.counters.of_mut(conn.protocol.transport());
            match conn.write(&Bytes::copy_from_slice(out), true, self.tick) {
                Wrote::Some(0) | Wrote::Nothing => {}
                Wrote::Some(written) => {
                    counters.socket_writes += 1;
                    counters.written_bytes += written as u64;
                }
                Wrote::Failed(reason) => return self.doom(key, reason),
            }
            if conn.pending_bytes() > self.options.max_pending {
                return self.doom(key, CloseReason::SlowConsumer);
            }
        }
        match flow {
            Flow::Continue => {}
            Flow::Pause => conn.paused = true,
            Flow::Close(reason) if conn.closing.is_none() => {
                conn.closing = Some(reason);
                conn.since = self.tick;
                conn.shutdown_when_flushed(self.tick);
                self.unlink_all(key);
            }
            Flow::Close(_) => {}
        }
    }

    /// The connection is removed in the next [`Engine::reap`].
    fn doom(&mut self, key: u32, reason: CloseReason) {
        let conn = &mut self.conns[key as usize];
        if !conn.doomed {
            conn.doomed = true;
            self.doomed.push((key, reason));
        }
    }

    /// Removes what is doomed; serving a viewer that moved up may doom another.
    fn reap(&mut self) {
        while let Some((key, reason)) = self.doomed.pop() {
            self.unlink_all(key);
            let conn = self.conns.remove(key as usize);
            self.counters.of_mut(conn.protocol.transport()).closed(reason);
        }
    }
}

#[cfg(test)]
mod tests;
