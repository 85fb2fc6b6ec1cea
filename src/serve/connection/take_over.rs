//! What a handler leaves for the driver, and the body that serves the same stream where no take-over is possible.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::hub::{EngineHandle, Protocol, Subscription};
use crate::proto::sse::ChunkDecoder;

/// Tells the connection's driver to hand its socket to an engine once the head of this response is out.
///
/// The handler puts it into the response's extensions and answers 200 with [`TakeOver::body`] (SSE), or 101 (WebSocket).
/// Where no take-over is possible (HTTP/2, HTTP/1.0, HEAD, a content-encoding, a middleware that lost the extension) that
/// body serves the same bytes, without their chunk framing.
#[derive(Debug)]
pub struct TakeOver<P: Protocol>(Arc<Mutex<Option<Handoff<P>>>>);

/// A stream on its way to its engine.
#[derive(Debug)]
pub(super) struct Handoff<P: Protocol> {
    engine: EngineHandle<P>,
    protocol: P,
    subscriptions: Vec<Subscription<P>>,
    first: Bytes,
}

impl<P: Protocol> Clone for TakeOver<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: Protocol> TakeOver<P> {
    /// `first` goes before the subscriptions' own first bytes, e.g. `retry:`; all are wire bytes, chunk-framed for SSE.
    #[must_use]
    pub fn new(engine: EngineHandle<P>, protocol: P, subscriptions: Vec<Subscription<P>>, first: Bytes) -> Self {
        Self(Arc::new(Mutex::new(Some(Handoff { engine, protocol, subscriptions, first }))))
    }

    /// The lazy body of the 200: does nothing until it is polled, which happens only when no take-over took place.
    pub fn body(&self) -> Body {
        Body::from_stream(futures_util::stream::try_unfold(Fallback::Waiting(self.clone()), Fallback::next))
    }

    pub(super) fn take(&self) -> Option<Handoff<P>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A socket with nothing between it and hyper, which an engine can take.
pub(super) trait Plain: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Takes the socket out of the runtime and gives it to the engine, with what hyper had read beyond the request.
    fn hand_over<P: Protocol>(self, handoff: Handoff<P>, unread: Bytes) -> io::Result<()>;
}

impl Plain for TcpStream {
    fn hand_over<P: Protocol>(self, to: Handoff<P>, unread: Bytes) -> io::Result<()> {
        to.engine.take_over(self.into_std()?, to.protocol, unread, to.subscriptions, to.first);
        Ok(())
    }
}

/// One end of a pair: beyond the other is TLS.
impl Plain for UnixStream {
    fn hand_over<P: Protocol>(self, to: Handoff<P>, unread: Bytes) -> io::Result<()> {
        to.engine.take_over_pair(self.into_std()?, to.protocol, unread, to.subscriptions, to.first);
        Ok(())
    }
}

/// A stream through a body of hyper's: the engine writes into one end of a socket pair as it writes to any viewer, so
/// mailbox, heart-beats, drain and counts are the same; the pair's small buffer is what bounds a slow reader.
enum Fallback<P: Protocol> {
    Waiting(TakeOver<P>),
    Open(UnixStream, ChunkDecoder),
}

impl<P: Protocol> Fallback<P> {
    async fn next(self) -> io::Result<Option<(Bytes, Self)>> {
        let (mut stream, mut decoder) = match self {
            Self::Open(stream, decoder) => (stream, decoder),
            Self::Waiting(cell) => {
                let Some(handoff) = cell.take() else { return Ok(None) };
                let (theirs, ours) = std::os::unix::net::UnixStream::pair()?;
                ours.set_nonblocking(true)?;
                let ours = UnixStream::from_std(ours)?;
                let none = Bytes::new();
                handoff.engine.take_over_pair(theirs, handoff.protocol, none, handoff.subscriptions, handoff.first);
                (ours, ChunkDecoder::new())
            }
        };
        let mut buffer = Vec::new();
        while buffer.is_empty() {
            if decoder.is_end() {
                return Ok(None);
            }
            let mut read = [0; 4096];
            let n = stream.read(&mut read).await?;
            if n == 0 {
                return Ok(None);
            }
            let mut input = &read[..n];
            while let Some(data) = decoder.next(&mut input).map_err(io::Error::other)? {
                buffer.extend_from_slice(data);
            }
        }
        Ok(Some((buffer.into(), Self::Open(stream, decoder))))
    }
}
