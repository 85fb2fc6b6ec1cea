//! The page at `/` and its files: plain HTML, CSS and ES modules, no build step, no CDN.

use std::sync::{Arc, LazyLock};

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha1::{Digest as _, Sha1};

use super::app::App;
use super::error::ApiError;
use super::openapi;

const PAGE: &str = include_str!("page/page.html");

/// Everything comes from here and nothing is written into the page: no nonce, no hash, no inline script.
static POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
     base-uri 'none'; frame-ancestors 'none'",
);

/// A file of the page.
struct Asset {
    name: &'static str,
    kind: HeaderValue,
    text: &'static str,
}

macro_rules! asset {
    ($name:literal, $kind:literal) => {
        Asset { name: $name, kind: HeaderValue::from_static($kind), text: include_str!(concat!("page/", $name)) }
    };
}

static ASSETS: [Asset; 6] = [
    asset!("page.css", "text/css; charset=utf-8"),
    asset!("page.js", "text/javascript; charset=utf-8"),
    asset!("panel.js", "text/javascript; charset=utf-8"),
    asset!("live.js", "text/javascript; charset=utf-8"),
    asset!("stomp.js", "text/javascript; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
];

/// Names the content of all files, so that a browser asks but downloads only after a change.
static TAG: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let mut hash = Sha1::new();
    ASSETS.iter().for_each(|asset| hash.update(asset.text));
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    HeaderValue::from_str(&format!("\"{hex}\"")).ok()
});

/// `GET /`.
pub(super) async fn show(State(app): State<Arc<App>>) -> Response {
    let html = PAGE.replace("{{heartbeat_ms}}", &app.config.heartbeat.as_millis().to_string());
    let head = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::LINK, openapi::LINKS),
    ];
    (head, html).into_response()
}

/// `GET /page/{file}`.
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Result<Response, ApiError> {
    let asset = ASSETS.iter().find(|asset| asset.name == name).ok_or(ApiError::NoRoute)?;
    let tag = TAG.clone();
    let known = tag.is_some() && headers.get(header::IF_NONE_MATCH) == tag.as_ref();
    let mut response = if known { StatusCode::NOT_MODIFIED.into_response() } else { asset.text.into_response() };
    let answered = response.headers_mut();
    answered.insert(header::CONTENT_TYPE, asset.kind.clone());
    answered.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answered.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answered.extend(tag.map(|tag| (header::ETAG, tag)));
    Ok(response)
}
