//! The flags of `--auth`, and what fits together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;

/// Shortest secret, bytes: as long as the hash of HS256 (RFC 7518 §3.2).
pub(super) const SECRET: usize = 32;
/// The secret itself may come from here; a command line is seen by everybody on the machine.
const SECRET_VARIABLE: &str = "PUSHLAB_JWT_SECRET";

/// Whether callers must show who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuthMode {
    /// Everybody may do everything
    Off,
    /// Only holders of a valid JSON Web Token, except for the page, its descriptions and the WebSocket handshake
    Jwt,
}

/// Options of authentication.
#[derive(Debug, Clone, clap::Args)]
pub struct AuthConfig {
    /// Who may read posts, open streams and like
    #[arg(long, env = "PUSHLAB_AUTH", value_enum, default_value = "off")]
    pub auth: AuthMode,

    /// File with the secret of HS256 tokens, at least 32 bytes (or the secret itself in PUSHLAB_JWT_SECRET)
    #[arg(long, env = "PUSHLAB_JWT_SECRET_FILE", value_name = "FILE", conflicts_with = "jwks")]
    pub jwt_secret_file: Option<PathBuf>,

    /// Public keys (RS256, ES256, EdDSA) as a JWKS: a file, or an https URL (http on this machine only); read again for an unknown key
    #[arg(long, env = "PUSHLAB_JWKS", value_name = "FILE|URL")]
    pub jwks: Option<String>,

    /// The JWKS is read again this often, so that a key taken out of it stops counting
    #[arg(long, env = "PUSHLAB_JWKS_REFRESH", value_name = "DURATION", value_parser = super::super::config::duration, default_value = "5m")]
    pub jwks_refresh: Duration,

    /// Tokens must name one of these in `aud` (may be repeated, or one list with commas); without it tokens with `aud` are refused
    #[arg(long = "jwt-audience", env = "PUSHLAB_JWT_AUDIENCE", value_name = "NAME", value_delimiter = ',')]
    pub audiences: Vec<String>,

    /// Tokens must name one of these in `iss`
    #[arg(long = "jwt-issuer", env = "PUSHLAB_JWT_ISSUER", value_name = "NAME", value_delimiter = ',')]
    pub issuers: Vec<String>,

    /// How far clocks may be apart: added to `exp` (also for the end of a stream), taken from `nbf`
    #[arg(long, env = "PUSHLAB_JWT_LEEWAY", value_name = "DURATION", value_parser = super::super::config::duration, default_value = "5s")]
    pub jwt_leeway: Duration,

    /// Cookie that may carry the token, for EventSource, which sends no header (POST /session sets it)
    #[arg(long, env = "PUSHLAB_AUTH_COOKIE", value_name = "NAME", default_value = "pushlab_token", value_parser = cookie_name)]
    pub auth_cookie: String,

    /// File with the secret all pods share to sign tickets, at least 32 bytes (default: that of HS256; with --jwks a random one, and then a ticket works only on the pod that made it)
    #[arg(long, env = "PUSHLAB_TICKET_SECRET_FILE", value_name = "FILE")]
    pub ticket_secret_file: Option<PathBuf>,
}

/// Where the keys come from.
pub(super) enum KeySource {
    /// One secret for HS256.
    Secret(Vec<u8>),
    /// A JWKS in a file.
    File(PathBuf),
    /// A JWKS behind a URL.
    Url(reqwest::Url),
}

impl AuthConfig {
    /// Refuses what would look safe and not be.
    pub(super) fn check(&self, trusts_user_header: bool) -> anyhow::Result<()> {
        let given = self.jwt_secret_file.is_some() || self.jwks.is_some();
        match self.auth {
            AuthMode::Off if given => bail!("--jwt-secret-file and --jwks do nothing without --auth jwt"),
            AuthMode::Jwt if trusts_user_header => {
                bail!("--trust-user-header would let everybody name themselves: leave it out with --auth jwt")
            }
            _ => Ok(()),
        }
    }

    /// The source of the keys, its secret read.
    pub(super) fn key_source(&self) -> anyhow::Result<KeySource> {
        if let Some(place) = &self.jwks {
            if !place.contains("://") {
                return Ok(KeySource::File(place.into()));
            }
            let url: reqwest::Url = place.parse().with_context(|| format!("--jwks {place:?} is no URL"))?;
            let here = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
            if url.scheme() != "https" && !(url.scheme() == "http" && here) {
                bail!("--jwks: keys that come over plain http can be exchanged on the way: use https, or a file");
            }
            return Ok(KeySource::Url(url));
        }
        let secret = match &self.jwt_secret_file {
            Some(file) => Some(secret_in(file, "--jwt-secret-file")?),
            None => std::env::var_os(SECRET_VARIABLE).map(std::ffi::OsString::into_encoded_bytes),
        };
        let Some(secret) = secret else {
            bail!("--auth jwt needs keys: --jwks FILE|URL, --jwt-secret-file FILE or {SECRET_VARIABLE}");
        };
        if secret.len() < SECRET {
            bail!("the secret of HS256 needs at least {SECRET} bytes: openssl rand -base64 48");
        }
        Ok(KeySource::Secret(secret))
    }

    /// What tickets are signed with; random when pods share nothing to take it from.
    pub(super) fn ticket_secret(&self, source: &KeySource) -> anyhow::Result<Vec<u8>> {
        if let Some(file) = &self.ticket_secret_file {
            return secret_in(file, "--ticket-secret-file");
        }
        if let KeySource::Secret(secret) = source {
            return Ok(secret.clone());
        }
        tracing::warn!("tickets work only on the pod that made them: give all pods one --ticket-secret-file");
        Ok([rand::random::<u128>().to_be_bytes(), rand::random::<u128>().to_be_bytes()].concat())
    }
}

/// A secret in a file, without the line end that editors add.
fn secret_in(file: &Path, flag: &str) -> anyhow::Result<Vec<u8>> {
    let mut secret = std::fs::read(file).with_context(|| format!("{flag} {}", file.display()))?;
    while matches!(secret.last(), Some(b'\n' | b'\r')) {
        secret.pop();
    }
    if secret.len() < SECRET {
        bail!("{flag} {}: a secret needs at least {SECRET} bytes: openssl rand -base64 48", file.display());
    }
    Ok(secret)
}

/// RFC 6265: a token of RFC 9110.
fn cookie_name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if fits { Ok(text.into()) } else { Err("a cookie's name has letters, digits, _, - and .".into()) }
}
