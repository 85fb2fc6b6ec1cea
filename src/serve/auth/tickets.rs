//! Tickets: tokens of our own for EventSource, which can send no header. Short-lived, signed, and good for one stream.
//!
//! Signed, because any pod must take a ticket that another one made. Used once across pods, because the id of a used ticket
//! is a row in the database that every pod shares; pods without a common database do not exist. A URL is logged by proxies
//! and kept by browsers: 30 seconds later, or once used, a ticket in a log opens nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

use super::Identity;
use super::verify::{Refused, TOKEN, refused};
use crate::store::{LikeStore, StoreError};

/// How long a ticket lives.
pub(super) const LIFE: Duration = Duration::from_secs(30);
/// Pods' clocks may be apart by this.
const SKEW: Duration = Duration::from_secs(5);

/// A ticket is no token and a token no ticket: even with the same secret they are signed with different keys.
const DOMAIN: &[u8] = b"pushlab ticket 1:";

/// Makes and reads tickets.
pub(super) struct Tickets {
    sign: EncodingKey,
    verify: DecodingKey,
    validation: Validation,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    /// When the ticket ends, Unix seconds.
    exp: u64,
    /// When what it stands for ends, Unix ms.
    until: u64,
    /// 128 random bits in hex.
    jti: String,
}

/// A ticket whose signature and time are right; whether it was used before, the database knows.
#[derive(Debug, Clone)]
pub(in super::super) struct Ticket {
    id: u128,
    expires: u64,
}

impl Tickets {
    pub(super) fn new(secret: &[u8]) -> Self {
        let key = [DOMAIN, secret].concat();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = SKEW.as_secs();
        validation.set_required_spec_claims(&["exp", "sub"]);
        Self { sign: EncodingKey::from_secret(&key), verify: DecodingKey::from_secret(&key), validation }
    }

    /// A ticket for one stream of this user's; `None` when it could not be signed, which would be a defect.
    pub(super) fn issue(&self, identity: &Identity) -> Option<String> {
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let claims = Claims {
            sub: identity.user.to_string(),
            exp: since(SystemTime::now() + LIFE).as_secs(),
            until: u64::try_from(since(identity.expires).as_millis()).ok()?,
            jti: format!("{:032x}", rand::random::<u128>()),
        };
        let header = Header { typ: Some("ticket".into()), ..Header::new(Algorithm::HS256) };
        encode(&header, &claims, &self.sign).ok()
    }

    /// Whose it is; it still has to be [`Ticket::take`]n.
    pub(super) fn read(&self, ticket: &str) -> Result<(Identity, Ticket), Refused> {
        if ticket.len() > TOKEN {
            return Err(Refused::Malformed);
        }
        let claims = decode::<Claims>(ticket, &self.verify, &self.validation).map_err(|error| refused(&error))?.claims;
        let id = u128::from_str_radix(&claims.jti, 16).map_err(|_| Refused::Malformed)?;
        let expires = UNIX_EPOCH.checked_add(Duration::from_millis(claims.until)).ok_or(Refused::Malformed)?;
        if expires <= SystemTime::now() {
            return Err(Refused::Time);
        }
        Ok((Identity { user: Arc::from(claims.sub), expires }, Ticket { id, expires: claims.exp }))
    }
}

impl Ticket {
    /// Uses it up; false when somebody, on whichever pod, did so before.
    pub(super) async fn take(&self, store: &LikeStore) -> Result<bool, StoreError> {
        store.use_ticket(self.id, self.expires + SKEW.as_secs()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ann(lives: Duration) -> Identity {
        Identity { user: "ann".into(), expires: SystemTime::now() + lives }
    }

    #[test]
    fn a_ticket_names_its_user_and_is_no_token() {
        let secret = [9; 32];
        let tickets = Tickets::new(&secret);
        let ticket = tickets.issue(&ann(Duration::from_secs(60))).unwrap();
        let (identity, _) = tickets.read(&ticket).unwrap();
        assert_eq!(&*identity.user, "ann");
        let left = identity.expires.duration_since(SystemTime::now()).unwrap();
        assert!(left > Duration::from_secs(50), "the stream lives as long as the token, not as the ticket: {left:?}");
        // As a token: same secret, same algorithm, another key.
        let token = decode::<Claims>(&ticket, &DecodingKey::from_secret(&secret), &Validation::new(Algorithm::HS256));
        assert_eq!(token.err().map(|error| refused(&error)), Some(Refused::Signature));
    }

    #[test]
    fn what_is_forged_or_stands_for_an_ended_token_is_refused() {
        let (ours, theirs) = (Tickets::new(&[9; 32]), Tickets::new(&[8; 32]));
        let forged = theirs.issue(&ann(Duration::from_secs(60))).unwrap();
        assert_eq!(ours.read(&forged).err(), Some(Refused::Signature));
        let ended = Identity { user: "ann".into(), expires: SystemTime::now() - Duration::from_secs(1) };
        assert_eq!(ours.read(&ours.issue(&ended).unwrap()).err(), Some(Refused::Time));
        for bad in ["", "a.b.c", "....", &"x".repeat(TOKEN + 1)] {
            assert_eq!(ours.read(bad).err(), Some(Refused::Malformed), "{}", bad.len());
        }
    }
}
