//! hyper's socket, watched: when a request's head begins, and when the head of an answer is out.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::take_over::Handoff;
use crate::hub::Protocol;

/// What the service, the socket and the driver of one connection tell each other; all run in one task.
pub(super) struct Watched<P: Protocol>(Mutex<State<P>>);

struct State<P: Protocol> {
    /// When the first byte of a head came that is not complete yet; the accept counts as one.
    head_since: Option<Instant>,
    /// A request is being answered: bytes that come are not a head's.
    answering: bool,
    handoff: Option<Handoff<P>>,
    flushed: bool,
}

impl<P: Protocol> Watched<P> {
    pub(super) fn new() -> Self {
        let head_since = Some(Instant::now());
        Self(Mutex::new(State { head_since, answering: false, handoff: None, flushed: false }))
    }

    fn state(&self) -> MutexGuard<'_, State<P>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn head_is_read(&self) {
        let mut state = self.state();
        state.head_since = None;
        state.answering = true;
    }

    pub(super) fn is_answered(&self) {
        self.state().answering = false;
    }

    /// The next flush that completes means that the head is out: hyper encodes it before it returns to the socket, and
    /// flushes the socket only when its own buffer is empty.
    pub(super) fn arm(&self, handoff: Handoff<P>) {
        self.state().handoff = Some(handoff);
    }

    pub(super) fn head_since(&self) -> Option<Instant> {
        self.state().head_since
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.state().flushed
    }

    /// The handoff, if its head is out.
    pub(super) fn take_flushed(&self) -> Option<Handoff<P>> {
        let mut state = self.state();
        if state.flushed { state.handoff.take() } else { None }
    }

    fn on_read(&self) {
        let mut state = self.state();
        if !state.answering && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    fn on_flush(&self) {
        let mut state = self.state();
        state.flushed = state.handoff.is_some();
    }
}

/// The socket as hyper sees it, inside a `TokioIo`.
pub(super) struct WatchedIo<P: Protocol, S> {
    stream: S,
    watched: Arc<Watched<P>>,
}

impl<P: Protocol, S> WatchedIo<P, S> {
    pub(super) fn new(stream: S, watched: Arc<Watched<P>>) -> Self {
        Self { stream, watched }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

impl<P: Protocol, S: AsyncRead + Unpin> AsyncRead for WatchedIo<P, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.watched.on_read();
        }
        read
    }
}

impl<P: Protocol, S: AsyncWrite + Unpin> AsyncWrite for WatchedIo<P, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.watched.on_flush();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
