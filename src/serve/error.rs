//! What a caller is told when something is refused: problem+json (RFC 9457). The only file that knows status codes.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::domain::ParseError;
use crate::store::StoreError;

/// Why a request, a stream or a SEND is refused. Each variant's first words say which status it becomes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// 400: the request cannot be understood; the text says what is expected.
    #[error("{0}")]
    BadRequest(String),
    /// 400: an anonymous take-back has no `Idempotency-Key`.
    #[error("proxies and HTTP libraries repeat DELETE by themselves: send an Idempotency-Key of your own choice")]
    KeyRequired,
    /// 401: a `likes/me` without a user.
    #[error("this needs a known user; {0}")]
    UserRequired(String),
    /// 401: no credential, or none that counts; what was wrong is not said.
    #[error(
        "this needs a valid token: Authorization: Bearer …; for EventSource the cookie or ?ticket= (POST /tickets)"
    )]
    Unauthorized,
    /// 403: the `Origin` is not one of those allowed.
    #[error("this origin may not do this; the operator allows origins with --origin")]
    Origin,
    /// 404: no route.
    #[error("nothing is served under this path")]
    NoRoute,
    /// 404: this pod does not have the role.
    #[error("this pod does not serve this; its --roles say what it serves")]
    NoRole,
    /// 404: no such post.
    #[error("no such post")]
    UnknownPost,
    /// 405: the route exists, the method does not (`Allow` says which do).
    #[error("this method is not served here; see Allow")]
    Method,
    /// 406: `Accept` fits nothing that is served here.
    #[error("Accept fits nothing served here: text/event-stream, and for one post's state application/json")]
    NotAcceptable,
    /// 408: the body did not come in time.
    #[error("the body did not come in time")]
    RequestTimeout,
    /// 409: the first request with this key has not ended.
    #[error("the first request with this Idempotency-Key has not ended yet")]
    KeyInFlight,
    /// 413: the body is larger than the limit.
    #[error("the body is larger than {limit} bytes")]
    TooLarge {
        /// Bytes.
        limit: usize,
    },
    /// 415: the body is not JSON.
    #[error("the body must be application/json, not compressed")]
    MediaType,
    /// 422: this key was used for another request.
    #[error("this Idempotency-Key was used for a different request")]
    KeyMismatch,
    /// 426 and the like: the WebSocket handshake is wrong, with axum's words and status.
    #[error("{detail}")]
    Handshake {
        /// The status axum chose.
        status: u16,
        /// What is wrong.
        detail: String,
    },
    /// 429: more pending than a session may have.
    #[error("too many at once; wait for outcomes before sending more")]
    TooMany,
    /// 429: this client asks more often than it may.
    #[error("you ask more often than one client may; come back in {seconds} s")]
    RateLimited {
        /// Seconds until the next one is let through.
        seconds: u32,
    },
    /// 500: a defect of ours; the log has the cause.
    #[error("an error of ours; it is logged")]
    Internal,
    /// 504: the database fell silent after COMMIT was sent: counted or not, a repetition with the same key finds out.
    #[error("it is not known whether this was counted; a repetition with the same Idempotency-Key is safe")]
    OutcomeUnknown,
    /// 503: the database or broker cannot be reached, or did not answer in time. Nothing was counted.
    #[error("{0}")]
    Unavailable(&'static str),
    /// 503: the pod holds as many streams as it may.
    #[error("this pod holds as many streams as it may; another one serves you")]
    Full,
    /// 503: the pod holds as many connections as it may.
    #[error("this pod holds as many connections as it may; another one serves you")]
    Crowded,
    /// 503: new streams come faster than the pod may take them.
    #[error("new streams come faster than this pod takes them; come back in a moment")]
    Rush,
    /// 503: the pod is being taken out of service.
    #[error("this pod is being taken out of service; another one serves you")]
    Draining,
    /// 503: the pod was started broken, for the laboratory.
    #[error("this pod was started with --break")]
    Broken,
}

/// The body of RFC 9457.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Problem {
    /// `/problems/<name>`, relative to the pod, where it is explained.
    #[serde(rename = "type")]
    #[schema(format = "uri-reference", pattern = "^/problems/[a-z0-9-]+$")]
    pub kind: String,
    /// The kind in words.
    pub title: &'static str,
    /// The HTTP status, also for a STOMP reply.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// This case in words; no internals.
    pub detail: String,
}

impl ApiError {
    fn kind(&self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad-request", "Bad request"),
            Self::KeyRequired => (StatusCode::BAD_REQUEST, "key-required", "Idempotency-Key required"),
            Self::UserRequired(_) => (StatusCode::UNAUTHORIZED, "user-required", "User required"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "Unauthorized"),
            Self::Origin => (StatusCode::FORBIDDEN, "origin", "Origin not allowed"),
            Self::NoRoute => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Self::NoRole => (StatusCode::NOT_FOUND, "no-role", "Not served by this pod"),
            Self::UnknownPost => (StatusCode::NOT_FOUND, "unknown-post", "Unknown post"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed"),
            Self::NotAcceptable => (StatusCode::NOT_ACCEPTABLE, "not-acceptable", "Not acceptable"),
            Self::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "request-timeout", "Request time-out"),
            Self::KeyInFlight => (StatusCode::CONFLICT, "key-in-flight", "Request in flight"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Body too large"),
            Self::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "Unsupported media type"),
            Self::KeyMismatch => (StatusCode::UNPROCESSABLE_ENTITY, "key-mismatch", "Idempotency-Key used before"),
            Self::Handshake { status, .. } => {
                let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_REQUEST);
                (status, "handshake", "WebSocket handshake refused")
            }
            Self::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too-many", "Too many requests"),
            Self::RateLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
            Self::OutcomeUnknown => (StatusCode::GATEWAY_TIMEOUT, "outcome-unknown", "Outcome unknown"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Temporarily unavailable"),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, "full", "Pod full"),
            Self::Crowded => (StatusCode::SERVICE_UNAVAILABLE, "crowded", "Too many connections"),
            Self::Rush => (StatusCode::SERVICE_UNAVAILABLE, "rush", "Too many new streams"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "draining", "Pod draining"),
            Self::Broken => (StatusCode::SERVICE_UNAVAILABLE, "broken", "Pod broken on purpose"),
        }
    }

    /// The HTTP status; STOMP replies carry it in the header `status`.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.kind().0.as_u16()
    }

    /// Whether the fault is the caller's.
    #[must_use]
    pub fn is_callers(&self) -> bool {
        self.kind().0.is_client_error()
    }

    /// The last part of `/problems/<name>`; also the label of what was refused.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind().1
    }

    /// The body, for HTTP and for STOMP replies alike.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let (status, name, title) = self.kind();
        Problem { kind: format!("/problems/{name}"), title, status: status.as_u16(), detail: self.to_string() }
    }

    /// Seconds after which a repetition makes sense; random, so that those refused together do not return together.
    fn retry_after(&self) -> Option<u32> {
        if let Self::RateLimited { seconds } = self {
            return Some(*seconds);
        }
        match self.kind().0 {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Some(rand::random_range(1..=3)),
            StatusCode::CONFLICT => Some(1),
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.kind().0, Json(self.problem())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status() == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pushlab\""));
        }
        if matches!(self.status(), 408 | 413) {
            // The rest of the body is not read, so nothing else may come over this connection (RFC 9112 §9.6).
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status() == 426 {
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        response
    }
}

impl From<ParseError> for ApiError {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::PostId => Self::UnknownPost,
            other => Self::BadRequest(other.to_string()),
        }
    }
}

impl From<&StoreError> for ApiError {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::UnknownPost => Self::UnknownPost,
            StoreError::KeyInFlight => Self::KeyInFlight,
            StoreError::KeyMismatch => Self::KeyMismatch,
            StoreError::KeyRequired => Self::KeyRequired,
            StoreError::UserRequired => Self::UserRequired(String::new()),
            StoreError::Limit(what) => Self::BadRequest((*what).into()),
            StoreError::Overloaded => Self::Unavailable("too many likes are under way; nothing was counted"),
            StoreError::Contended => Self::Unavailable("this post is in heavy use; nothing was counted"),
            StoreError::Unavailable { .. } => Self::Unavailable("the database cannot be reached; nothing was counted"),
            StoreError::Timeout(_) => Self::Unavailable("the database did not answer in time; nothing was counted"),
            StoreError::OutcomeUnknown { .. } => Self::OutcomeUnknown,
            StoreError::BadUrl(_) | StoreError::Unsupported(_) => Self::Internal,
        }
    }
}

/// axum's own refusal, of a path that is not UTF-8, in the form of all others.
pub(super) fn in_our_words(response: Response) -> Response {
    let problem = HeaderValue::from_static("application/problem+json");
    if response.status() != StatusCode::BAD_REQUEST || response.headers().get(header::CONTENT_TYPE) == Some(&problem) {
        return response;
    }
    ApiError::BadRequest("a path is percent-encoded UTF-8".into()).into_response()
}

/// The whole HTTP/1.1 answer to a connection that is one too many: nothing of it is read.
pub(super) fn crowded() -> Vec<u8> {
    let problem = serde_json::to_string(&ApiError::Crowded.problem()).unwrap_or_default();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncache-control: no-store\r\n\
         retry-after: 2\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{problem}",
        problem.len()
    )
    .into()
}

/// What a panic becomes: 500 without the panic's words, which go to the log.
#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
pub(super) fn panicked(cause: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let words = cause.downcast_ref::<&str>().map(ToString::to_string);
    let words = words.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(panic = words, "a handler panicked");
    ApiError::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_problem_json_and_says_when_to_come_back() {
        let response = ApiError::Draining.into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let seconds: u32 = response.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
        assert!((1..=3).contains(&seconds));
        let problem = ApiError::KeyRequired.problem();
        assert_eq!((problem.status, problem.kind.as_str()), (400, "/problems/key-required"));
    }
}
