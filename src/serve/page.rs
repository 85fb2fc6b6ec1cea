//! The page at `/`: one HTML file, no build step, no CDN.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{Html, IntoResponse, Response};
use http::{HeaderValue, header};

use super::app::App;
use super::error::ApiError;

const PAGE: &str = include_str!("page.html");

/// `GET /`.
pub(super) async fn show(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let heartbeat = app.config.heartbeat.as_millis().to_string();
    let html = PAGE.replace("{{nonce}}", &nonce).replace("{{heartbeat_ms}}", &heartbeat);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = Html(html).into_response();
    let policy = HeaderValue::from_str(&policy).map_err(|_| ApiError::Internal)?;
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
