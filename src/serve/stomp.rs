//! The WebSocket handshake of STOMP: axum checks and builds the 101, then the engine has the socket.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Uri, header};

use super::app::App;
use super::connection::TakeOver;
use super::error::ApiError;
use super::rates::Client;
use super::wire::{Echo, Talk, Wire, framing};
use super::{Broken, Role, api};
use crate::proto::stomp::Version;
use crate::proto::ws::{self, Opcode, close_payload, server_frame};

type Handshake = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// `GET /stomp`.
pub(super) async fn upgrade(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    client: Option<Extension<Client>>,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    api::need(&app, Role::Stomp)?;
    let handshake = checked(&headers, handshake)?.protocols(Version::ALL.map(Version::subprotocol));
    let newest = match handshake.selected_protocol() {
        Some(agreed) => Version::ALL.into_iter().find(|version| agreed == version.subprotocol()),
        None if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) => None,
        // A client that offers none is served: `accept-version` alone decides.
        None => Some(Version::V12),
    };
    // A 101 without one of those offered would be refused by browsers; this way the reason is told.
    let newest = newest.ok_or_else(|| bad("of the subprotocols, v12.stomp, v11.stomp and v10.stomp are served"))?;
    let user = api::user(&app, &headers)?;
    let seat = app.admit().inspect_err(|error| app.refused(error))?;
    let client = client.map_or(Client::Others, |Extension(client)| client);
    let talk = Talk::new(&app, newest, user.as_deref(), client, seat);
    let first = match app.config.broken {
        Some(Broken::Polite200) => server_frame(Opcode::Close, &close_payload(ws::close::NORMAL, "broken on purpose")),
        _ => Bytes::new(),
    };
    Ok(switch(&app, handshake, Wire::Stomp(Box::new(talk)), first))
}

/// `GET /ws/echo` of the conformance mode; `?limits=production` has the limits of `/stomp` in production.
pub(super) async fn echo(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    handshake: Handshake,
) -> Result<Response, ApiError> {
    let handshake = checked(&headers, handshake)?;
    let seat = app.admit().inspect_err(|error| app.refused(error))?;
    let limits = framing::limits(uri.query() != Some("limits=production"));
    Ok(switch(&app, handshake, Wire::Echo(Box::new(Echo::new(limits, seat))), Bytes::new()))
}

/// What axum found wrong, and what it does not look at.
fn checked(headers: &HeaderMap, handshake: Handshake) -> Result<WebSocketUpgrade, ApiError> {
    let handshake = handshake.map_err(|rejection| refusal(headers, rejection))?;
    let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| STANDARD.decode(key).ok());
    if key.is_none_or(|key| key.len() != 16) {
        return Err(bad("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    Ok(handshake)
}

/// The 101, after which an engine has the socket. permessage-deflate is never agreed on: it costs 32 KiB and more per
/// connection, breaks the sharing of bytes among viewers, and opens the way to decompression bombs; events are 100 bytes.
fn switch(app: &App, handshake: WebSocketUpgrade, wire: Wire, first: Bytes) -> Response {
    let take_over = TakeOver::new(app.hub.pick().clone(), wire, Vec::new(), first);
    // axum's own callback never runs: the engine takes the socket after the 101.
    let mut response = handshake.on_failed_upgrade(|_| {}).on_upgrade(|_| async {});
    response.extensions_mut().insert(take_over);
    response
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
