//! One connection: its socket, what is left to write, and its links to topics. Knows no engine.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;

use bytes::{Buf, Bytes};
use mio::net::{TcpStream, UnixStream};

use crate::hub::handle::Socket;
use crate::hub::{CloseReason, EngineOptions};

/// Hundredths of a second since the engine's start: enough for time-outs, a quarter of an `Instant`.
pub(super) type Tick = u32;

/// A connection's socket, registered with the engine's epoll.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Pair(UnixStream),
}

impl Stream {
    pub(super) fn new(socket: Socket, options: &EngineOptions) -> io::Result<Self> {
        match socket {
            Socket::Tcp(socket) => {
                socket.set_nonblocking(true)?;
                let options_of = socket2::SockRef::from(&socket);
                options_of.set_tcp_nodelay(true)?;
                options_of.set_tcp_notsent_lowat(options.notsent_lowat)?;
                // A peer that is gone acknowledges nothing: without this the kernel retries for a quarter of an hour.
                options_of.set_tcp_user_timeout(Some(options.write_timeout))?;
                Ok(Self::Tcp(TcpStream::from_std(socket)))
            }
            Socket::Pair(socket) => {
                socket.set_nonblocking(true)?;
                socket2::SockRef::from(&socket).set_send_buffer_size(16 * 1024)?;
                Ok(Self::Pair(UnixStream::from_std(socket)))
            }
        }
    }

    pub(super) fn register(&mut self, registry: &mio::Registry, token: mio::Token) -> io::Result<()> {
        let both = mio::Interest::READABLE | mio::Interest::WRITABLE;
        match self {
            Self::Tcp(socket) => registry.register(socket, token, both),
            Self::Pair(socket) => registry.register(socket, token, both),
        }
    }

    fn shutdown(&self) {
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Self::Pair(socket) => socket.shutdown(Shutdown::Write),
        };
    }

    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Tcp(socket) => socket.read(buffer),
                Self::Pair(socket) => socket.read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match self {
                Self::Tcp(socket) => socket.write(bytes),
                Self::Pair(socket) => socket.write(bytes),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

/// Where a connection is in a topic's list of viewers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) topic: u32,
    pub(super) position: u32,
}

/// A connection's links; nearly always exactly one, which needs no allocation.
#[derive(Debug, Default)]
pub(super) enum Links {
    #[default]
    None,
    One(Link),
    // The box keeps an idle viewer 8 bytes smaller.
    #[expect(clippy::box_collection)]
    Many(Box<Vec<Link>>),
}

impl Links {
    pub(super) fn as_slice(&self) -> &[Link] {
        match self {
            Self::None => &[],
            Self::One(link) => std::slice::from_ref(link),
            Self::Many(links) => links,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [Link] {
        match self {
            Self::None => &mut [],
            Self::One(link) => std::slice::from_mut(link),
            Self::Many(links) => links,
        }
    }

    pub(super) fn push(&mut self, link: Link) {
        match self {
            Self::None => *self = Self::One(link),
            Self::One(first) => *self = Self::Many(Box::new(vec![*first, link])),
            Self::Many(links) => links.push(link),
        }
    }

    pub(super) fn remove(&mut self, link: Link) {
        match self {
            Self::Many(links) => {
                links.retain(|other| *other != link);
                match links.as_slice() {
                    [] => *self = Self::None,
                    [one] => *self = Self::One(*one),
                    _ => {}
                }
            }
            Self::One(one) if *one == link => *self = Self::None,
            _ => {}
        }
    }

    /// The viewer at `from` now stands at `to`.
    pub(super) fn moved(&mut self, topic: u32, from: u32, to: u32) {
        let moved = Link { topic, position: from };
        if let Some(link) = self.as_mut_slice().iter_mut().find(|link| **link == moved) {
            link.position = to;
        }
    }
}

/// Bytes that must go out before anything else.
#[derive(Debug, Default)]
struct Pending {
    queue: VecDeque<Bytes>,
    bytes: usize,
}

/// What became of bytes that were to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wrote {
    /// This many; the rest, if any, is pending.
    Some(usize),
    /// Nothing: the socket is full, and the bytes were not kept.
    Nothing,
    /// The connection is of no use any more.
    Failed(CloseReason),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Conn<P> {
    pub(super) stream: Stream,
    pub(super) protocol: P,
    pub(super) links: Links,
    pending: Option<Box<Pending>>,
    pub(super) generation: u32,
    pub(super) last_read: Tick,
    pub(super) last_write: Tick,
    /// Since when the socket takes nothing, or, when closing, since when the last bytes are out.
    pub(super) since: Tick,
    /// The socket took not everything at the last attempt; epoll will tell.
    pub(super) blocked: bool,
    /// The protocol asked not to read.
    pub(super) paused: bool,
    /// There may be input that was left unread.
    pub(super) input_waiting: bool,
    /// No more updates: flush, end our direction, wait for the peer's end.
    pub(super) closing: Option<CloseReason>,
    /// Our direction has ended.
    pub(super) shut: bool,
    /// Will be removed before the engine sleeps.
    pub(super) doomed: bool,
}

impl<P> Conn<P> {
    pub(super) fn new(stream: Stream, protocol: P, generation: u32, now: Tick) -> Self {
        Self {
            stream,
            protocol,
            links: Links::None,
            pending: None,
            generation,
            last_read: now,
            last_write: now,
            since: now,
            blocked: false,
            paused: false,
            input_waiting: false,
            closing: None,
            shut: false,
            doomed: false,
        }
    }

    /// Whether an update may be written.
    pub(super) fn is_ready(&self) -> bool {
        !self.blocked && self.closing.is_none() && !self.doomed
    }

    pub(super) fn pending_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.bytes)
    }

    /// Writes bytes; a remainder is kept and sent first later, everything else is the caller's to send again.
    /// `keep`: also keep bytes of which nothing could be written.
    pub(super) fn write(&mut self, bytes: &Bytes, keep: bool, now: Tick) -> Wrote {
        if self.blocked || self.pending.is_some() {
            if keep {
                self.keep(bytes.clone());
            }
            return if keep { Wrote::Some(0) } else { Wrote::Nothing };
        }
        match self.stream.write(bytes) {
            Ok(written) => {
                self.last_write = now;
                if written < bytes.len() {
                    self.block(now);
                    self.keep(bytes.slice(written..));
                }
                Wrote::Some(written)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.block(now);
                if keep {
                    self.keep(bytes.clone());
                    return Wrote::Some(0);
                }
                Wrote::Nothing
            }
            Err(error) => Wrote::Failed(reason_of(&error)),
        }
    }

    /// Writes what is pending; `Wrote::Some(n)` also when not all went out. `calls` counts the writes.
    pub(super) fn flush(&mut self, now: Tick, calls: &mut u64) -> Wrote {
        let mut written = 0;
        while let Some(pending) = &mut self.pending {
            let Some(front) = pending.queue.front_mut() else {
                self.pending = None;
                break;
            };
            match self.stream.write(front) {
                Ok(n) => {
                    *calls += 1;
                    written += n;
                    pending.bytes -= n;
                    self.last_write = now;
                    self.since = now;
                    front.advance(n);
                    if front.is_empty() {
                        pending.queue.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.block(now);
                    break;
                }
                Err(error) => return Wrote::Failed(reason_of(&error)),
            }
        }
        Wrote::Some(written)
    }

    /// Ends our direction once everything is out.
    pub(super) fn shutdown_when_flushed(&mut self, now: Tick) {
        if self.pending.is_none() && !self.shut {
            self.shut = true;
            self.since = now;
            self.stream.shutdown();
        }
    }

    fn block(&mut self, now: Tick) {
        if !self.blocked {
            self.blocked = true;
            self.since = now;
        }
    }

    fn keep(&mut self, bytes: Bytes) {
        let pending = self.pending.get_or_insert_default();
        pending.bytes += bytes.len();
        pending.queue.push_back(bytes);
    }
}

/// What a failed read or write says about the peer.
pub(super) fn reason_of(error: &io::Error) -> CloseReason {
    if error.kind() == io::ErrorKind::TimedOut { CloseReason::WriteTimeout } else { CloseReason::Reset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_grow_shrink_and_follow_moves() {
        let link = |topic, position| Link { topic, position };
        let mut links = Links::default();
        [link(1, 5), link(1, 9), link(2, 5)].into_iter().for_each(|l| links.push(l));
        links.moved(1, 9, 5 + 1);
        assert_eq!(links.as_slice(), [link(1, 5), link(1, 6), link(2, 5)]);
        links.remove(link(1, 5));
        links.remove(link(7, 7));
        links.remove(link(2, 5));
        assert!(matches!(links, Links::One(one) if one == link(1, 6)));
        links.moved(1, 6, 0);
        links.remove(link(1, 0));
        assert!(matches!(links, Links::None));
    }

    #[test]
    fn an_idle_viewer_stays_small() {
        // mio remembers its selector in debug builds.
        let debug = if cfg!(debug_assertions) { 16 } else { 0 };
        assert!(size_of::<Conn<()>>() <= 56 + debug, "{} bytes", size_of::<Conn<()>>());
    }
}
