//! The conformance mode, for suites that drive a live server: STOMP as a plain broker, also over TCP. Never in production.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::wire::{Talk, TalkReply, Wire};
use super::{AuthMode, Config};
use crate::hub::{ConnKey, Hub};
use crate::proto::stomp::session::Relayed;

/// Refuses the mode beside anything that a production pod has.
///
/// # Errors
/// Names the flags.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let production = [
        ("--nats-url (other than `local`)", config.nats_url != "local"),
        ("--database-url (other than sqlite:)", !config.database_url.starts_with("sqlite:")),
        ("--origin", !config.origins.is_empty()),
        ("--trust-user-header", config.trust_user_header.is_some()),
        ("--auth", config.auth.auth != AuthMode::Off),
        ("--tls-cert", config.tls.tls_cert.is_some()),
    ];
    let given: Vec<_> = production.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
    anyhow::ensure!(
        !config.conformance || given.is_empty(),
        "--conformance lets anyone relay anything and is for test suites only: leave it out, or leave out {}",
        given.join(", ")
    );
    Ok(())
}

/// The sessions that get what others send. A SEND goes to all of them; each knows what it has subscribed to.
#[derive(Debug, Default)]
pub(super) struct Broadcast {
    members: Mutex<HashSet<ConnKey>>,
    sent: AtomicU64,
}

/// A session's membership, which ends with it.
#[derive(Debug)]
pub(super) struct Member {
    broadcast: Arc<Broadcast>,
    key: ConnKey,
}

impl Broadcast {
    fn members(&self) -> MutexGuard<'_, HashSet<ConnKey>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn join(self: &Arc<Self>, key: ConnKey) -> Member {
        self.members().insert(key);
        Member { broadcast: Arc::clone(self), key }
    }

    /// Under the lock, so that all sessions see SENDs in one order.
    pub(super) fn publish(&self, hub: &Hub<Wire>, relayed: &Arc<Relayed>) {
        let members = self.members();
        let sent = self.sent.fetch_add(1, Ordering::Relaxed);
        members.iter().for_each(|key| hub.reply(*key, TalkReply::Relayed(sent, Arc::clone(relayed))));
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.broadcast.members().remove(&self.key);
    }
}

/// STOMP over TCP without WebSocket, until `stop`. Inputs: the listener and `stop`.
pub(super) async fn serve(app: Arc<App>, listener: TcpListener, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(stream, _)| stream.into_std()) {
            Ok(stream) => match app.admit() {
                Ok(seat) => {
                    let wire = Wire::Stomp(Box::new(Talk::raw(&app, seat)));
                    app.hub.pick().take_over(stream, wire, Bytes::new(), Vec::new(), Bytes::new());
                }
                Err(error) => app.refused(&error),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }
}
