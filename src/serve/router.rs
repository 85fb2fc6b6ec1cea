//! Every route in one list, and what all of them have in common.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::app::App;
use super::error::{ApiError, panicked};
use super::{api, openapi, page, sse, stomp};

const POD: HeaderName = HeaderName::from_static("x-pushlab-pod");

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
        .route("/stomp", get(stomp::upgrade));
    let routes = if app.config.conformance { routes.route("/ws/echo", get(stomp::echo)) } else { routes };
    routes
        .method_not_allowed_fallback(no_method)
        .fallback(any(async || ApiError::NoRoute))
        .layer(from_fn_with_state(Arc::clone(app), origin))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(Arc::clone(app), observe))
        .layer(cors(&app.config.origins))
        .with_state(Arc::clone(app))
}

/// 405 with `Allow` (axum's), or 204 for OPTIONS.
async fn no_method(request: Request) -> Response {
    if request.method() == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    ApiError::Method.into_response()
}

/// Requests of pages: from the pod's own origin, or from one of those allowed. Programs send no `Origin`.
async fn origin(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let guarded = request.method() != Method::OPTIONS;
    let headers = request.headers();
    if guarded && let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str));
        let own = origin.split_once("://").is_some_and(|(_, authority)| Some(authority) == host);
        if !own && !app.config.origins.iter().any(|allowed| allowed == origin) {
            return ApiError::Origin.into_response();
        }
    }
    next.run(request).await
}

/// Counts by route template, and names the pod.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    app.metrics.http_requests_total.with_label_values(&[route, response.status().as_str()]).inc();
    response.headers_mut().insert(POD, app.pod.clone());
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Exact origins, with credentials; none at all when none is allowed.
fn cors(origins: &[String]) -> tower::util::Either<CorsLayer, tower::layer::util::Identity> {
    if origins.is_empty() {
        return tower::util::Either::Right(tower::layer::util::Identity::new());
    }
    let names = |names: &[&'static str]| names.iter().map(|n| HeaderName::from_static(n)).collect::<Vec<_>>();
    let exact = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(exact))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(names(&["content-type", "idempotency-key", "last-event-id", "cache-control"]))
        .expose_headers(names(&["etag", "location", "retry-after", "idempotent-replayed", "x-pushlab-pod"]))
        .max_age(std::time::Duration::from_secs(600));
    tower::util::Either::Left(layer)
}
