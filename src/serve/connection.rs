//! One TCP connection: hyper until an answer says that the engine takes over, then its socket leaves hyper.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::hub::{EngineHandle, Protocol, Subscription};

/// Bounds of an ordinary HTTP connection.
#[derive(Debug, Clone)]
pub struct Options {
    /// From the first byte of a request's head (or the accept) until its end; slower peers are closed.
    pub header_read_timeout: Duration,
    /// An idle keep-alive connection is closed after this; longer than what edges use (60 s) to avoid races.
    pub idle_timeout: Duration,
    /// Connections served by hyper at the same time; those taken over do not count.
    pub max_connections: usize,
}

impl Default for Options {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { header_read_timeout: seconds(10), idle_timeout: seconds(75), max_connections: 10_000 }
    }
}

/// What the accept loop and the connections count.
#[derive(Debug, Default)]
pub struct Stats {
    /// Sockets accepted.
    pub accepted: AtomicU64,
    /// `accept(2)` failures (file descriptors exhausted, …).
    pub accept_errors: AtomicU64,
    /// Sockets closed at once because of [`Options::max_connections`].
    pub refused: AtomicU64,
    /// Sockets handed to an engine.
    pub taken_over: AtomicU64,
    /// Connections closed because a request's head did not come in time.
    pub slow_heads: AtomicU64,
}

/// Tells the connection's driver to hand its socket to an engine once the head of this response is out.
///
/// The handler puts it into the response's extensions and answers with [`TakeOver::body`] (SSE) or the 101 (WebSocket).
/// Where no take-over is possible (HTTP/2, HTTP/1.0, HEAD, a content-encoding, lost extension) that body serves the same
/// bytes by itself, without the chunk framing.
pub struct TakeOver<P: Protocol> {
    cell: Arc<std::sync::Mutex<Option<Handoff<P>>>>,
}

#[expect(dead_code, reason = "the driver is not built yet")]
struct Handoff<P: Protocol> {
    engine: EngineHandle<P>,
    protocol: P,
    subscriptions: Vec<Subscription<P>>,
    first: Bytes,
}

impl<P: Protocol> Clone for TakeOver<P> {
    fn clone(&self) -> Self {
        Self { cell: Arc::clone(&self.cell) }
    }
}

impl<P: Protocol> TakeOver<P> {
    /// `first` goes before the subscriptions' own first bytes, e.g. `retry:`; all of it is wire bytes (chunk-framed for SSE).
    #[must_use]
    pub fn new(engine: EngineHandle<P>, protocol: P, subscriptions: Vec<Subscription<P>>, first: Bytes) -> Self {
        Self { cell: Arc::new(std::sync::Mutex::new(Some(Handoff { engine, protocol, subscriptions, first }))) }
    }

    /// The lazy body for a 200: does nothing until polled, which happens only when no take-over took place.
    pub fn body(&self) -> Body {
        Body::from_stream(futures_util::stream::once(async { Err::<Bytes, _>(std::io::Error::other("not built yet")) }))
    }
}

/// Accepts until `stop`, then ends idle connections, lets requests under way finish, and returns when all have.
/// Requests carry `axum::extract::ConnectInfo<SocketAddr>`.
///
/// # Errors
/// None at present: failures of accept are counted and retried.
pub async fn serve<P: Protocol>(
    listener: TcpListener,
    router: Router,
    options: Options,
    stats: Arc<Stats>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let _ = (listener, router, options, stats, stop, std::marker::PhantomData::<(P, SocketAddr)>);
    std::future::ready(Err(std::io::Error::other("not built yet"))).await
}
