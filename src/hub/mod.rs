//! Fan-out within a pod: one thread per engine writes shared bytes to every viewer; the mailbox is a version cursor.
//!
//! Invariant: an engine knows bytes, cursors and sockets, and no protocol; a protocol knows bytes and no socket.

/// The delivery path beside raw `write(2)`.
pub mod bench;
/// What the engines count.
pub mod counters;
/// One encoding per update and format, shared by all viewers.
mod encoded;
/// The thread: epoll, slab, rounds, sweep.
mod engine;
/// The way in: commands from other threads.
mod handle;
/// Which events are new, late or repeated; pure.
pub mod topic;

use std::fmt::Debug;
use std::hash::Hash;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::domain::{Epoch, PostId, Transport, Update, Version};
use crate::telemetry::FanOut;

pub use counters::{CloseReason, EngineCounters, LATENCY_BUCKETS_US, TransportCounters};
pub use handle::EngineHandle;

/// Names one connection for as long as it lives; an answer for a connection that has gone is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnKey {
    /// Which engine, see [`Hub::engine`].
    pub engine: u16,
    /// Place in that engine's slab.
    pub index: u32,
    /// Differs between connections that had the same place.
    pub generation: u32,
}

/// What a protocol wants next, after its `out` has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Read nothing more until a reply says [`Flow::Continue`].
    Pause,
    /// Flush, then close.
    Close(CloseReason),
}

/// A viewer's wish to receive a post's updates.
#[derive(Debug)]
pub struct Subscription<P: Protocol> {
    /// The post.
    pub post: PostId,
    /// The connection's own name for it, unique within the connection.
    pub slot: u32,
    /// The epoch of `cursor`: in another one than the engine's the connection is ended, so that it comes back.
    pub epoch: Epoch,
    /// How updates are encoded for it.
    pub format: P::Format,
    /// The version of `first`: newer ones are sent.
    pub cursor: Version,
    /// The snapshot's wire bytes, already encoded; may be empty.
    pub first: Bytes,
    /// Fed by [`Hub::publish_to`] and by nothing else.
    pub alone: bool,
    /// Dropped on the engine's thread (no async runtime there) when the subscription ends.
    pub guard: P::Guard,
}

/// A change to a connection's subscriptions.
#[derive(Debug)]
pub enum Change<P: Protocol> {
    /// Send `first`, then everything newer.
    Subscribe(Subscription<P>),
    /// Send nothing more for this slot.
    Unsubscribe {
        /// As given in [`Subscription::slot`].
        slot: u32,
    },
}

/// What the engine asks of a protocol. Bytes in, bytes out; the engine owns the socket and the cursors.
///
/// Every method runs on the engine's thread and must not block.
pub trait Protocol: Debug + Send + Sized + 'static {
    /// One shared encoding per distinct value.
    type Format: Clone + Eq + Hash + Send + Sync + Debug + 'static;
    /// What the async side answers to a connection later.
    type Reply: Debug + Send + 'static;
    /// Dropped when a subscription ends.
    type Guard: Debug + Send + 'static;

    /// The complete wire bytes of an update; cached per (update, format) and shared by all.
    fn encode(update: &Update, format: &Self::Format) -> Bytes;
    /// Bytes of this connection's own, instead of the shared ones.
    fn encode_private(&mut self, _update: &Update, _slot: u32) -> Option<Bytes> {
        None
    }
    /// Input from the peer. Called with empty input never.
    fn feed(&mut self, key: ConnKey, input: &[u8], out: &mut Vec<u8>) -> Flow;
    /// An answer from the async side. `out` is written before the changes' own bytes.
    fn reply(&mut self, key: ConnKey, reply: Self::Reply, out: &mut Vec<u8>) -> (Flow, Vec<Change<Self>>);
    /// About once per second: heart-beats, read time-outs, maximum age. Nothing is asked while output is stuck.
    fn sweep(&mut self, now: Instant, last_read: Instant, last_write: Instant, out: &mut Vec<u8>) -> Flow;
    /// Last words before the engine ends the connection for this reason.
    fn end(&mut self, why: CloseReason, out: &mut Vec<u8>);
    /// Whose counters.
    fn transport(&self) -> Transport;
}

/// What happens to updates a viewer is too slow for. In no policy does a slow viewer hold memory of its own: the queue is
/// a ring per post, shared by all, and the viewer has a place in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mailbox {
    /// Only the newest per post is kept: a version cursor, no queue.
    #[default]
    Conflate,
    /// This many of a post's updates wait for each viewer; then it loses the oldest.
    DropOldest(NonZeroUsize),
    /// This many of a post's updates wait for each viewer; one that would lose an update is closed instead.
    Disconnect(NonZeroUsize),
}

impl Mailbox {
    /// Updates kept per post.
    pub(crate) fn depth(self) -> usize {
        match self {
            Self::Conflate => 0,
            Self::DropOldest(depth) | Self::Disconnect(depth) => depth.get(),
        }
    }
}

/// Options of one engine.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Policy for slow viewers.
    pub mailbox: Mailbox,
    /// How long a change may wait for newer ones; zero sends at once.
    pub flush: Duration,
    /// A connection whose socket took nothing for this long is closed.
    pub write_timeout: Duration,
    /// A stream that its peer ends without a word, after the stream was silent in both directions for this long, counts as cut
    /// by something in between ([`TransportCounters::idle_cuts`]).
    pub idle_cut: Duration,
    /// Unsent bytes the kernel may hold per connection (`TCP_NOTSENT_LOWAT`); without it latest-wins is defeated by the socket buffer.
    pub notsent_lowat: u32,
    /// Answers a connection may have pending before it is closed, bytes.
    pub max_pending: usize,
    /// Viewers visited between two looks at epoll and commands.
    pub slice: usize,
    /// The core the thread is pinned to.
    pub cpu: Option<usize>,
    /// Laboratory only: called when half of the first update is written to a viewer's socket; does not return.
    pub half_written: Option<fn()>,
    /// The epoch at the start; see [`Hub::renew`].
    pub epoch: Epoch,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            mailbox: Mailbox::Conflate,
            flush: Duration::ZERO,
            write_timeout: Duration::from_secs(20),
            idle_cut: Duration::from_secs(15),
            notsent_lowat: 4096,
            max_pending: 512 * 1024,
            slice: 256,
            cpu: None,
            half_written: None,
            epoch: Epoch(0),
        }
    }
}

/// The engines of one pod. Clones share them.
#[derive(Debug)]
pub struct Hub<P: Protocol> {
    shared: Arc<Shared<P>>,
}

#[derive(Debug)]
struct Shared<P: Protocol> {
    engines: Vec<EngineHandle<P>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    turn: AtomicUsize,
}

impl<P: Protocol> Clone for Hub<P> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<P: Protocol> Hub<P> {
    /// Starts `threads` engines; none for a pod without streams, where [`Hub::pick`] must not be called.
    ///
    /// # Errors
    /// When the kernel gives no epoll instance or no thread.
    pub fn start(threads: usize, options: &EngineOptions) -> io::Result<Self> {
        let (mut engines, mut joins) = (Vec::new(), Vec::new());
        for index in 0..u16::try_from(threads).unwrap_or(u16::MAX) {
            let mut options = options.clone();
            options.cpu = options.cpu.map(|first| first + usize::from(index));
            let (handle, join) = engine::spawn(index, options)?;
            engines.push(handle);
            joins.push(join);
        }
        let shared = Shared { engines, threads: Mutex::new(joins), turn: AtomicUsize::new(0) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The engine for a new connection: the one with the fewest, ties in turn.
    #[must_use]
    pub fn pick(&self) -> &EngineHandle<P> {
        let engines = &self.shared.engines;
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed) % engines.len().max(1);
        let order = (0..engines.len()).map(|i| &engines[(turn + i) % engines.len()]);
        order.min_by_key(|engine| engine.all_connections()).expect("a pod with streams has engines")
    }

    /// The engine of a connection.
    #[must_use]
    pub fn engine(&self, key: ConnKey) -> &EngineHandle<P> {
        &self.shared.engines[usize::from(key.engine)]
    }

    /// Hands an accepted update to every engine. `gap`: versions skipped when it was accepted (see [`topic::Topic`]).
    pub fn publish(&self, update: Update, gap: u64) {
        self.publish_traced(update, gap, &FanOut::none());
    }

    /// As [`Hub::publish`], for an update whose fan-out may be traced: each engine lets go of it when it has tried its viewers.
    pub fn publish_traced(&self, update: Update, gap: u64, traced: &FanOut) {
        self.shared.engines.iter().for_each(|engine| engine.publish_traced(update, gap, traced.clone()));
    }

    /// As [`Hub::publish`], for one subscription that is [`Subscription::alone`].
    pub fn publish_to(&self, key: ConnKey, slot: u32, update: Update, gap: u64) {
        self.engine(key).publish_to(key, slot, update, gap);
    }

    /// As [`EngineHandle::measure`].
    pub(crate) fn measure(&self, on: bool) {
        self.shared.engines.iter().for_each(|engine| engine.measure(on));
    }

    /// Answers a connection; nothing happens when it has gone.
    pub fn reply(&self, key: ConnKey, reply: P::Reply) {
        self.engine(key).reply(key, reply);
    }

    /// The post has no viewer any more: its state need not be kept. (Ignored by an engine that has viewers of it.)
    pub fn forget(&self, post: PostId) {
        self.shared.engines.iter().for_each(|engine| engine.forget(post));
    }

    /// Another epoch begins: no post's state is known any more, and the connections there are end, spread over `over`,
    /// so that their viewers come back. Updates published from now on go to those who come in this epoch.
    pub fn renew(&self, epoch: Epoch, over: Duration) {
        self.shared.engines.iter().for_each(|engine| engine.renew(epoch, over));
    }

    /// Ends all connections, spread over `over`; [`Hub::connections`] tells when it is done.
    pub fn drain(&self, over: Duration) {
        self.shared.engines.iter().for_each(|engine| engine.drain(over));
    }

    /// Ends everything now and waits for the threads.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// Sum over the engines.
    #[must_use]
    pub fn counters(&self) -> EngineCounters {
        let mut sum = EngineCounters::default();
        self.shared.engines.iter().for_each(|engine| sum.add(&engine.counters()));
        sum
    }

    /// Connections handed over and not yet closed.
    #[must_use]
    pub fn connections(&self, transport: Transport) -> usize {
        self.shared.engines.iter().map(|engine| engine.connections(transport)).sum()
    }

    /// False when an engine's thread has ended (after [`Hub::stop`], or by a panic): the pod is then of no use.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.shared.engines.iter().all(EngineHandle::is_alive)
    }
}

impl<P: Protocol> Shared<P> {
    fn stop(&self) {
        self.engines.iter().for_each(EngineHandle::stop);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl<P: Protocol> Drop for Shared<P> {
    fn drop(&mut self) {
        self.stop();
    }
}
