//! Viewers: who comes when, and the threads that hold and read their connections.

/// The connection of one viewer.
mod link;
/// Who comes when and stays how long.
mod population;
/// The epoll loop.
mod reader;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;
use mio::Waker;

pub(super) use population::{Visit, visits};

use super::config::SseClient;
use super::limits;
use super::recorder::{Recorder, Shared};
use super::target::Target;
use crate::domain::{PostId, Transport};
use reader::Reader;

/// What all viewers have in common.
#[derive(Debug, Clone)]
pub(super) struct ViewerOptions {
    /// How they are served.
    pub(super) transport: Transport,
    /// Where; viewer i takes target i mod their number.
    pub(super) targets: Vec<Target>,
    /// What they watch, by column index.
    pub(super) posts: Vec<PostId>,
    /// Heartbeat period.
    pub(super) heartbeat: Duration,
    /// New connections per second, of one thread.
    pub(super) connect_rate: u32,
    /// Whether a compressed stream is accepted (SSE).
    pub(super) gzip: bool,
    /// What an SSE viewer notices, and when it comes back.
    pub(super) client: SseClient,
    /// Seed of back-off jitter.
    pub(super) seed: u64,
}

/// What a reader thread is told.
pub(super) enum Command {
    /// The warm-up starts at this time: later visits are scheduled from it.
    Start(u32),
    /// Nobody comes or leaves any more; slow readers read.
    Settle,
    /// How many of the viewers that are to stay are not on these versions? Also whether one is beyond them.
    Behind(Vec<u64>, Sender<Behind>),
    /// Close everything and give the record back.
    Stop,
}

/// The answer to [`Command::Behind`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Behind {
    /// Viewers not on the asked version.
    pub(super) behind: u32,
    /// Viewers on a newer one.
    pub(super) beyond: u32,
}

/// The threads.
pub(super) struct Viewers {
    threads: Vec<Running>,
}

/// A thread, how to tell it something, and how to wake it.
type Running = (Sender<Command>, Arc<Waker>, JoinHandle<anyhow::Result<Recorder>>);

impl Viewers {
    /// Starts `threads` threads, which begin to connect at once.
    ///
    /// # Errors
    /// When the system gives no epoll or no thread.
    pub(super) fn start(
        options: &ViewerOptions,
        visits: Vec<Visit>,
        initial: &[(u64, u64)],
        threads: usize,
        shared: &Arc<Shared>,
    ) -> anyhow::Result<Self> {
        let mut shares: Vec<Vec<Visit>> = vec![Vec::new(); threads];
        for (i, visit) in visits.into_iter().enumerate() {
            shares[i % threads].push(visit);
        }
        let mut started = Vec::new();
        for (i, share) in shares.into_iter().enumerate() {
            let (sender, receiver): (_, Receiver<Command>) = channel();
            let mut options = options.clone();
            options.connect_rate = (options.connect_rate / u32::try_from(threads).unwrap_or(1)).max(1);
            options.seed = options.seed.wrapping_add(i as u64);
            let recorder = Recorder::new(shared.clock, initial);
            let reader = Reader::new(options, share, recorder, Arc::clone(shared), receiver)?;
            let waker = reader.waker();
            let thread = std::thread::Builder::new().name(format!("viewers-{i}"));
            let thread = thread.spawn(move || {
                limits::prompt(limits::Rank::Viewers);
                reader.run()
            });
            let thread = thread.context("cannot start a thread for viewers")?;
            started.push((sender, waker, thread));
        }
        Ok(Self { threads: started })
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for (sender, waker, _) in &self.threads {
            // A thread that ended has its error read in `stop`.
            let _ = sender.send(command());
            let _ = waker.wake();
        }
    }

    /// See [`Command::Start`].
    pub(super) fn begin(&self, at_us: u32) {
        self.tell(|| Command::Start(at_us));
    }

    /// See [`Command::Settle`].
    pub(super) fn settle(&self) {
        self.tell(|| Command::Settle);
    }

    /// See [`Command::Behind`].
    pub(super) fn behind(&self, versions: &[u64]) -> Behind {
        let (sender, receiver) = channel();
        self.tell(|| Command::Behind(versions.to_vec(), sender.clone()));
        drop(sender);
        receiver.iter().fold(Behind::default(), |sum, one| Behind {
            behind: sum.behind + one.behind,
            beyond: sum.beyond + one.beyond,
        })
    }

    /// Whether a thread ended before it was told to.
    pub(super) fn failed(&self) -> bool {
        self.threads.iter().any(|(.., thread)| thread.is_finished())
    }

    /// Ends the threads; what they recorded.
    ///
    /// # Errors
    /// A thread's own, or its panic.
    pub(super) fn stop(self) -> anyhow::Result<Vec<Recorder>> {
        self.tell(|| Command::Stop);
        let join = |thread: JoinHandle<anyhow::Result<Recorder>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a viewer thread panicked")))
        };
        self.threads.into_iter().map(|(.., thread)| join(thread)).collect()
    }
}
