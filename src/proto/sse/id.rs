//! Event ids: the whole resume position in at most 128 printable ASCII bytes.

use crate::domain::{Epoch, PostId, Version};

/// Longest id that is sent, in bytes: a longer one makes browsers send a CORS preflight on reconnect.
pub const MAX_ID: usize = 128;

/// The position a client holds, from `Last-Event-ID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Of a stream with one post.
    One {
        /// The epoch its versions belong to.
        epoch: Epoch,
        /// The newest version it has.
        version: Version,
    },
    /// Of a stream with several posts.
    Many {
        /// The epoch its versions belong to.
        epoch: Epoch,
        /// The newest version it has of each post.
        positions: Vec<(PostId, Version)>,
    },
}

impl Resume {
    /// The newest version of `post` the client has, and its epoch; `None` when it has none.
    #[must_use]
    pub fn held(&self, post: PostId) -> Option<(Epoch, Version)> {
        match self {
            Self::One { epoch, version } => Some((*epoch, *version)),
            Self::Many { epoch, positions } => {
                positions.iter().find(|(p, _)| *p == post).map(|(_, version)| (*epoch, *version))
            }
        }
    }
}

/// `<epoch>.<version>`, for a stream with one post.
#[must_use]
pub fn single_id(epoch: Epoch, version: Version) -> String {
    format!("{epoch}.{version}")
}

/// `<epoch>;<post>.<version>,…`, for a stream with several posts; `None` when it would exceed [`MAX_ID`] bytes (a
/// reconnect then starts from snapshots) or when there is no position.
#[must_use]
pub fn multi_id(epoch: Epoch, positions: &[(PostId, Version)]) -> Option<String> {
    use std::fmt::Write as _;
    let mut id = epoch.to_string();
    for (i, (post, version)) in positions.iter().enumerate() {
        let _ = write!(id, "{}{post}.{version}", if i == 0 { ';' } else { ',' });
        if id.len() > MAX_ID {
            return None;
        }
    }
    (!positions.is_empty()).then_some(id)
}

/// Reads a `Last-Event-ID`. Anything malformed is `None`: the client then gets a snapshot, never an error.
#[must_use]
pub fn parse_last_event_id(text: &str) -> Option<Resume> {
    if text.len() > MAX_ID {
        return None;
    }
    if let Some((epoch, list)) = text.split_once(';') {
        let epoch = epoch.parse().ok()?;
        let positions = list.split(',').map(|item| {
            let (post, version) = item.split_once('.')?;
            Some((post.parse().ok()?, parse_version(version)?))
        });
        return Some(Resume::Many { epoch, positions: positions.collect::<Option<_>>()? });
    }
    let (epoch, version) = text.split_once('.')?;
    Some(Resume::One { epoch: epoch.parse().ok()?, version: parse_version(version)? })
}

/// A version in its canonical decimal form.
pub(crate) fn parse_version(text: &str) -> Option<Version> {
    let canonical = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    canonical.then(|| text.parse().ok()).flatten().map(Version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(id: u64) -> PostId {
        PostId::new(id).unwrap()
    }

    #[test]
    fn ids_round_trip() {
        let epoch = Epoch(0xabc);
        let one = Resume::One { epoch, version: Version(7) };
        assert_eq!(parse_last_event_id(&single_id(epoch, Version(7))), Some(one.clone()));
        assert_eq!(one.held(post(3)), Some((epoch, Version(7))));
        let positions = vec![(post(1), Version(0)), (post(20), Version(9))];
        let id = multi_id(epoch, &positions).unwrap();
        assert_eq!(id, "00000abc;1.0,20.9");
        let many = parse_last_event_id(&id).unwrap();
        assert_eq!(many, Resume::Many { epoch, positions });
        assert_eq!(many.held(post(20)), Some((epoch, Version(9))));
        assert_eq!(many.held(post(2)), None);
    }

    #[test]
    fn an_id_that_would_be_too_long_is_none() {
        let positions: Vec<_> = (1..200).map(|i| (post(i), Version(i))).collect();
        assert_eq!(multi_id(Epoch(1), &positions), None);
        let fits: Vec<_> = positions.iter().copied().take(20).collect();
        assert!(multi_id(Epoch(1), &fits).unwrap().len() <= MAX_ID);
        assert_eq!(multi_id(Epoch(1), &[]), None);
    }

    #[test]
    fn malformed_ids_are_none() {
        let long = format!("00000001.{}", "1".repeat(200));
        for bad in [
            "",
            ".",
            "1.2",
            "0000000g.1",
            "00000001.",
            "00000001.-1",
            "00000001.01",
            "00000001;",
            "00000001;1",
            "00000001;1.2,",
            "00000001;0.2",
            "00000001.1.2",
            "00000001.é",
            "00000001;1.99999999999999999999999",
            &long,
        ] {
            assert_eq!(parse_last_event_id(bad), None, "{bad:?}");
        }
    }
}
