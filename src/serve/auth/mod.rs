//! Who asks: JSON Web Tokens, off by default. A request, a stream or a STOMP session has a user's [`Identity`] or none.
//!
//! Invariants: what a token says never chooses how it is verified; nobody is told what was wrong with one; no token,
//! ticket or key reaches a log line; what is not listed as open needs a token.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus::IntCounterVec;

use crate::store::{LikeStore, StoreError};
use crate::telemetry::Metrics;

/// Flags.
mod config;
/// What lets requests through, or does not.
pub(super) mod guard;
/// Keys, pinned to algorithms.
mod keys;
/// The current keys.
mod source;
/// One stream for one ticket.
mod tickets;
/// Signature and claims.
mod verify;

pub use config::{AuthConfig, AuthMode};
pub(super) use guard::{end_session, guard, session, ticket};
pub(super) use tickets::Ticket;

use self::source::Keys;
use self::tickets::Tickets;
use self::verify::{Demands, Refused};

/// A user whose token was verified.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// The token's `sub`: 1 to 128 visible ASCII characters.
    pub user: Arc<str>,
    /// The token's `exp`, leeway included: nothing of this user's lives longer.
    pub expires: SystemTime,
}

/// One pod's way to verify.
pub(super) struct Auth {
    keys: Keys,
    demands: Demands,
    tickets: Tickets,
    cookie: String,
    refresh: Duration,
    outcomes: IntCounterVec,
}

impl Auth {
    /// Reads the keys; `None` when authentication is off.
    ///
    /// # Errors
    /// Flags that do not fit together, or keys that cannot be read: a pod without keys would refuse everybody.
    pub(super) async fn open(
        config: &AuthConfig,
        trusts_user_header: bool,
        metrics: &Metrics,
    ) -> anyhow::Result<Option<Self>> {
        config.check(trusts_user_header)?;
        if config.auth == AuthMode::Off {
            return Ok(None);
        }
        let source = config.key_source()?;
        let tickets = Tickets::new(&config.ticket_secret(&source)?);
        Ok(Some(Self {
            keys: Keys::open(source, metrics.jwks_refreshes_total.clone()).await?,
            demands: Demands::new(config),
            tickets,
            cookie: config.auth_cookie.clone(),
            refresh: config.jwks_refresh,
            outcomes: metrics.auth_total.clone(),
        }))
    }

    /// Reads the keys again by and by; for a task of its own.
    pub(super) async fn keep_fresh(&self) {
        self.keys.keep_fresh(self.refresh).await;
    }

    /// The user of a token, e.g. of a STOMP CONNECT; counted.
    pub(super) async fn user_of(&self, token: Option<&str>) -> Option<Identity> {
        let verified = match token {
            Some(token) => self.demands.verify(&self.keys, token).await,
            None => Err(Refused::Missing),
        };
        self.counted(verified)
    }

    /// Uses a ticket up, as late as its stream allows; false when it was used before.
    pub(super) async fn take(&self, ticket: &Ticket, store: &LikeStore) -> Result<bool, StoreError> {
        let fresh = ticket.take(store).await?;
        if !fresh {
            self.outcomes.with_label_values(&[Refused::Used.label()]).inc();
        }
        Ok(fresh)
    }

    fn counted<T>(&self, verified: Result<T, Refused>) -> Option<T> {
        let label = verified.as_ref().err().map_or("accepted", |refused| refused.label());
        self.outcomes.with_label_values(&[label]).inc();
        verified.ok()
    }
}
