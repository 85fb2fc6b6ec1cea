//! The words of the field: posts, versions, epochs, the event, and how a topic is named on each wire. Leaf, no IO.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Largest integer that JSON readers hold exactly (2^53 − 1, RFC 8259 §6); ids and versions stay within it.
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Why a text is not one of the domain's values. The text itself is never repeated: it may hold anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A post id is a decimal number from 1 to 2^53 − 1 without sign or leading zeros.
    #[error("a post id is a decimal number from 1 to 9007199254740991")]
    PostId,
    /// An epoch is eight lower-case hexadecimal digits.
    #[error("an epoch is eight lower-case hexadecimal digits")]
    Epoch,
    /// No topic, subject or destination of ours has this name.
    #[error("no such destination")]
    Destination,
}

/// Identity of a post: 1 ..= 2^53 − 1. Only validated numbers reach a subject, so no wildcard can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PostId(u64);

impl PostId {
    /// A post id, if `id` is in range.
    #[must_use]
    pub const fn new(id: u64) -> Option<Self> {
        if id >= 1 && id <= MAX_SAFE_INTEGER { Some(Self(id)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The NATS subject that carries this post's changes: `likes.{id}`.
    #[must_use]
    pub fn subject(self) -> String {
        format!("likes.{}", self.0)
    }

    /// The inverse of [`PostId::subject`].
    ///
    /// # Errors
    /// [`ParseError`] when the subject is not one of ours.
    pub fn from_subject(subject: &str) -> Result<Self, ParseError> {
        subject.strip_prefix("likes.").ok_or(ParseError::Destination)?.parse()
    }

    /// The STOMP destination to subscribe to: `/topic/posts.{id}.likes`.
    #[must_use]
    pub fn topic(self) -> String {
        format!("/topic/posts.{}.likes", self.0)
    }

    /// The inverse of [`PostId::topic`].
    ///
    /// # Errors
    /// [`ParseError::Destination`] when the name has another shape, [`ParseError::PostId`] when its id is bad.
    pub fn from_topic(destination: &str) -> Result<Self, ParseError> {
        let id = destination.strip_prefix("/topic/posts.").and_then(|rest| rest.strip_suffix(".likes"));
        id.ok_or(ParseError::Destination)?.parse()
    }
}

impl FromStr for PostId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let canonical = !text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
        let id = canonical.then(|| text.parse().ok()).flatten();
        id.and_then(Self::new).ok_or(ParseError::PostId)
    }
}

impl fmt::Display for PostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Gapless number of a post's state: effective likes + effective unlikes. Zero is the state of a new post.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A random value kept in the database and changed after a restore: versions compare only within one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for Epoch {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let well_formed = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let value = well_formed.then(|| u32::from_str_radix(text, 16).ok()).flatten();
        value.map(Self).ok_or(ParseError::Epoch)
    }
}

/// The event: a post's state after a commit. It covers the versions (prev, version]. State, not delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LikesChanged {
    /// The post.
    pub post_id: PostId,
    /// Its count, never negative.
    pub likes: u64,
    /// The newest version this event covers.
    pub version: Version,
    /// The newest version it does not cover; `version − 1` unless several likes shared a commit.
    pub prev: Version,
    /// Unix time in µs, read by the liking pod right after COMMIT returned.
    pub committed_at: u64,
}

/// A post's state read from the database: a snapshot at the start of a stream, after a resume, or a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LikesState {
    /// The post.
    pub post_id: PostId,
    /// Its count, never negative.
    pub likes: u64,
    /// Its version.
    pub version: Version,
}

/// What is pushed to a viewer. Both sorts carry the whole state; only the first says which versions it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// A change, as published after its commit.
    Changed(LikesChanged),
    /// A state read from the database; in JSON it is marked `"snapshot":true`.
    Snapshot(LikesState),
}

impl Update {
    /// The post.
    #[must_use]
    pub const fn post_id(&self) -> PostId {
        match self {
            Self::Changed(event) => event.post_id,
            Self::Snapshot(state) => state.post_id,
        }
    }

    /// The state's version.
    #[must_use]
    pub const fn version(&self) -> Version {
        match self {
            Self::Changed(event) => event.version,
            Self::Snapshot(state) => state.version,
        }
    }

    /// The state's count.
    #[must_use]
    pub const fn likes(&self) -> u64 {
        match self {
            Self::Changed(event) => event.likes,
            Self::Snapshot(state) => state.likes,
        }
    }

    /// The JSON body, the same on every transport.
    #[must_use]
    pub fn to_json(&self) -> String {
        match self {
            Self::Changed(e) => format!(
                r#"{{"postId":{},"likes":{},"version":{},"prev":{},"committedAt":{}}}"#,
                e.post_id, e.likes, e.version, e.prev, e.committed_at
            ),
            Self::Snapshot(s) => {
                format!(r#"{{"postId":{},"likes":{},"version":{},"snapshot":true}}"#, s.post_id, s.likes, s.version)
            }
        }
    }

    /// Reads a JSON body.
    ///
    /// # Errors
    /// When it is not JSON, or neither a change nor a marked snapshot.
    pub fn from_json(body: &[u8]) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Body {
            post_id: PostId,
            likes: u64,
            version: Version,
            prev: Option<Version>,
            committed_at: Option<u64>,
            #[serde(default)]
            snapshot: bool,
        }
        let b: Body = serde_json::from_slice(body)?;
        match (b.snapshot, b.prev, b.committed_at) {
            (true, ..) => Ok(Self::Snapshot(LikesState { post_id: b.post_id, likes: b.likes, version: b.version })),
            (false, Some(prev), Some(committed_at)) => Ok(Self::Changed(LikesChanged {
                post_id: b.post_id,
                likes: b.likes,
                version: b.version,
                prev,
                committed_at,
            })),
            _ => Err(serde::de::Error::custom("neither a change (prev, committedAt) nor a snapshot")),
        }
    }
}

/// How updates reach a viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Server-Sent Events over HTTP/1.1 chunked.
    Sse,
    /// STOMP 1.2 over WebSocket.
    Stomp,
}

impl Transport {
    /// Both, in the order used for metric slots.
    pub const ALL: [Self; 2] = [Self::Sse, Self::Stomp];

    /// The metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sse => "sse",
            Self::Stomp => "stomp",
        }
    }
}

/// The three arms of every comparison: delivery transport + write channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// Viewers over SSE, likes by HTTP POST.
    SsePost,
    /// Viewers over STOMP, likes by HTTP POST.
    StompPost,
    /// Viewers over STOMP, likes by STOMP SEND on the liker's own WebSocket.
    StompSend,
}

impl Arm {
    /// All three, in report order.
    pub const ALL: [Self; 3] = [Self::SsePost, Self::StompPost, Self::StompSend];

    /// How this arm's viewers are served.
    #[must_use]
    pub const fn transport(self) -> Transport {
        match self {
            Self::SsePost => Transport::Sse,
            Self::StompPost | Self::StompSend => Transport::Stomp,
        }
    }

    /// The name used in files and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SsePost => "sse-post",
            Self::StompPost => "stomp-post",
            Self::StompSend => "stomp-send",
        }
    }

    /// The name used in prose and charts.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::SsePost => "SSE+POST",
            Self::StompPost => "STOMP+POST",
            Self::StompSend => "STOMP+SEND",
        }
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Unix time in µs (`CLOCK_REALTIME`, the clock of the kernel's receive stamps).
#[must_use]
pub fn unix_micros() -> u64 {
    let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_become_a_wildcard_or_an_empty_token_are_refused() {
        for bad in ["", "0", "01", "+1", "-1", "1 ", " 1", "*", ">", "1.2", "1\n", "9007199254740992", "１"] {
            assert_eq!(bad.parse::<PostId>(), Err(ParseError::PostId), "{bad:?}");
        }
        assert_eq!("9007199254740991".parse::<PostId>().map(PostId::get), Ok(MAX_SAFE_INTEGER));
    }

    #[test]
    fn names_round_trip() {
        let post = PostId::new(42).unwrap();
        assert_eq!(PostId::from_subject(&post.subject()), Ok(post));
        assert_eq!(PostId::from_topic(&post.topic()), Ok(post));
        assert_eq!(PostId::from_topic("/topic/posts.*.likes"), Err(ParseError::PostId));
        assert_eq!(PostId::from_topic("/queue/x"), Err(ParseError::Destination));
        assert_eq!("0000abcd".parse::<Epoch>().map(|e| e.to_string()), Ok("0000abcd".into()));
    }

    #[test]
    fn an_update_survives_its_json() {
        let post_id = PostId::new(7).unwrap();
        let changed = LikesChanged { post_id, likes: 3, version: Version(9), prev: Version(7), committed_at: 12 };
        let state = LikesState { post_id, likes: 3, version: Version(9) };
        for update in [Update::Changed(changed), Update::Snapshot(state)] {
            assert_eq!(Update::from_json(update.to_json().as_bytes()).unwrap(), update);
        }
        assert_eq!(Update::Changed(changed).to_json(), serde_json::to_string(&changed).unwrap());
        assert!(Update::from_json(br#"{"postId":7,"likes":3,"version":9}"#).is_err());
    }
}
