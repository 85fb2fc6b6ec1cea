//! The WebSocket handshake of STOMP: axum checks and builds the 101, then the engine has the socket.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};

use super::app::App;
use super::connection::TakeOver;
use super::error::ApiError;
use super::wire::{Talk, Wire};
use super::{Broken, Role, api};
use crate::proto::stomp::Version;
use crate::proto::ws::{self, Opcode, close_payload, server_frame};

/// `GET /stomp`.
pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    handshake: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    api::need(&app, Role::Stomp)?;
    let handshake = handshake.map_err(|rejection| refusal(&headers, rejection))?;
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| STANDARD.decode(key).ok());
    if key.is_none_or(|key| key.len() != 16) {
        return Err(bad("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    let handshake = handshake.protocols(Version::ALL.map(Version::subprotocol)).on_failed_upgrade(|_| {});
    if handshake.selected_protocol().is_none() && headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return Err(bad("of the subprotocols, v12.stomp, v11.stomp and v10.stomp are served"));
    }
    let user = api::user(&app, &headers)?;
    let seat = app.admit().inspect_err(|error| app.refused(error))?;
    app.metrics.resumes_total.with_label_values(&["stomp", "fresh"]).inc();
    let talk = Talk::new(&app, user.as_deref(), seat);
    let first = match app.config.broken {
        Some(Broken::Polite200) => server_frame(Opcode::Close, &close_payload(ws::close::NORMAL, "broken on purpose")),
        _ => bytes::Bytes::new(),
    };
    let take_over = TakeOver::new(app.hub.pick().clone(), Wire::Stomp(Box::new(talk)), Vec::new(), first);
    // axum's own callback never runs: the engine takes the socket after the 101.
    let mut response = handshake.on_upgrade(|_| async {});
    response.extensions_mut().insert(take_over);
    Ok(response)
}

fn bad(detail: &str) -> ApiError {
    ApiError::Handshake { status: 400, detail: detail.into() }
}

fn refusal(headers: &HeaderMap, rejection: WebSocketUpgradeRejection) -> ApiError {
    let detail = rejection.body_text();
    let other_version = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version != "13");
    let status = if other_version { 426 } else { rejection.into_response().status().as_u16() };
    ApiError::Handshake { status, detail }
}
