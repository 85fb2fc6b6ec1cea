//! The way into an engine from other threads: commands in a mutexed list, one wake-up per burst.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::counters::Published;
use super::{ConnKey, EngineCounters, Protocol, Subscription};
use crate::domain::{Epoch, PostId, Transport, Update, unix_micros};
use crate::telemetry::FanOut;

/// What an engine can be told.
#[derive(Debug)]
pub(super) enum Command<P: Protocol> {
    Add(Box<Adopted<P>>),
    /// The last number: when it came, Unix µs.
    Publish(Update, u64, u64, FanOut),
    PublishTo(ConnKey, u32, Update, u64, u64),
    Reply(ConnKey, P::Reply),
    Forget(PostId),
    Renew(Epoch, Duration),
    Drain(Duration),
    Measure(bool),
    Stop,
}

/// A socket that the engine is to serve from now on.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    /// One end of a pair; the other end feeds a body of hyper's.
    Pair(UnixStream),
}

/// A connection on its way into the engine.
#[derive(Debug)]
pub(super) struct Adopted<P: Protocol> {
    pub(super) socket: Socket,
    pub(super) protocol: P,
    pub(super) unread: Bytes,
    pub(super) subscriptions: Vec<Subscription<P>>,
    pub(super) first: Bytes,
}

/// What the engine's thread and its handles share.
///
/// The list of commands is bounded by its producers, not here: the engine empties it every slice (≤ 3 ms), a connection
/// has at most 16 replies under way, and updates are one per commit.
#[derive(Debug)]
pub(super) struct Inbox<P: Protocol> {
    pub(super) index: u16,
    commands: Mutex<Vec<Command<P>>>,
    /// A wake-up is on its way; cleared by the engine before it takes the list.
    pub(super) armed: AtomicBool,
    pub(super) waker: mio::Waker,
    pub(super) published: Published,
    pub(super) alive: AtomicBool,
    /// Connections handed over, per transport.
    handed: [AtomicUsize; Transport::ALL.len()],
    pub(super) fallbacks: [AtomicU64; Transport::ALL.len()],
}

impl<P: Protocol> Inbox<P> {
    pub(super) fn new(index: u16, waker: mio::Waker) -> Self {
        Self {
            index,
            commands: Mutex::default(),
            armed: AtomicBool::new(false),
            waker,
            published: Published::default(),
            alive: AtomicBool::new(true),
            handed: Default::default(),
            fallbacks: Default::default(),
        }
    }

    pub(super) fn take(&self, into: &mut Vec<Command<P>>) {
        self.armed.store(false, Ordering::SeqCst);
        std::mem::swap(&mut *self.commands.lock().unwrap_or_else(PoisonError::into_inner), into);
    }
}

/// One engine, from outside. Clones name the same engine; no call blocks.
#[derive(Debug)]
pub struct EngineHandle<P: Protocol> {
    pub(super) inbox: Arc<Inbox<P>>,
}

impl<P: Protocol> Clone for EngineHandle<P> {
    fn clone(&self) -> Self {
        Self { inbox: Arc::clone(&self.inbox) }
    }
}

impl<P: Protocol> EngineHandle<P> {
    fn send(&self, command: Command<P>) {
        if !self.is_alive() {
            return;
        }
        self.inbox.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        if !self.inbox.armed.swap(true, Ordering::SeqCst) {
            let _ = self.inbox.waker.wake();
        }
    }

    fn adopt(&self, adopted: Adopted<P>) {
        if self.is_alive() {
            self.inbox.handed[adopted.protocol.transport() as usize].fetch_add(1, Ordering::Relaxed);
        }
        self.send(Command::Add(Box::new(adopted)));
    }

    /// The engine serves `socket` from now on: feeds `unread` to the protocol, writes `first`, then each subscription's.
    /// The socket may be blocking or not.
    pub fn take_over(
        &self,
        socket: TcpStream,
        protocol: P,
        unread: Bytes,
        subscriptions: Vec<Subscription<P>>,
        first: Bytes,
    ) {
        self.adopt(Adopted { socket: Socket::Tcp(socket), protocol, unread, subscriptions, first });
    }

    /// The same over one end of a socket pair, whose other end the caller reads: for bodies that hyper must write, and for TLS.
    pub(crate) fn take_over_pair(
        &self,
        socket: UnixStream,
        protocol: P,
        unread: Bytes,
        subscriptions: Vec<Subscription<P>>,
        first: Bytes,
    ) {
        self.inbox.fallbacks[protocol.transport() as usize].fetch_add(1, Ordering::Relaxed);
        self.adopt(Adopted { socket: Socket::Pair(socket), protocol, unread, subscriptions, first });
    }

    /// A new state of a post, already accepted by its [`super::topic::Topic`], whose `gap` is passed on.
    pub fn publish(&self, update: Update, gap: u64) {
        self.publish_traced(update, gap, FanOut::none());
    }

    /// The same with the span of its fan-out, if it is traced.
    pub fn publish_traced(&self, update: Update, gap: u64, traced: FanOut) {
        self.send(Command::Publish(update, gap, unix_micros(), traced));
    }

    /// The same for one subscription.
    pub(super) fn publish_to(&self, key: ConnKey, slot: u32, update: Update, gap: u64) {
        self.send(Command::PublishTo(key, slot, update, gap, unix_micros()));
    }

    /// Answers a connection; nothing happens when it has gone.
    pub fn reply(&self, key: ConnKey, reply: P::Reply) {
        self.send(Command::Reply(key, reply));
    }

    /// Forgets a post's state unless someone here views it.
    pub fn forget(&self, post: PostId) {
        self.send(Command::Forget(post));
    }

    /// Forgets all states and ends the connections there are, spread over `over`.
    pub fn renew(&self, epoch: Epoch, over: Duration) {
        self.send(Command::Renew(epoch, over));
    }

    /// Ends all connections, spread over `over`.
    pub fn drain(&self, over: Duration) {
        self.send(Command::Drain(over));
    }

    /// Whether deliveries are timed (no clock is read and no histogram kept otherwise): for the bench of what that costs.
    pub(super) fn measure(&self, on: bool) {
        self.send(Command::Measure(on));
    }

    /// Ends everything now; the thread ends.
    pub fn stop(&self) {
        self.send(Command::Stop);
    }

    /// Counts as of the engine's last turn.
    #[must_use]
    pub fn counters(&self) -> EngineCounters {
        let mut counters = self.inbox.published.load();
        for (transport, fallbacks) in counters.transports.iter_mut().zip(&self.inbox.fallbacks) {
            transport.fallback = fallbacks.load(Ordering::Relaxed);
        }
        counters
    }

    /// Connections handed over and not yet closed.
    #[must_use]
    pub fn connections(&self, transport: Transport) -> usize {
        let closed = self.inbox.published.load().of(transport).closed_total();
        let handed = self.inbox.handed[transport as usize].load(Ordering::Relaxed);
        handed.saturating_sub(usize::try_from(closed).unwrap_or(usize::MAX))
    }

    /// Connections of both transports.
    #[must_use]
    pub fn all_connections(&self) -> usize {
        Transport::ALL.into_iter().map(|transport| self.connections(transport)).sum()
    }

    /// Whether the engine's thread still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.inbox.alive.load(Ordering::SeqCst)
    }
}
