//! Where to connect: a base URL taken apart once, its address looked up once.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, bail, ensure};

use crate::bearer::Bearer;

/// A base URL: `http://host:port/prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The first address its host has.
    pub(super) addr: SocketAddr,
    /// For the `Host` header.
    pub(super) authority: String,
    /// What precedes every path; no slash at its end.
    pub(super) prefix: String,
    /// `Authorization`, for a service that asks for it.
    pub(super) authorization: Option<String>,
}

impl Target {
    /// Takes a URL apart and looks its host up.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(super) fn parse(url: &str) -> anyhow::Result<Self> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => bail!("{url}: {scheme}:// is not supported by the generator; use http://"),
            None => bail!("{url}: not a URL; it looks like http://127.0.0.1:8080"),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        ensure!(!authority.is_empty() && !authority.contains('@'), "{url}: a host is needed, and no user");
        ensure!(!path.contains(['?', '#']), "{url}: a base URL has no query");
        let with_port = if authority.rsplit(']').next().unwrap_or(authority).contains(':') {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        let mut addresses = with_port.to_socket_addrs().with_context(|| format!("{url}: cannot look up its host"))?;
        let addr = addresses.next().with_context(|| format!("{url}: its host has no address"))?;
        let prefix = path.trim_end_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        Ok(Self { addr, authority: authority.into(), prefix, authorization: None })
    }

    /// Takes all of them apart, to be shown this token.
    ///
    /// # Errors
    /// As [`Target::parse`], for the first bad one.
    pub(super) fn parse_all(urls: &[String], bearer: Option<&Bearer>) -> anyhow::Result<Vec<Self>> {
        let authorization = bearer.map(Bearer::authorization);
        urls.iter().map(|url| Ok(Self { authorization: authorization.clone(), ..Self::parse(url)? })).collect()
    }

    /// The line of an HTTP head that shows the token; empty without one.
    pub(super) fn authorization_line(authorization: Option<&str>) -> String {
        authorization.map_or_else(String::new, |value| format!("Authorization: {value}\r\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let target = Target::parse("http://127.0.0.1:8080/board/").unwrap();
        assert_eq!((target.addr.port(), &*target.authority, &*target.prefix), (8080, "127.0.0.1:8080", "/board"));
        let target = Target::parse("http://[::1]").unwrap();
        assert_eq!((target.addr, &*target.prefix), ("[::1]:80".parse().unwrap(), ""));
        for bad in ["127.0.0.1:1", "https://127.0.0.1", "http://", "http:///x", "http://a@b", "http://127.0.0.1/?q"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
