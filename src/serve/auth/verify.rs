//! A token's way to a user: header, key, signature, claims; what fails is counted, and told to nobody.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Validation, decode, decode_header};

use super::Identity;
use super::config::AuthConfig;
use super::keys::Found;
use super::source::Keys;
use crate::store::MAX_USER_BYTES;

/// Longest token, bytes: what fits into one STOMP header line.
pub(super) const TOKEN: usize = 4 * 1024;

/// Why a token does not count, for the metric only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is none.
    Missing,
    /// It is no token, or too long.
    Malformed,
    /// No key verifies it: another algorithm than its key's (`none` included), or no such key.
    Key,
    /// The signature is not the key's.
    Signature,
    /// `exp` has passed, or `nbf` has not come.
    Time,
    /// `aud`, `iss` or `sub` is missing or wrong.
    Claims,
    /// A ticket that was used before.
    Used,
}

impl Refused {
    /// The metric's label.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Time => "time",
            Self::Claims => "claims",
            Self::Used => "used",
        }
    }
}

/// What the operator demands of every token.
pub(super) struct Demands {
    audiences: Option<HashSet<String>>,
    issuers: Option<HashSet<String>>,
    leeway: Duration,
}

#[derive(serde::Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
}

impl Demands {
    pub(super) fn new(config: &AuthConfig) -> Self {
        let some = |names: &[String]| (!names.is_empty()).then(|| names.iter().cloned().collect());
        Self { audiences: some(&config.audiences), issuers: some(&config.issuers), leeway: config.jwt_leeway }
    }

    /// The user a token names, if everything about it is right.
    pub(super) async fn verify(&self, keys: &Keys, token: &str) -> Result<Identity, Refused> {
        if token.len() > TOKEN {
            return Err(Refused::Malformed);
        }
        // An unknown algorithm, "none" above all, ends here: the header is not even read then.
        let header = decode_header(token).map_err(|error| refused(&error))?;
        let mut set = keys.now();
        if matches!(set.find(&header), Found::Unknown) {
            set = keys.newer(&set).await.ok_or(Refused::Key)?;
        }
        let Found::Key(key) = set.find(&header) else { return Err(Refused::Key) };
        let claims = decode::<Claims>(token, &key.key, &self.validation(key.algorithm));
        let Claims { sub, exp } = claims.map_err(|error| refused(&error))?.claims;
        // As users are stored: compared byte by byte, and written into logs by nobody.
        let fits = (1..=MAX_USER_BYTES).contains(&sub.len()) && sub.bytes().all(|b| b.is_ascii_graphic());
        if !fits {
            return Err(Refused::Claims);
        }
        // A date beyond any clock is no date.
        let expires = Duration::try_from_secs_f64(exp).ok().and_then(|exp| exp.checked_add(self.leeway));
        let expires = expires.and_then(|since| UNIX_EPOCH.checked_add(since)).ok_or(Refused::Claims)?;
        Ok(Identity { user: Arc::from(sub), expires })
    }

    fn validation(&self, algorithm: jsonwebtoken::Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.leeway.as_secs();
        validation.validate_nbf = true;
        validation.aud.clone_from(&self.audiences);
        validation.iss.clone_from(&self.issuers);
        let mut required = vec!["exp", "sub"];
        required.extend(self.audiences.as_ref().map(|_| "aud"));
        required.extend(self.issuers.as_ref().map(|_| "iss"));
        validation.set_required_spec_claims(&required);
        validation
    }
}

pub(super) fn refused(error: &jsonwebtoken::errors::Error) -> Refused {
    match error.kind() {
        ErrorKind::InvalidSignature => Refused::Signature,
        ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => Refused::Time,
        ErrorKind::MissingRequiredClaim(_)
        | ErrorKind::InvalidClaimFormat(_)
        | ErrorKind::InvalidIssuer
        | ErrorKind::InvalidAudience
        | ErrorKind::InvalidSubject => Refused::Claims,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => Refused::Key,
        _ => Refused::Malformed,
    }
}
