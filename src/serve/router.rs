//! Every route in one list, and what all of them have in common.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use tower_http::catch_panic::CatchPanicLayer;

use super::app::App;
use super::error::{ApiError, in_our_words, panicked};
use super::{api, auth, openapi, origin, page, sse, stomp};
use crate::telemetry::trace::Carrier;

const POD: HeaderName = HeaderName::from_static("x-pushlab-pod");

/// What needs no token when authentication is on: the page and the descriptions, and the handshake of STOMP, whose CONNECT
/// has the token. Whatever is not listed needs one.
const OPEN: [&str; 7] =
    ["/", "/page/{file}", "/openapi.json", "/asyncapi.json", "/problems", "/problems/{name}", "/stomp"];

/// Whether a request on this route needs no token. Preflights carry none; an expired session can still be ended.
pub(super) fn is_open(method: &Method, route: &str) -> bool {
    OPEN.contains(&route) || method == Method::OPTIONS || (method == Method::DELETE && route == "/session")
}

/// The public port.
pub(super) fn public(app: &Arc<App>) -> Router {
    let routes = Router::new()
        // For people.
        .route("/", get(page::show))
        .route("/page/{file}", get(page::file))
        // What all this is.
        .route("/openapi.json", get(openapi::openapi))
        .route("/asyncapi.json", get(openapi::asyncapi))
        .route("/problems", get(openapi::problems))
        .route("/problems/{name}", get(openapi::problem))
        // Posts and likes.
        .route("/posts", post(api::create_post))
        .route("/posts/{id}", get(api::post))
        .route("/posts/{id}/likes", get(api::likes).post(api::like).delete(api::unlike))
        .route("/posts/{id}/likes/me", put(api::like_me).delete(api::unlike_me))
        // Streams. The first is also /posts/{id}/likes with Accept: text/event-stream.
        .route("/likes", get(sse::many))
        .route("/stomp", get(stomp::upgrade))
        // What a browser needs to open a stream when authentication is on.
        .route("/tickets", post(auth::ticket))
        .route("/session", post(auth::session).delete(auth::end_session));
    let routes = if app.config.conformance { routes.route("/ws/echo", get(stomp::echo)) } else { routes };
    routes
        .method_not_allowed_fallback(no_method)
        .fallback(any(async || ApiError::NoRoute))
        .layer(from_fn_with_state(Arc::clone(app), auth::guard))
        .layer(from_fn_with_state(Arc::clone(app), origin::guard))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(Arc::clone(app), observe))
        .layer(origin::cors(&app.config.origins))
        .with_state(Arc::clone(app))
}

/// 405 with `Allow` (axum's), or 204 for OPTIONS.
async fn no_method(request: Request) -> Response {
    if request.method() == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    ApiError::Method.into_response()
}

/// Whether a request changes a like, and so begins a trace.
fn is_like(method: &Method, route: &str) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::DELETE) && route.starts_with("/posts/{id}/likes")
}

/// Answers a like within its span.
async fn traced(app: &App, route: &str, mut request: Request, next: Next) -> Response {
    let name = || format!("{} {route}", request.method());
    let Some(mut asked) = app.tracer.asked(SystemTime::now(), name, || Carrier::of(request.headers())) else {
        return in_our_words(next.run(request).await);
    };
    asked.note("http.request.method", request.method().to_string());
    asked.note("http.route", route.to_owned());
    asked.note("url.path", request.uri().path().to_owned());
    let trace = asked.trace();
    request.extensions_mut().insert(trace.clone());
    let response = in_our_words(trace.scope(next.run(request)).await);
    asked.answered(response.status().as_u16());
    response
}

/// Counts by route template, names the pod, and says what browsers must not do.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let mut response = if app.tracer.is_on() && is_like(request.method(), route) {
        traced(&app, route, request, next).await
    } else {
        in_our_words(next.run(request).await)
    };
    app.metrics.http_requests_total.with_label_values(&[route, response.status().as_str()]).inc();
    let headers = response.headers_mut();
    headers.insert(POD, app.pod.clone());
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // A ticket in a URL is for nobody else.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // Pages have policies of their own; nothing else is to be shown as one.
    let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(nothing);
    response
}
