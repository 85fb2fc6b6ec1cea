//! STOMP 1.0, 1.1 and 1.2: frames (bytes), the server's session (meaning), and what a client needs.

/// What the generator and the probe need of a client.
pub mod client;
/// Frames and their bytes.
pub mod frame;
/// The server's side of a connection: bytes in, actions out.
pub mod session;

use std::fmt;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 1.0: headers are not escaped, a SUBSCRIBE needs no id.
    V10,
    /// 1.1: `\n`, `\c` and `\\` are escaped.
    V11,
    /// 1.2: `\r` as well; lines may end with CR LF.
    V12,
}

impl Version {
    /// All, newest first: the order of preference.
    pub const ALL: [Self; 3] = [Self::V12, Self::V11, Self::V10];

    /// As in `accept-version` and `version`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::V10 => "1.0",
            Self::V11 => "1.1",
            Self::V12 => "1.2",
        }
    }

    /// The WebSocket subprotocol.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::V10 => "v10.stomp",
            Self::V11 => "v11.stomp",
            Self::V12 => "v12.stomp",
        }
    }

    /// The newest version, up to `newest`, that an `accept-version` header lists; a missing header means 1.0 only.
    #[must_use]
    pub fn negotiate(accept_version: Option<&str>, newest: Self) -> Option<Self> {
        let offered = accept_version.unwrap_or("1.0");
        newest.and_older().find(|v| offered.split(',').any(|o| o.trim() == v.label()))
    }

    /// This one and all before it, newest first.
    pub(crate) fn and_older(self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |v| *v <= self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Where the outcome of a SEND is told: the session's own queue.
pub const REPLIES: &str = "/user/queue/replies";

/// Prefix of the destinations that likes are sent to: `/app/posts.{id}.like`, `/app/posts.{id}.unlike`.
pub const APP_PREFIX: &str = "/app/posts.";
