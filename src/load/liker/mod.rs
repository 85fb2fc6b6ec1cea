//! Liking users: each a session of its own with at most one like on its way; a like that finds no user free waits, and
//! its latency counts from when it was due.

/// Which like goes to which user, and what became of it.
mod pool;
/// One user's connection.
mod user;

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use mio::{Events, Poll, Token, Waker};

use super::limits;
use super::pacer::Due;
use super::recorder::Shared;
use super::socket::StampedReader;
use super::target::Target;
use crate::domain::PostId;
use crate::result::LikeColumns;
use pool::Pool;

const WAKE: Token = Token(usize::MAX);
/// Period of time-outs, retries and reconnects.
const TICK: Duration = Duration::from_millis(20);

/// How a like is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    /// `POST /posts/{id}/likes` on a keep-alive HTTP/1.1 connection.
    Post,
    /// STOMP SEND with a receipt, on the user's own WebSocket.
    Send,
}

/// What all users have in common.
#[derive(Debug, Clone)]
pub(super) struct LikerOptions {
    /// How they like.
    pub(super) channel: Channel,
    /// Where; user i takes target i mod their number.
    pub(super) targets: Vec<Target>,
    /// What they like, by column index.
    pub(super) posts: Vec<PostId>,
    /// How many.
    pub(super) likers: u32,
    /// A like without an answer after this has an unknown outcome.
    pub(super) timeout: Duration,
    /// Likes carry keys that begin with this, and are repeated until their outcome is known.
    pub(super) keys: Option<String>,
    /// Heartbeat period (STOMP).
    pub(super) heartbeat: Duration,
    /// New connections per second.
    pub(super) connect_rate: u32,
    /// Seed of back-off jitter.
    pub(super) seed: u64,
}

/// The users and the thread that reads their answers.
pub(super) struct Likers {
    pool: Arc<Mutex<Pool>>,
    stop: std::sync::mpsc::Sender<()>,
    waker: Arc<Waker>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// What they recorded.
pub(super) struct Liked {
    /// One entry per due like.
    pub(super) likes: LikeColumns,
    /// Sent (or, with no user free, ready to be sent) − due, in µs, within the window.
    pub(super) lag: Histogram<u64>,
    /// Times a like was sent once more because its outcome was unknown.
    pub(super) retried: u64,
}

impl Likers {
    /// Starts to connect the users.
    ///
    /// # Errors
    /// When the system gives no epoll or no thread.
    pub(super) fn start(options: LikerOptions, due: &[Due], shared: &Arc<Shared>) -> anyhow::Result<Self> {
        let poll = Poll::new().context("epoll")?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE).context("eventfd")?);
        let registry = poll.registry().try_clone().context("epoll")?;
        let pool = Arc::new(Mutex::new(Pool::new(options, due, Arc::clone(shared), registry)));
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("likers".into()).spawn({
            let pool = Arc::clone(&pool);
            move || {
                limits::prompt(limits::Rank::Likers);
                run(poll, &pool, &stopped)
            }
        });
        let thread = thread.context("cannot start a thread for likers")?;
        Ok(Self { pool, stop, waker, thread })
    }

    /// What the pacer calls when a like is due.
    pub(super) fn submitter(&self) -> impl Fn(u32) + Send + use<> {
        let pool = Arc::clone(&self.pool);
        move |like| lock(&pool).submit(like)
    }

    /// The warm-up starts at this time: due times count from it.
    pub(super) fn begin(&self, at_us: u32) {
        lock(&self.pool).begin(at_us);
    }

    /// Likes submitted that have no outcome yet.
    pub(super) fn open(&self) -> usize {
        lock(&self.pool).open()
    }

    /// Whether the thread ended before it was told to.
    pub(super) fn failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread; likes without an outcome are unknown, or unsent.
    ///
    /// # Errors
    /// The thread's own, or its panic.
    pub(super) fn stop(self) -> anyhow::Result<Liked> {
        let _ = self.stop.send(());
        let _ = self.waker.wake();
        self.thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the likers' thread panicked")))?;
        let liked = lock(&self.pool).take();
        Ok(liked)
    }
}

fn lock(pool: &Mutex<Pool>) -> MutexGuard<'_, Pool> {
    pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The loop: its inputs are sockets, the tick, and the end.
fn run(mut poll: Poll, pool: &Mutex<Pool>, stopped: &Receiver<()>) -> anyhow::Result<()> {
    let mut events = Events::with_capacity(1_024);
    let mut reader = StampedReader::new();
    loop {
        match poll.poll(&mut events, Some(TICK)) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other.context("epoll_wait")?,
        }
        if stopped.try_recv() != Err(TryRecvError::Empty) {
            return Ok(());
        }
        for event in events.iter().filter(|event| event.token() != WAKE) {
            // One lock per event: the pacer never waits for a whole batch.
            lock(pool).serve(event.token().0, event.is_writable(), event.is_readable(), &mut reader);
        }
        lock(pool).tick();
    }
}
