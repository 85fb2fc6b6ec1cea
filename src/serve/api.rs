//! Posts and likes over HTTP: JSON, validators, idempotency.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::app::App;
use super::auth::Identity;
use super::error::ApiError;
use super::{Role, accept, limits, sse};
use crate::domain::{LikesState, PostId, Version};
use crate::store::{IdempotencyKey, LikeOp, LikeOutcome, LikeRequest, MAX_USER_BYTES, Post, Who};
use crate::telemetry::Trace;

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const KEY: &str = "idempotency-key";

/// The answer to a like, over HTTP and (in a reply) over STOMP.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Liked {
    /// The post.
    #[schema(value_type = u64, minimum = 1, maximum = 9007199254740991_u64)]
    post_id: PostId,
    /// Its count after this request.
    likes: u64,
    /// Its version after this request; no two changes have the same.
    #[schema(value_type = u64)]
    version: Version,
    /// Whether this request changed anything: not at zero, not a user's second like.
    changed: bool,
}

/// The answer to a like that is kept and not counted yet (`--write event`): neither count nor version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pending {
    /// The post.
    #[schema(value_type = u64, minimum = 1, maximum = 9007199254740991_u64)]
    post_id: PostId,
    /// True: it is committed and will be counted soon.
    pending: bool,
}

/// Either of them.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Answer {
    Counted(Liked),
    Pending(Pending),
}

impl From<&LikeOutcome> for Answer {
    fn from(outcome: &LikeOutcome) -> Self {
        let LikesState { post_id, likes, version } = outcome.state;
        if outcome.pending {
            Self::Pending(Pending { post_id, pending: true })
        } else {
            Self::Counted(Liked { post_id, likes, version, changed: outcome.changed })
        }
    }
}

impl Answer {
    /// 200, or 202 for one that is not counted yet.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Counted(_) => StatusCode::OK,
            Self::Pending(_) => StatusCode::ACCEPTED,
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A post, without its count.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Post)]
struct PostBody {
    /// Its number.
    #[schema(value_type = u64, minimum = 1, maximum = 9007199254740991_u64)]
    id: PostId,
    /// Its title.
    #[schema(max_length = 200)]
    title: String,
    /// Unix time in µs.
    created_at: u64,
}

/// A post to be made.
#[derive(Debug, Deserialize, ToSchema)]
struct NewPost {
    /// At most 200 characters.
    #[schema(max_length = 200)]
    title: String,
}

/// A post's count.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Likes {
    /// The post.
    #[schema(value_type = u64, minimum = 1, maximum = 9007199254740991_u64)]
    post_id: PostId,
    /// How many.
    likes: u64,
    /// Effective likes + effective unlikes.
    #[schema(value_type = u64)]
    version: Version,
    /// Unix time in µs of the last change.
    changed_at: u64,
}

impl From<Post> for PostBody {
    fn from(post: Post) -> Self {
        Self { id: post.id, title: post.title, created_at: post.created_at }
    }
}

/// Makes a post.
#[utoipa::path(post, path = "/posts", tag = "posts", request_body = NewPost, responses(
    (status = 201, description = "Made", body = PostBody, headers(("Location" = String, description = "Where it is"))),
))]
pub(super) async fn create_post(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    need(&app, Role::Api)?;
    let (parts, body) = request.into_parts();
    let body = limits::body(body).await?;
    json_only(&parts.headers, true)?;
    let new: NewPost = serde_json::from_slice(&body)
        .map_err(|error| ApiError::BadRequest(format!("the body is {{\"title\": \"…\"}}: {error}")))?;
    let post = app.store.create_post(&new.title).await.map_err(|error| app.told(&error, "a post failed"))?;
    let location = HeaderValue::from_str(&format!("/posts/{}", post.id)).map_err(|_| ApiError::Internal)?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(PostBody::from(post))).into_response())
}

/// A post without its count, which is what makes it cacheable.
#[utoipa::path(get, path = "/posts/{id}", tag = "posts",
    params(
        ("id" = u64, Path, description = "Number of a post", minimum = 1, maximum = 9007199254740991_u64),
        ("If-None-Match" = Option<String>, Header, description = "An ETag the caller has"),
    ),
    responses(
        (status = 200, description = "The post", body = PostBody, headers(("ETag" = String), ("Cache-Control" = String))),
        (status = 304, description = "As the caller has it", headers(("ETag" = String))),
    )
)]
pub(super) async fn post(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    need(&app, Role::Api)?;
    let post = app.store.post(id.parse()?).await.map_err(|error| app.told(&error, "a read failed"))?;
    let tag = format!("\"{}.{}\"", app.watch.epoch(), post.created_at);
    Ok(conditional(&headers, &tag, "public, max-age=60", Json(PostBody::from(post))))
}

/// A post's count; with `Accept: text/event-stream` the stream of its changes.
///
/// The stream begins with a snapshot; its events are described in `/asyncapi.json`.
#[utoipa::path(get, path = "/posts/{id}/likes", tag = "likes",
    params(
        ("id" = u64, Path, description = "Number of a post", minimum = 1, maximum = 9007199254740991_u64),
        ("If-None-Match" = Option<String>, Header, description = "An ETag the caller has"),
        ("Last-Event-ID" = Option<String>, Header, description = "Streams: the last id the client has; a malformed one counts as none"),
        ("lastEventId" = Option<String>, Query, description = "Streams: the same, for a first connection"),
        ("heartbeat" = Option<String>, Query, description = "Streams: `event` asks for heart-beats as named events instead of comments"),
    ),
    responses(
        (status = 200, description = "The count, or the stream", content((Likes = "application/json"), (String = "text/event-stream")),
            headers(("ETag" = String, description = "`<epoch>.<version>`"), ("Vary" = String))),
        (status = 304, description = "As the caller has it", headers(("ETag" = String))),
    )
)]
pub(super) async fn likes(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    if accept::wants_stream(request.headers())? {
        let (parts, _) = request.into_parts();
        return sse::one(&app, &id, &parts).await;
    }
    need(&app, Role::Api)?;
    let id: PostId = id.parse()?;
    let states = app.store.read(&[id]).await.map_err(|error| app.told(&error, "a read failed"))?;
    let stored = states.first().ok_or(ApiError::UnknownPost)?;
    let tag = format!("\"{}.{}\"", stored.epoch, stored.state.version);
    let (likes, version) = (stored.state.likes, stored.state.version);
    let body = Likes { post_id: id, likes, version, changed_at: stored.changed_at };
    let mut response = conditional(request.headers(), &tag, "no-cache", Json(body));
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept, Origin"));
    Ok(response)
}

/// One like more.
#[utoipa::path(post, path = "/posts/{id}/likes", tag = "likes",
    params(
        ("id" = u64, Path, description = "Number of a post", minimum = 1, maximum = 9007199254740991_u64),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeated with the same key within 24 hours, a request counts once; quoted or bare",
            pattern = r#"^(?:[!#-~](?:[ -~]{0,62}[!-~])?|"(?:[ -~]{0,62}[!#-~])?|"[ -~]{1,64}")$"#),
    ),
    responses((status = 200, description = "Counted", body = Liked,
        headers(("Idempotent-Replayed" = Option<String>, description = "`true`: the answer to an earlier request with this key"))),
        (status = 202, description = "Kept, and counted soon (pods with --write event)", body = Pending))
)]
pub(super) async fn like(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    anybody(&app, &id, request).await
}

/// One like less, never below zero.
#[utoipa::path(delete, path = "/posts/{id}/likes", tag = "likes",
    params(
        ("id" = u64, Path, description = "Number of a post", minimum = 1, maximum = 9007199254740991_u64),
        ("Idempotency-Key" = String, Header, description = "Repeated with the same key within 24 hours, a request counts once; quoted or bare. Only a known user may leave it out",
            pattern = r#"^(?:[!#-~](?:[ -~]{0,62}[!-~])?|"(?:[ -~]{0,62}[!#-~])?|"[ -~]{1,64}")$"#),
    ),
    responses((status = 200, description = "Counted, or nothing to take back", body = Liked,
        headers(("Idempotent-Replayed" = Option<String>, description = "`true`: the answer to an earlier request with this key"))),
        (status = 202, description = "Kept, and counted soon (pods with --write event)", body = Pending))
)]
pub(super) async fn unlike(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    anybody(&app, &id, request).await
}

/// A known user's one like of a post.
#[utoipa::path(put, path = "/posts/{id}/likes/me", tag = "likes",
    params(
        ("id" = u64, Path, description = "Number of a post", minimum = 1, maximum = 9007199254740991_u64),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeated with the same key within 24 hours, a request counts once; quoted or bare",
            pattern = r#"^(?:[!#-~](?:[ -~]{0,62}[!-~])?|"(?:[ -~]{0,62}[!#-~])?|"[ -~]{1,64}")$"#),
    ),
    responses((status = 200, description = "Counted, or counted before", body = Liked,
        headers(("Idempotent-Replayed" = Option<String>, description = "`true`: the answer to an earlier request with this key"))),
        (status = 202, description = "Kept, and counted soon (pods with --write event)", body = Pending))
)]
pub(super) async fn like_me(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    known_user(&app, &id, request).await
}

/// Takes a known user's like back.
#[utoipa::path(delete, path = "/posts/{id}/likes/me", tag = "likes",
    params(
        ("id" = u64, Path, description = "Number of a post", minimum = 1, maximum = 9007199254740991_u64),
        ("Idempotency-Key" = Option<String>, Header, description = "Repeated with the same key within 24 hours, a request counts once; quoted or bare",
            pattern = r#"^(?:[!#-~](?:[ -~]{0,62}[!-~])?|"(?:[ -~]{0,62}[!#-~])?|"[ -~]{1,64}")$"#),
    ),
    responses((status = 200, description = "Taken back, or there was none", body = Liked,
        headers(("Idempotent-Replayed" = Option<String>, description = "`true`: the answer to an earlier request with this key"))),
        (status = 202, description = "Kept, and counted soon (pods with --write event)", body = Pending))
)]
pub(super) async fn unlike_me(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    known_user(&app, &id, request).await
}

async fn anybody(app: &App, id: &str, request: Request) -> Result<Response, ApiError> {
    let who = user_of(app, &request)?.map_or(Who::Anonymous, Who::User);
    change(app, id, who, false, request).await
}

async fn known_user(app: &App, id: &str, request: Request) -> Result<Response, ApiError> {
    let hint = || match &app.config.trust_user_header {
        Some(name) => format!("the header {name} names one"),
        None => "the operator has to start the pod with --trust-user-header".into(),
    };
    let user = user_of(app, &request)?.ok_or_else(|| ApiError::UserRequired(hint()))?;
    change(app, id, Who::User(user), true, request).await
}

async fn change(app: &App, id: &str, who: Who, once: bool, request: Request) -> Result<Response, ApiError> {
    need(app, Role::Api)?;
    let post: PostId = id.parse()?;
    let (parts, body) = request.into_parts();
    let body = limits::body(body).await?;
    json_only(&parts.headers, false)?;
    let op = if parts.method == Method::DELETE { LikeOp::Unlike } else { LikeOp::Like };
    let key = match parts.headers.get(KEY) {
        Some(value) => {
            let scope = format!("{} {}", parts.method, parts.uri.path());
            let key = value.to_str().ok().and_then(|value| IdempotencyKey::new(&scope, value, &body).ok());
            Some(key.ok_or_else(|| {
                ApiError::BadRequest("an Idempotency-Key has 1 to 64 printable ASCII characters".into())
            })?)
        }
        None => None,
    };
    let trace = parts.extensions.get::<Trace>().cloned().unwrap_or_default();
    let request = LikeRequest { post, op, who, once, key, trace };
    request.check_repeatable().map_err(|error| ApiError::from(&error))?;
    let outcome = app.like(request).await?;
    let answer = Answer::from(&outcome);
    let mut response = (answer.status(), Json(answer)).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if outcome.replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The user of a token, or the one a trusted header names: never both, as the pod does not start with both.
fn user_of(app: &App, request: &Request) -> Result<Option<String>, ApiError> {
    match request.extensions().get::<Identity>() {
        Some(identity) => Ok(Some(identity.user.to_string())),
        None => user(app, request.headers()),
    }
}

/// The user named by the trusted header, if the pod trusts one and the request has it.
pub(super) fn user(app: &App, headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = app.config.trust_user_header.as_ref().and_then(|name| headers.get(name)) else {
        return Ok(None);
    };
    let name = value.to_str().ok().filter(|name| (1..=MAX_USER_BYTES).contains(&name.len()));
    let bad = || ApiError::BadRequest(format!("a user name has 1 to {MAX_USER_BYTES} printable ASCII characters"));
    name.map(|name| Some(name.to_owned())).ok_or_else(bad)
}

pub(super) fn need(app: &App, role: Role) -> Result<(), ApiError> {
    if app.config.serves(role) { Ok(()) } else { Err(ApiError::NoRole) }
}

/// 415 for compressed bodies, and for bodies of another type than JSON. A like needs no body and so no type.
fn json_only(headers: &HeaderMap, needed: bool) -> Result<(), ApiError> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        return Err(ApiError::MediaType);
    }
    let json = |value: &HeaderValue| {
        let kind = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case("application/json")
    };
    match headers.get(header::CONTENT_TYPE) {
        Some(value) if !json(value) => Err(ApiError::MediaType),
        None if needed => Err(ApiError::MediaType),
        _ => Ok(()),
    }
}

/// 200 with a validator, or 304 when the caller has this state already.
fn conditional(headers: &HeaderMap, tag: &str, cache: &'static str, body: impl IntoResponse) -> Response {
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut known = known.flat_map(|list| list.split(',')).map(|item| item.trim().trim_start_matches("W/"));
    let unchanged = known.any(|item| item == tag || item == "*");
    let mut response = if unchanged { StatusCode::NOT_MODIFIED.into_response() } else { body.into_response() };
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
    response
}
