//! The gate every request passes: who it is, and whether not too often. And how a browser gets what EventSource can carry.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::super::app::App;
use super::super::error::ApiError;
use super::super::rates::Client;
use super::super::{accept, router};
use super::tickets::LIFE;
use super::verify::Refused;
use super::{Auth, Identity};

/// Set by browsers, and by no script: whether a page of the same origin asks.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The answer to `POST /tickets`.
#[derive(serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(in super::super) struct TicketBody {
    /// For `?ticket=`.
    ticket: String,
    /// Seconds within which it must be used.
    expires_in: u64,
}

/// What a request shows.
enum Credential {
    /// `Authorization: Bearer`, or the cookie.
    Token(String),
    /// `?ticket=`.
    Ticket(String),
}

/// Lets a request through, with its [`Identity`] and its [`Client`] in its extensions, or answers 401, 403 or 429.
pub(in super::super) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    // What has no route is a 404 for everybody.
    let open = route.is_none_or(|route| router::is_open(request.method(), &route));
    let address = app.rates.address(&request);
    let client = match &app.auth {
        Some(auth) if !open => {
            let credential = match auth.credential(&request) {
                Ok(credential) => credential,
                Err(refused) => return refused.into_response(),
            };
            // Only what is owned is kept over the wait: a request's body is not shared between threads.
            match auth.admit(credential, request.extensions_mut()).await {
                Some(user) => Client::User(user),
                None => {
                    // Who guesses pays, too.
                    let refused = app.rates.check(&address).err().unwrap_or(ApiError::Unauthorized);
                    return refused.into_response();
                }
            }
        }
        _ => address,
    };
    if let Err(refused) = app.rates.check(&client) {
        return refused.into_response();
    }
    request.extensions_mut().insert(client);
    let mut response = next.run(request).await;
    if app.auth.is_some() && !open {
        make_private(response.headers_mut());
    }
    response
}

/// What only some may read is for no shared cache.
fn make_private(headers: &mut HeaderMap) {
    let policy = headers.get(header::CACHE_CONTROL).and_then(|value| value.to_str().ok());
    let private = policy.and_then(|policy| policy.strip_prefix("public")).map(|rest| format!("private{rest}"));
    if let Some(private) = private.and_then(|private| HeaderValue::try_from(private).ok()) {
        headers.insert(header::CACHE_CONTROL, private);
    }
}

impl Auth {
    /// The one credential that counts: the header's, else (for a stream) the ticket, else the cookie.
    ///
    /// # Errors
    /// [`ApiError::Origin`] for a cookie that a foreign page may have made the browser send.
    fn credential(&self, request: &Request) -> Result<Option<Credential>, ApiError> {
        let headers = request.headers();
        if let Some(value) = headers.get(header::AUTHORIZATION) {
            return Ok(bearer(value).map(|token| Credential::Token(token.to_owned())));
        }
        let stream = request.method() == Method::GET
            && (accept::wants_stream(headers) == Ok(true) || request.uri().path() == "/likes");
        if stream && let Some(ticket) = ticket_in(request.uri().query().unwrap_or_default()) {
            return Ok(Some(Credential::Ticket(ticket.to_owned())));
        }
        let Some(token) = cookie(headers, &self.cookie) else { return Ok(None) };
        // The origin layer has refused foreign origins. A browser that names none says at least that the page is ours;
        // who says neither could be a page anywhere, or an old browser: it has the ticket.
        let same_site = headers.get(FETCH_SITE).is_some_and(|site| site == "same-origin");
        if headers.contains_key(header::ORIGIN) || same_site {
            return Ok(Some(Credential::Token(token.to_owned())));
        }
        Err(ApiError::Origin)
    }

    /// The user, if the credential is right; what it stands for goes into the extensions. Counted.
    async fn admit(&self, credential: Option<Credential>, extensions: &mut Extensions) -> Option<Arc<str>> {
        let identity = match credential {
            None => self.counted(Err(Refused::Missing))?,
            Some(Credential::Token(token)) => self.user_of(Some(&token)).await?,
            Some(Credential::Ticket(ticket)) => {
                let (identity, ticket) = self.counted(self.tickets.read(&ticket))?;
                extensions.insert(ticket);
                identity
            }
        };
        let user = Arc::clone(&identity.user);
        extensions.insert(identity);
        Some(user)
    }
}

/// The token of `Authorization: Bearer …`.
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn ticket_in(query: &str) -> Option<&str> {
    // A ticket needs no escapes: base64url and dots.
    query.split('&').find_map(|pair| pair.strip_prefix("ticket="))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find_map(|(found, value)| (found == name).then_some(value))
}

/// A ticket, for `?ticket=` of one stream.
///
/// EventSource sends no header; a ticket in the URL opens one SSE stream, on any pod, within 30 seconds.
#[utoipa::path(post, path = "/tickets", tag = "authentication",
    responses((status = 201, description = "A ticket, only with `--auth jwt`", body = TicketBody))
)]
pub(in super::super) async fn ticket(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (auth, identity) = of(&app, &request)?;
    let ticket = auth.tickets.issue(identity).ok_or(ApiError::Internal)?;
    let body = TicketBody { ticket, expires_in: LIFE.as_secs() };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response())
}

/// Puts the bearer token of this request into a cookie, which EventSource sends.
#[utoipa::path(post, path = "/session", tag = "authentication",
    responses((status = 204, description = "`Set-Cookie`: HttpOnly, SameSite=Strict; only with `--auth jwt`"))
)]
pub(in super::super) async fn session(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (auth, identity) = of(&app, &request)?;
    let token = request.headers().get(header::AUTHORIZATION).and_then(bearer).ok_or(ApiError::Unauthorized)?;
    let lives = identity.expires.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
    set_cookie(&app, &auth.cookie, token, lives, request.headers())
}

/// Takes the cookie back. Needs no token, as it may have expired.
#[utoipa::path(delete, path = "/session", tag = "authentication",
    responses((status = 204, description = "`Set-Cookie` that ends it; only with `--auth jwt`"))
)]
pub(in super::super) async fn end_session(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let auth = app.auth.as_ref().ok_or(ApiError::NoRoute)?;
    set_cookie(&app, &auth.cookie, "", 0, &headers)
}

fn of<'a>(app: &'a App, request: &'a Request) -> Result<(&'a Auth, &'a Identity), ApiError> {
    let auth = app.auth.as_ref().ok_or(ApiError::NoRoute)?;
    Ok((auth, request.extensions().get::<Identity>().ok_or(ApiError::Unauthorized)?))
}

/// No script reads it, no other site sends it, and over TLS it stays there.
fn set_cookie(app: &App, name: &str, value: &str, seconds: u64, headers: &HeaderMap) -> Result<Response, ApiError> {
    let tls = app.config.tls.tls_cert.is_some() || headers.get(FORWARDED_PROTO).is_some_and(|proto| proto == "https");
    let secure = if tls { "; Secure" } else { "" };
    let cookie = format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}");
    let cookie = HeaderValue::try_from(cookie).map_err(|_| ApiError::Internal)?;
    let headers = [(header::SET_COOKIE, cookie), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((StatusCode::NO_CONTENT, headers).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_where_they_may_be() {
        let value = |text| HeaderValue::from_static(text);
        assert_eq!(bearer(&value("Bearer a.b.c")), Some("a.b.c"));
        assert_eq!(bearer(&value("bearer a.b.c")), Some("a.b.c"));
        assert_eq!((bearer(&value("Basic a.b.c")), bearer(&value("a.b.c"))), (None, None));
        assert_eq!(ticket_in("post=1&ticket=t.i.k"), Some("t.i.k"));
        assert_eq!(ticket_in("tickets=no"), None);
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, value("xtoken=no; token_x=no"));
        headers.append(header::COOKIE, value("a=b; token=yes=; token=second"));
        assert_eq!(cookie(&headers, "token"), Some("yes="));
        assert_eq!(cookie(&headers, "none"), None);
    }

    #[test]
    fn what_needs_a_token_is_for_no_shared_cache() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=60"));
        make_private(&mut headers);
        assert_eq!(headers[header::CACHE_CONTROL], "private, max-age=60");
    }
}
