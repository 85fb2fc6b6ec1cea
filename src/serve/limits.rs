//! How much one caller may ask for, and how long it may take. A limit is answered clearly; nobody else is evicted for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};

use super::error::ApiError;

/// Largest request body, WebSocket frame, message and STOMP frame, in bytes.
pub const BODY: usize = 64 * 1024;
/// Largest WebSocket message in the conformance mode, in bytes: that of Autobahn's largest case.
pub const CONFORMANCE_MESSAGE: usize = 16 * 1024 * 1024;
/// Largest body of a STOMP frame in the conformance mode, in bytes.
pub const CONFORMANCE_BODY: usize = 2 * 1024 * 1024;
/// Most subscriptions of a STOMP session, and most posts of one SSE stream.
pub const SUBSCRIPTIONS: usize = 128;
/// Most missed events that one SSE stream, or one STOMP session within a second, is sent one by one; beyond it the state
/// is sent. They fit into what may wait for a connection.
pub const REPLAY: u16 = 1024;
/// Most likes of a STOMP session that wait for their outcome; then the socket is not read.
pub const PENDING_LIKES: usize = 16;
/// A STOMP session that has not connected by then is closed.
pub const CONNECT: Duration = Duration::from_secs(10);
/// A body that is not complete by then is refused.
pub const BODY_TIME: Duration = Duration::from_secs(10);
/// Longest `Idempotency-Key`, in ASCII characters.
pub const KEY: usize = 64;

/// Counts the streams a pod holds, up to a cap.
#[derive(Debug, Clone)]
pub struct Seats {
    taken: Arc<AtomicUsize>,
    cap: usize,
}

/// One stream's seat, given back when dropped.
#[derive(Debug)]
pub struct Seat(Arc<AtomicUsize>);

impl Seats {
    /// At most `cap` seats.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        Self { taken: Arc::default(), cap }
    }

    /// A seat, if one is free.
    #[must_use]
    pub fn take(&self) -> Option<Seat> {
        let below = |taken| (taken < self.cap).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).ok()?;
        Some(Seat(self.taken.clone()))
    }

    /// How many are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Reads a whole body within the limits.
///
/// # Errors
/// 413 when it is too large, 408 when it is too slow, 400 when it breaks off.
pub(super) async fn body(body: Body) -> Result<Bytes, ApiError> {
    let whole = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, BODY)).await;
    whole.map_err(|_| ApiError::RequestTimeout)?.map_err(|error| {
        let limited = std::error::Error::source(&error)
            .is_some_and(<dyn std::error::Error>::is::<http_body_util::LengthLimitError>);
        if limited { ApiError::TooLarge { limit: BODY } } else { ApiError::BadRequest("the body broke off".into()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_given_back() {
        let seats = Seats::new(1);
        let seat = seats.take();
        assert!(seat.is_some() && seats.take().is_none());
        drop(seat);
        assert!(seats.take().is_some());
        assert_eq!(seats.taken(), 0);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_as_such() {
        assert_eq!(body(Body::from(vec![0; BODY])).await.map(|b| b.len()), Ok(BODY));
        assert_eq!(body(Body::from(vec![0; BODY + 1])).await, Err(ApiError::TooLarge { limit: BODY }));
    }
}
