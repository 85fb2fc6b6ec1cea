//! TCP connections: hyper until an answer says that the engine takes over, then the socket leaves hyper.
//!
//! Within TLS, HTTP/1.1 runs over a socket pair whose other end is encrypted, so a stream leaves hyper there as well;
//! HTTP/2 streams are bodies of hyper's.
//!
//! Invariant: there is one HTTP implementation, hyper's; an engine gets a socket only after hyper has written the head.

/// From TLS to a socket pair and back.
mod bridge;
/// hyper's socket, watched.
mod io;
/// What a handler leaves for the driver.
mod take_over;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use http::{HeaderValue, Method, Request, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use self::io::{Watched, WatchedIo};
use self::take_over::Plain;
use super::tls::Tls;
use crate::hub::Protocol;

pub use self::take_over::TakeOver;

/// Bounds of an ordinary HTTP connection.
#[derive(Debug, Clone)]
pub struct Options {
    /// From the first byte of a request's head (or the accept) until its end; slower peers are closed.
    pub header_read_timeout: Duration,
    /// An idle keep-alive connection is closed after this; longer than what edges use (60 s) to avoid races.
    pub idle_timeout: Duration,
    /// Connections served by hyper at the same time; those taken over do not count.
    pub max_connections: usize,
    /// A peer that acknowledges and takes nothing for this long has gone.
    pub write_timeout: Duration,
    /// Written to a connection that is one too many, before it is closed.
    pub busy: bytes::Bytes,
    /// TLS, if this port speaks it.
    pub tls: Option<Tls>,
}

impl Default for Options {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            header_read_timeout: seconds(10),
            idle_timeout: seconds(75),
            max_connections: 10_000,
            write_timeout: seconds(30),
            busy: bytes::Bytes::new(),
            tls: None,
        }
    }
}

/// Largest request head, and what hyper may buffer of a connection, bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Requests at the same time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;

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

/// Accepts until `stop`, then ends idle connections, lets requests under way finish, and returns when all have.
/// Requests carry `ConnectInfo<SocketAddr>`. Inputs of the loop: the listener and `stop`.
pub async fn serve<P: Protocol>(
    listener: TcpListener,
    router: Router,
    options: Options,
    stats: Arc<Stats>,
    stop: CancellationToken,
) {
    let (tasks, slots) = (TaskTracker::new(), Arc::new(Semaphore::new(options.max_connections)));
    let take = |stream: TcpStream, peer: SocketAddr| {
        stats.accepted.fetch_add(1, Ordering::Relaxed);
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            stats.refused.fetch_add(1, Ordering::Relaxed);
            if options.tls.is_none() {
                // What fits into the socket's empty buffer; nobody waits for a stranger here.
                let _ = stream.try_write(&options.busy);
            }
            return;
        };
        let (options, stats, tasks_of) = (options.clone(), Arc::clone(&stats), tasks.clone());
        let driver = Driver { router: router.clone(), peer, options, stats, tasks: tasks_of };
        let stop = stop.clone();
        tasks.spawn(async move {
            driver.drive::<P>(stream, stop).await;
            drop(slot);
        });
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => take(stream, peer),
            Err(error) => {
                // Most often no file descriptors are left; each close frees one.
                stats.accept_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    // What the kernel has accepted is still served: its like may be on the way, and an edge does not send it twice. From
    // then on connecting is refused, and the edge asks another pod.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, peer)) = listener.accept() {
            if let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                take(stream, peer);
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Serves one accepted connection to its end, or until an engine has it.
struct Driver {
    router: Router,
    peer: SocketAddr,
    options: Options,
    stats: Arc<Stats>,
    tasks: TaskTracker,
}

/// How hyper's part of an HTTP/1 connection ended.
enum End {
    /// By itself; a 101 ends like this too.
    Done,
    /// The head of a response with [`TakeOver`] is out.
    Flushed,
    /// A request's head came too slowly.
    SlowHead,
    /// The peer's fault or the socket's.
    Failed(hyper::Error),
}

impl Driver {
    async fn drive<P: Protocol>(self, stream: TcpStream, stop: CancellationToken) {
        let gone = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(self.options.write_timeout));
        if let Err(error) = stream.set_nodelay(true).and(gone) {
            tracing::debug!(%error, "the peer has gone already");
            return;
        }
        if let Some(tls) = self.options.tls.clone() {
            return self.within_tls::<P>(&tls, stream, stop).await;
        }
        match timeout(self.options.header_read_timeout, speaks_http2(&stream)).await {
            Ok(Ok(false)) => self.http1::<P, _>(stream, stop).await,
            Ok(Ok(true)) => self.http2(stream, stop).await,
            Ok(Err(error)) => tracing::debug!(%error, "closed before the first byte"),
            Err(_) => self.count_slow_head(),
        }
    }

    fn count_slow_head(&self) {
        self.stats.slow_heads.fetch_add(1, Ordering::Relaxed);
    }

    async fn within_tls<P: Protocol>(self, tls: &Tls, stream: TcpStream, stop: CancellationToken) {
        let secured = match timeout(self.options.header_read_timeout, tls.acceptor().accept(stream)).await {
            Ok(Ok(secured)) => secured,
            Ok(Err(error)) => return tracing::debug!(%error, peer = %self.peer, "no TLS"),
            Err(_) => return self.count_slow_head(),
        };
        if secured.get_ref().1.alpn_protocol() == Some(b"h2") {
            return self.http2(secured, stop).await;
        }
        match UnixStream::pair() {
            Ok((near, far)) => {
                self.tasks.spawn(bridge::run(secured, near));
                self.http1::<P, _>(far, stop).await;
            }
            Err(error) => tracing::warn!(%error, "no socket pair for a connection within TLS"),
        }
    }

    /// Inputs: hyper's connection, `stop`, and the deadline of the head being read.
    async fn http1<P: Protocol, S: Plain>(self, stream: S, stop: CancellationToken) {
        let watched = Arc::new(Watched::<P>::new());
        let service = {
            let (router, peer, watched) = (self.router.clone(), self.peer, Arc::clone(&watched));
            hyper::service::service_fn(move |request| answer(router.clone(), peer, Arc::clone(&watched), request))
        };
        // hyper's own timer also runs while a kept-alive connection is idle: it is our idle time-out.
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.options.idle_timeout).max_buf_size(MAX_HEAD);
        let io = TokioIo::new(WatchedIo::new(stream, Arc::clone(&watched)));
        let service = Boxed(service);
        let mut connection = builder.serve_connection(io, service);
        let mut stopping = pin!(stop.cancelled());
        let mut stopped = false;
        let mut deadline = pin!(sleep_until(Instant::now()));
        let end = std::future::poll_fn(|cx| {
            loop {
                match connection.poll_without_shutdown(cx) {
                    Poll::Ready(Ok(())) => return Poll::Ready(End::Done),
                    Poll::Ready(Err(error)) => return Poll::Ready(End::Failed(error)),
                    Poll::Pending => {}
                }
                // A request that has arrived was read above, so that no kept-alive connection ends with one unread.
                if stopped || stopping.as_mut().poll(cx).is_pending() {
                    break;
                }
                stopped = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            if watched.is_flushed() {
                return Poll::Ready(End::Flushed);
            }
            if let Some(since) = watched.head_since() {
                let due = since + self.options.header_read_timeout;
                if deadline.deadline() != due {
                    deadline.as_mut().reset(due);
                }
                if deadline.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(End::SlowHead);
                }
            }
            Poll::Pending
        })
        .await;
        match end {
            End::SlowHead => self.count_slow_head(),
            End::Failed(error) => tracing::debug!(%error, peer = %self.peer, "connection failed"),
            End::Done | End::Flushed => {
                let parts = connection.into_parts();
                let mut stream = parts.io.into_inner().into_inner();
                // A handoff without its head flushed is dropped with its guards: the peer has gone.
                let Some(handoff) = watched.take_flushed() else {
                    let _ = stream.shutdown().await;
                    return;
                };
                // Before, as the viewer may hear from the engine at once.
                self.stats.taken_over.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = stream.hand_over(handoff, parts.read_buf) {
                    self.stats.taken_over.fetch_sub(1, Ordering::Relaxed);
                    tracing::debug!(%error, "the socket could not leave the runtime");
                }
            }
        }
    }

    /// Streams are served by their fallback bodies. Inputs: hyper's connection, `stop`, and the deadline of the first
    /// request; later ones need none, as pings tell whether the peer is there.
    async fn http2<S>(self, stream: S, stop: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let asked = Arc::new(AtomicBool::new(false));
        let service = {
            let (router, peer, asked) = (self.router.clone(), self.peer, Arc::clone(&asked));
            hyper::service::service_fn(move |request: Request<Incoming>| {
                asked.store(true, Ordering::Relaxed);
                let mut router = router.clone();
                async move { router.call(with_peer(request, peer)).await }
            })
        };
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(Duration::from_secs(30));
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut first = pin!(tokio::time::sleep(self.options.header_read_timeout));
        let (mut stopped, mut judged) = (false, false);
        let done = loop {
            tokio::select! {
                done = connection.as_mut() => break done,
                () = stop.cancelled(), if !stopped => {
                    stopped = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = first.as_mut(), if !judged => {
                    judged = true;
                    if !asked.load(Ordering::Relaxed) {
                        return self.count_slow_head();
                    }
                }
            }
        };
        if let Err(error) = done {
            tracing::debug!(%error, peer = %self.peer, "connection failed");
        }
    }
}

/// Whether the peer begins with the HTTP/2 preface; `P` alone may yet become POST.
async fn speaks_http2(stream: &TcpStream) -> std::io::Result<bool> {
    const PREFACE: &[u8; 4] = b"PRI ";
    let mut start = [0; 4];
    loop {
        let seen = stream.peek(&mut start).await?;
        if seen == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if start[..seen] != PREFACE[..seen] {
            return Ok(false);
        }
        if seen == PREFACE.len() {
            return Ok(true);
        }
        // The socket stays readable with what is there, so waiting for readiness would spin.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn with_peer(mut request: Request<Incoming>, peer: SocketAddr) -> Request<Body> {
    request.extensions_mut().insert(ConnectInfo(peer));
    request.map(Body::new)
}

/// One request: axum answers; a [`TakeOver`] that is possible here is armed.
async fn answer<P: Protocol>(
    mut router: Router,
    peer: SocketAddr,
    watched: Arc<Watched<P>>,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    watched.head_is_read();
    let by_get_1_1 = request.version() == Version::HTTP_11 && request.method() == Method::GET;
    let mut response = router.call(with_peer(request, peer)).await?;
    let take_over = response.extensions_mut().remove::<TakeOver<P>>();
    let plain = !response.headers().contains_key(header::CONTENT_ENCODING);
    let status = response.status();
    if by_get_1_1
        && plain
        && matches!(status, StatusCode::OK | StatusCode::SWITCHING_PROTOCOLS)
        && let Some(handoff) = take_over.and_then(|cell| cell.take())
    {
        if status == StatusCode::OK {
            // hyper writes the head and waits for a body that never comes. The connection ends with the stream.
            response.headers_mut().remove(header::CONTENT_LENGTH);
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            *response.body_mut() =
                Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, Infallible>>());
        }
        watched.arm(handoff);
    } else {
        watched.is_answered();
    }
    Ok(response)
}

/// A service whose futures are boxed: hyper's `poll_without_shutdown` wants them `Unpin`.
struct Boxed<S>(S);

impl<S> hyper::service::Service<Request<Incoming>> for Boxed<S>
where
    S: hyper::service::Service<Request<Incoming>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Box::pin(self.0.call(request))
    }
}

#[cfg(test)]
mod tests;
