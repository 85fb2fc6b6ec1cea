//! How much one caller may ask for, and how long it may take. A limit is answered clearly; nobody else is evicted for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use axum::body::{Body, Bytes, HttpBody as _};

use super::error::ApiError;
use crate::hub::CloseReason;

/// Largest request body, WebSocket frame, message and STOMP frame, in bytes.
pub const BODY: usize = 64 * 1024;
/// Largest WebSocket message in the conformance mode, in bytes: that of Autobahn's largest case.
pub const CONFORMANCE_MESSAGE: usize = 16 * 1024 * 1024;
/// Largest body of a STOMP frame in the conformance mode, in bytes.
pub const CONFORMANCE_BODY: usize = 2 * 1024 * 1024;
/// Largest WebSocket frame and message, in bytes, of a STOMP session that has not shown its token.
pub const UNAUTHENTICATED: usize = 4 * 1024;
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

/// When a stream has to end, and why then.
#[derive(Debug, Clone, Copy)]
pub struct Lifetime {
    ends_at: Option<Instant>,
    why: CloseReason,
}

impl Default for Lifetime {
    /// No end.
    fn default() -> Self {
        Self { ends_at: None, why: CloseReason::MaxAge }
    }
}

impl Lifetime {
    /// Ends `max_age` from now.
    #[must_use]
    pub fn of(max_age: Option<Duration>) -> Self {
        Self { ends_at: max_age.map(|age| Instant::now() + age), why: CloseReason::MaxAge }
    }

    /// Ends `max_age` from now, ± 20 %; zero: no end.
    #[must_use]
    pub fn around(max_age: Duration) -> Self {
        Self::of((!max_age.is_zero()).then(|| max_age.mul_f64(rand::random_range(0.8..=1.2))))
    }

    /// Ends when its user's token does, if that is earlier.
    #[must_use]
    pub fn until(self, expires: SystemTime) -> Self {
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        // A date that no clock of this machine reaches is no end.
        match Instant::now().checked_add(left) {
            Some(end) if self.ends_at.is_none_or(|at| end < at) => {
                Self { ends_at: Some(end), why: CloseReason::Expired }
            }
            _ => self,
        }
    }

    /// The reason, once it has come.
    #[must_use]
    pub fn over(&self, now: Instant) -> Option<CloseReason> {
        self.ends_at.is_some_and(|end| now >= end).then_some(self.why)
    }
}

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
    // What announces too much is not waited for.
    if body.size_hint().lower() > BODY as u64 {
        return Err(ApiError::TooLarge { limit: BODY });
    }
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

    #[test]
    fn a_stream_ends_with_its_token_or_its_age_whichever_comes_first() {
        let hour = Duration::from_secs(3600);
        let (soon, late) = (SystemTime::now() + Duration::from_secs(9), SystemTime::now() + 9 * hour);
        let end = Instant::now() + 2 * hour;
        assert_eq!(Lifetime::default().over(end), None);
        assert_eq!(Lifetime::of(Some(hour)).over(end), Some(CloseReason::MaxAge));
        assert_eq!(Lifetime::of(Some(hour)).until(soon).over(end), Some(CloseReason::Expired));
        assert_eq!(Lifetime::of(Some(hour)).until(late).over(end), Some(CloseReason::MaxAge));
        assert_eq!(Lifetime::of(None).until(soon).over(Instant::now()), None);
        assert_eq!(Lifetime::of(None).until(SystemTime::UNIX_EPOCH).over(end), Some(CloseReason::Expired));
    }

    #[test]
    fn streams_of_one_moment_do_not_end_in_one() {
        assert_eq!(Lifetime::around(Duration::ZERO).ends_at, None);
        let hour = Duration::from_secs(3600);
        let (mut ends, begun) = (Vec::new(), Instant::now());
        ends.extend((0..1_000).map(|_| Lifetime::around(hour).ends_at.unwrap()));
        ends.sort();
        assert!(ends[0] >= begun + hour.mul_f64(0.8) && ends[999] <= Instant::now() + hour.mul_f64(1.2));
        // Uniform: a tenth of the streams in each tenth of the spread, give or take.
        for tenth in 1..10_u32 {
            let before = ends.iter().filter(|end| **end < begun + hour.mul_f64(0.8 + 0.04 * f64::from(tenth))).count();
            assert!(before.abs_diff(100 * tenth as usize) < 80, "{before} of 1,000 in {tenth} tenths");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_as_such() {
        assert_eq!(body(Body::from(vec![0; BODY])).await.map(|b| b.len()), Ok(BODY));
        assert_eq!(body(Body::from(vec![0; BODY + 1])).await, Err(ApiError::TooLarge { limit: BODY }));
    }
}
