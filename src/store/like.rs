//! A like as it is asked for, and what comes of it.

use std::time::Duration;

use sha1::{Digest, Sha1};
use tokio::time::Instant;

use crate::domain::{LikesChanged, LikesState, MAX_SAFE_INTEGER, PostId, Version};
use crate::telemetry::Trace;
use crate::telemetry::trace::Carrier;

/// Longest user name in bytes.
pub const MAX_USER_BYTES: usize = 128;

/// Longest key, in printable ASCII characters.
const MAX_KEY: usize = 64;

/// Longest scope in bytes (method and path of our own routes).
const MAX_SCOPE: usize = 128;

/// The version kept with the key of a like that was not counted yet: beyond every version there can be.
pub(super) const PENDING: u64 = MAX_SAFE_INTEGER + 1;

/// Add one, or take one back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LikeOp {
    /// +1.
    Like,
    /// −1, never below 0.
    Unlike,
}

/// Who likes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// Nobody we know.
    Anonymous,
    /// A known user, by name (1 to [`MAX_USER_BYTES`] bytes).
    User(String),
}

impl Who {
    /// As stored with a key: no user's name can be mistaken for the anonymous one.
    pub(super) fn column(&self) -> String {
        match self {
            Self::Anonymous => "a".into(),
            Self::User(name) => format!("u:{name}"),
        }
    }
}

/// Why a text is no `Idempotency-Key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an Idempotency-Key has 1 to 64 printable ASCII characters")]
pub struct KeyError;

/// An `Idempotency-Key` with what it is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// Method and path, for example `POST /posts/1/likes`. It names the post, so duplicates meet at the post's row.
    pub scope: String,
    /// The client's value, without the quotes of a structured field.
    pub value: String,
    /// Hash of the request's body: the same key with another body is refused.
    pub payload_hash: [u8; 20],
}

impl IdempotencyKey {
    /// A key. `value` may come bare or as a structured-field string in double quotes.
    ///
    /// # Errors
    /// [`KeyError`] when it is empty, too long, or not printable ASCII.
    pub fn new(scope: &str, value: &str, payload: &[u8]) -> Result<Self, KeyError> {
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let printable = value.bytes().all(|b| matches!(b, b' '..=b'~'));
        if value.is_empty() || value.len() > MAX_KEY || !printable || scope.len() > MAX_SCOPE {
            return Err(KeyError);
        }
        Ok(Self { scope: scope.into(), value: value.into(), payload_hash: Sha1::digest(payload).into() })
    }
}

/// One like or unlike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LikeRequest {
    /// The post.
    pub post: PostId,
    /// What to do.
    pub op: LikeOp,
    /// Who asks.
    pub who: Who,
    /// At most one like per user and post (`PUT` and `DELETE …/likes/me`); needs a known user.
    pub once: bool,
    /// Repeats with the same key count once.
    pub key: Option<IdempotencyKey>,
    /// The trace its event goes on with.
    pub trace: Trace,
}

impl LikeRequest {
    /// +1 by somebody unknown, without a key.
    #[must_use]
    pub const fn anonymous_like(post: PostId) -> Self {
        Self { post, op: LikeOp::Like, who: Who::Anonymous, once: false, key: None, trace: Trace::none() }
    }

    /// For requests that arrive over HTTP: proxies and libraries repeat DELETE by themselves, so an anonymous −1
    /// without a key might count twice. (A STOMP SEND is repeated by nobody.)
    ///
    /// # Errors
    /// [`StoreError::KeyRequired`].
    pub fn check_repeatable(&self) -> Result<(), StoreError> {
        let unsafe_repeat = self.op == LikeOp::Unlike && self.who == Who::Anonymous && self.key.is_none();
        if unsafe_repeat { Err(StoreError::KeyRequired) } else { Ok(()) }
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &self.who {
            Who::Anonymous if self.once => Err(StoreError::UserRequired),
            Who::User(name) if name.is_empty() || name.len() > MAX_USER_BYTES => {
                Err(StoreError::Limit("a user name has 1 to 128 bytes"))
            }
            _ => Ok(()),
        }
    }

    /// The user whose one like this is.
    pub(super) fn user_once(&self) -> Option<&str> {
        match &self.who {
            Who::User(name) if self.once => Some(name),
            _ => None,
        }
    }
}

/// What is to be published after a commit, by exactly one of those whose likes shared it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToPublish {
    /// The event; it covers the versions of the whole commit.
    pub event: LikesChanged,
    /// Its row in the outbox, when the store writes one.
    pub outbox: Option<u64>,
    /// The trace of the like it tells of; of one of them, when several shared the commit.
    pub trace: Trace,
    /// The same as the outbox's row has it, of an event that was found there.
    pub kept: Option<Box<Carrier>>,
}

/// How long the parts of a like took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stages {
    /// From the start of the operation until the post's row was ours, µs (pool wait included).
    pub lock_us: u64,
    /// From then until COMMIT had returned, µs.
    pub commit_us: u64,
}

impl Stages {
    pub(super) fn since(started: Instant) -> u64 {
        u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// What a like did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LikeOutcome {
    /// The post's state after it; of a replay, the state the first answer gave.
    pub state: LikesState,
    /// The version before it.
    pub prev: Version,
    /// False when nothing changed (unlike at 0, second like of a user): nothing is published.
    pub changed: bool,
    /// True when the answer of an earlier request with the same key is given again: nothing is published.
    pub replayed: bool,
    /// True when it is kept and will be counted soon ([`crate::store::WriteStrategy::Event`]): `state` says nothing then.
    pub pending: bool,
    /// What the caller is to publish.
    pub publish: Option<ToPublish>,
    /// Where the time went.
    pub stages: Stages,
    /// Unix time in µs, read right after COMMIT returned.
    pub committed_at: u64,
}

impl LikeOutcome {
    /// The answer of an earlier request, from what was kept with its key: (payload hash, likes, version, prev, changed).
    pub(super) fn kept(
        post_id: PostId,
        key: &IdempotencyKey,
        (payload_hash, likes, version, prev, changed): (Vec<u8>, u64, u64, u64, bool),
    ) -> Result<Self, StoreError> {
        if payload_hash != key.payload_hash {
            return Err(StoreError::KeyMismatch);
        }
        Ok(Self {
            state: LikesState { post_id, likes, version: Version(version) },
            prev: Version(prev),
            changed,
            replayed: true,
            pending: version == PENDING,
            publish: None,
            stages: Stages::default(),
            committed_at: 0,
        })
    }

    /// The same answer for a duplicate.
    pub(super) fn replay(&self) -> Self {
        Self { replayed: true, publish: None, ..self.clone() }
    }
}

/// Why an operation failed. The display is for logs; `serve::error` says it to clients.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such post. Nothing was counted.
    #[error("no such post")]
    UnknownPost,
    /// The first request with this key has not ended within 2 s: ask again later with the same key.
    #[error("a request with this Idempotency-Key is still under way")]
    KeyInFlight,
    /// The key was used with another body. Nothing was counted.
    #[error("this Idempotency-Key was used with another payload")]
    KeyMismatch,
    /// An anonymous unlike over HTTP without a key. Nothing was counted.
    #[error("an anonymous unlike needs an Idempotency-Key")]
    KeyRequired,
    /// One like per user needs a user. Nothing was counted.
    #[error("only a known user has a like of their own")]
    UserRequired,
    /// A bound of the data is exceeded. Nothing was counted.
    #[error("{0}")]
    Limit(&'static str),
    /// More likes are under way than the pod takes. Nothing was counted: try again later.
    #[error("too many likes are under way")]
    Overloaded,
    /// The row stayed locked, or deadlocks went on, until the retries were spent. Nothing was counted: try again later.
    #[error("the post's row stayed locked")]
    Contended,
    /// The database refuses or cannot be reached. Nothing was counted: try again later.
    #[error("the database is unavailable: {cause}")]
    Unavailable {
        /// For the log only.
        cause: String,
    },
    /// The database did not answer in time, before COMMIT was sent. Nothing was counted: try again later.
    #[error("the database did not answer within {0:?}")]
    Timeout(Duration),
    /// The connection broke or fell silent after COMMIT was sent: counted or not, only the database knows. A repeat with
    /// the same key is safe.
    #[error("the outcome of COMMIT is unknown: {cause}")]
    OutcomeUnknown {
        /// For the log only.
        cause: String,
    },
    /// This database cannot do what the options ask for.
    #[error("{0}")]
    Unsupported(String),
    /// The database URL is not one of ours.
    #[error("bad database URL: {0}")]
    BadUrl(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bare_or_quoted_short_and_printable() {
        let key = |value: &str| IdempotencyKey::new("POST /posts/1/likes", value, b"");
        assert_eq!(key("\"abc\""), key("abc"));
        assert!(key(&"k".repeat(64)).is_ok());
        for bad in ["", "\"\"", "a\nb", "ä", "\u{7f}", &"k".repeat(65)] {
            assert_eq!(key(bad), Err(KeyError), "{bad:?}");
        }
        assert_ne!(key("abc").unwrap().payload_hash, IdempotencyKey::new("", "abc", b"x").unwrap().payload_hash);
    }

    #[test]
    fn no_user_is_the_anonymous_one() {
        assert_ne!(Who::User(String::new()).column(), Who::Anonymous.column());
        assert_ne!(Who::User("a".into()).column(), Who::Anonymous.column());
    }
}
