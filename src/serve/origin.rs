//! Which pages may ask: exact origins, told to browsers (CORS) and held against what browsers say (`Origin`).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Method, header};
use tower::layer::util::Identity;
use tower::util::Either;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::app::App;
use super::error::ApiError;

/// How long a browser may remember the answer to a preflight.
const PREFLIGHT: Duration = Duration::from_secs(600);

/// An origin as a browser writes it: scheme, host and, unless it is the scheme's own, port. No wildcard, no `null`, which
/// every sandboxed frame may send.
pub(super) fn exact(text: &str) -> Result<String, String> {
    let bad = || format!("{text:?} is no origin: write it as a browser does, for example https://www.example.org");
    let (scheme, authority) = text.split_once("://").ok_or_else(bad)?;
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b);
    let own_port = if scheme == "https" { ":443" } else { ":80" };
    let exact = matches!(scheme, "http" | "https") && !authority.is_empty() && authority.bytes().all(fits);
    if exact && !authority.ends_with(own_port) { Ok(text.into()) } else { Err(bad()) }
}

/// Refuses requests of pages of other origins than the pod's own and those allowed, also before an upgrade. Programs send
/// no `Origin`; a browser that sends none has only a cookie to show, and that needs more (`auth::guard`).
pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str));
    // A preflight has no effect; what it asks for has an origin of its own.
    let foreign = request.method() != Method::OPTIONS
        && headers.get_all(header::ORIGIN).iter().any(|origin| {
            let origin = origin.to_str().unwrap_or_default();
            let own = origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host);
            !own && !app.config.origins.iter().any(|allowed| allowed == origin)
        });
    if foreign { ApiError::Origin.into_response() } else { next.run(request).await }
}

/// Exact origins, with credentials; none at all when none is allowed.
pub(super) fn cors(origins: &[String]) -> Either<CorsLayer, Identity> {
    if origins.is_empty() {
        return Either::Right(Identity::new());
    }
    let names = |names: &[&'static str]| names.iter().map(|n| HeaderName::from_static(n)).collect::<Vec<_>>();
    let exact = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(exact))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(names(&["authorization", "content-type", "idempotency-key", "last-event-id", "cache-control"]))
        .expose_headers(names(&["etag", "location", "retry-after", "idempotent-replayed", "x-pushlab-pod"]))
        .max_age(PREFLIGHT);
    Either::Left(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_browser_would_send_is_an_origin() {
        for good in ["https://www.example.org", "http://127.0.0.1:8080", "http://[::1]:8080"] {
            assert_eq!(exact(good).as_deref(), Ok(good));
        }
        for bad in [
            "*",
            "null",
            "https://*.example.org",
            "https://a.test/",
            "HTTPS://a.test",
            "https://a.test:443",
            "https://",
        ] {
            assert!(exact(bad).unwrap_err().contains("for example"), "{bad}");
        }
    }
}
