//! The token a client shows to a service with authentication: from a flag, a variable or a file, and never printed.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Options of a client's token.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct BearerArgs {
    /// Token (JWT) for a service with --auth jwt, over HTTP and in STOMP's CONNECT. A command line is seen by everybody on the machine: better the variable or the file
    #[arg(long, env = "PUSHLAB_TOKEN", hide_env_values = true, value_name = "JWT", value_parser = bearer, conflicts_with = "token_file")]
    pub token: Option<Bearer>,

    /// File with the token, for example of a projected service account or a secret
    #[arg(long, env = "PUSHLAB_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// A token in the letters of RFC 6750 (so that it breaks out of no header), which no message and no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer(String);

impl Bearer {
    /// The one in this file.
    ///
    /// # Errors
    /// A file that cannot be read, or has something else in it.
    pub fn from_file(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file)?;
        bearer(text.trim()).map_err(anyhow::Error::msg)
    }

    /// For the header `Authorization`, over HTTP and in STOMP's CONNECT.
    #[must_use]
    pub fn authorization(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// The same as a header's value, which no log of a client shows.
    ///
    /// # Panics
    /// Never: a token fits into a header.
    #[must_use]
    pub fn header(&self) -> http::HeaderValue {
        let mut value = http::HeaderValue::try_from(self.authorization()).expect("letters of RFC 6750");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bearer(…)")
    }
}

impl BearerArgs {
    /// The token, if one was given.
    ///
    /// # Errors
    /// A file that cannot be read, or has something else in it.
    pub fn read(&self) -> anyhow::Result<Option<Bearer>> {
        let Some(file) = &self.token_file else { return Ok(self.token.clone()) };
        Bearer::from_file(file).map(Some).with_context(|| format!("--token-file {}", file.display()))
    }
}

/// An HTTP client's builder; with a token, every request shows it. (A redirect to another host goes without.)
pub fn client(bearer: Option<&Bearer>) -> reqwest::ClientBuilder {
    let mut headers = http::HeaderMap::new();
    if let Some(bearer) = bearer {
        headers.insert(http::header::AUTHORIZATION, bearer.header());
    }
    reqwest::Client::builder().default_headers(headers)
}

/// What is no token is not repeated: it may be a part of one.
fn bearer(text: &str) -> Result<Bearer, String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if !text.is_empty() && text.bytes().all(fits) {
        Ok(Bearer(text.to_owned()))
    } else {
        Err("this is no token: it has the letters and digits of a JWT, its dots, and no \"Bearer\" before it".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_and_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let args = BearerArgs { token: None, token_file: Some(file.path().into()) };
        std::fs::write(file.path(), "ey.J-_.x\n").unwrap();
        let read = args.read().unwrap().unwrap();
        assert_eq!(read.authorization(), "Bearer ey.J-_.x");
        assert!(!format!("{:?}", BearerArgs { token: Some(read), token_file: None }).contains("ey"));
        for bad in ["", "Bearer ey.J.x", "a\r\nX: y", "a\0"] {
            std::fs::write(file.path(), bad).unwrap();
            let error = format!("{:#}", args.read().unwrap_err());
            assert!(error.contains("--token-file") && error.contains("no token"), "{error}");
        }
        assert!(BearerArgs::default().read().unwrap().is_none());
    }
}
