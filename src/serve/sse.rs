//! The SSE handshake: checks, joins, snapshot first; then the engine has the socket.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join_all;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, header};

use super::app::{App, retry_ms};
use super::connection::TakeOver;
use super::error::ApiError;
use super::watch::{Joined, Position, Resumed};
use super::wire::{Beat, Guard, Stream, Wire};
use super::{AccelBuffering, Broken, BusyStream, Role, accept, api, limits};
use crate::domain::{PostId, Update};
use crate::hub::Subscription;
use crate::proto;

const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// `GET /posts/{id}/likes` with `Accept: text/event-stream`.
pub(super) async fn one(app: &Arc<App>, id: &str, request: &Parts) -> Result<Response, ApiError> {
    let wish = Wish::read(request)?;
    if !wish.posts.is_empty() {
        return Err(ApiError::BadRequest("several posts are streamed by /likes?post=1&post=2".into()));
    }
    stream(app, vec![id.parse()?], request, &wish).await
}

/// Several posts on one stream: `GET /likes?post=1&post=2`.
///
/// It begins with a snapshot of each; its events are described in `/asyncapi.json`.
#[utoipa::path(get, path = "/likes", tag = "likes",
    params(
        ("post" = Vec<u64>, Query, description = "Numbers of posts", min_items = 1, max_items = 128),
        ("Last-Event-ID" = Option<String>, Header, description = "The last id the client has; a malformed one counts as none"),
        ("lastEventId" = Option<String>, Query, description = "The same, for a first connection"),
        ("heartbeat" = Option<String>, Query, description = "`event` asks for heart-beats as named events instead of comments"),
    ),
    responses((status = 200, description = "The stream", body = String, content_type = "text/event-stream"))
)]
pub(super) async fn many(State(app): State<Arc<App>>, request: Parts) -> Result<Response, ApiError> {
    accept::stream_only(&request.headers)?;
    let mut wish = Wish::read(&request)?;
    let posts = std::mem::take(&mut wish.posts);
    if posts.is_empty() || posts.len() > limits::SUBSCRIPTIONS {
        let most = limits::SUBSCRIPTIONS;
        return Err(ApiError::BadRequest(format!("name 1 to {most} posts: /likes?post=1&post=2")));
    }
    stream(&app, posts, &request, &wish).await
}

/// What the query and the headers ask for.
struct Wish {
    posts: Vec<PostId>,
    last_event_id: Option<String>,
    beat: Beat,
}

impl Wish {
    fn read(request: &Parts) -> Result<Self, ApiError> {
        let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&request.uri);
        let query = query.map_err(|error| ApiError::BadRequest(error.body_text()))?.0;
        // A header is what the browser's own reconnection sends, so it is newer than the URL.
        let header = request.headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
        let mut wish = Self { posts: Vec::new(), last_event_id: header.map(Into::into), beat: Beat::Comment };
        for (name, value) in query {
            match name.as_str() {
                "post" => {
                    let post = value.parse()?;
                    if !wish.posts.contains(&post) {
                        wish.posts.push(post);
                    }
                }
                "lastEventId" if wish.last_event_id.is_none() => wish.last_event_id = Some(value),
                "heartbeat" if value == "event" => wish.beat = Beat::Event,
                _ => {}
            }
        }
        Ok(wish)
    }
}

async fn stream(app: &Arc<App>, posts: Vec<PostId>, request: &Parts, wish: &Wish) -> Result<Response, ApiError> {
    api::need(app, Role::Sse)?;
    if request.method == Method::HEAD {
        return Ok(head(app, Body::empty()));
    }
    if app.config.broken == Some(Broken::Polite200) {
        return Ok(head(app, Body::from(proto::sse::retry(retry_ms()))));
    }
    match open(app, &posts, request, wish).await {
        Ok(response) => Ok(response),
        Err(error) => {
            app.refused(&error);
            if matches!(error, ApiError::Full | ApiError::Rush | ApiError::Draining)
                && app.config.busy_stream == BusyStream::End
            {
                // Given at once, this answer would make the busiest pod the one with the fewest connections.
                let retry = retry_ms();
                tokio::time::sleep(Duration::from_millis(retry)).await;
                return Ok(head(app, Body::from(proto::sse::retry(retry))));
            }
            Err(error)
        }
    }
}

async fn open(app: &Arc<App>, posts: &[PostId], request: &Parts, wish: &Wish) -> Result<Response, ApiError> {
    let seat = app.admit()?;
    let resume = wish.last_event_id.as_deref().map(proto::sse::parse_last_event_id);
    let had = |post: PostId| match resume.as_ref()?.as_ref()? {
        // It does not say of which post.
        proto::sse::Resume::One { .. } if posts.len() > 1 => None,
        resume => resume.held(post).map(|(epoch, version)| Position { epoch, version }),
    };
    let mut joined = try_join_all(posts.iter().map(|post| app.join(*post, had(*post)))).await?;
    let mut room = usize::from(limits::REPLAY);
    for joined in &mut joined {
        match room.checked_sub(joined.missed.len()) {
            Some(left) => room = left,
            None => joined.without_replay(),
        }
        if resume == Some(None) {
            joined.resumed = Resumed::Malformed;
        }
    }
    // Only now, when nothing else can refuse: an edge may have brought the ticket here from a pod that was full.
    app.take_ticket(&request.extensions).await?;
    let resumed = joined.iter().map(|joined| joined.resumed).max().unwrap_or(Resumed::Fresh);
    app.metrics.resumes_total.with_label_values(&["sse", resumed.label()]).inc();

    let epoch = joined.first().map_or_else(|| app.watch.epoch(), |joined| joined.epoch);
    let mut wire = Stream::new(app.config.heartbeat, wish.beat, app.lifetime(request.extensions.get()), seat);
    // What ids say of a post before its first event is sent.
    let before = |joined: &Joined| match had(joined.state.post_id) {
        Some(had) if joined.resumed == Resumed::Replayed => had.version,
        _ => joined.cursor,
    };
    let format = wire.format(epoch, joined.iter().map(|joined| (joined.state.post_id, before(joined))).collect());
    let mut retry = Some(retry_ms());
    let subscriptions = joined.into_iter().zip(0..).map(|(joined, slot)| {
        let mut first = |update| wire.first(&update, slot, &format, retry.take());
        let first = match joined.resumed {
            Resumed::Replayed => joined.missed.iter().flat_map(|event| first(Update::Changed(*event))).collect(),
            Resumed::Ahead => Stream::nothing(retry.take()),
            _ => first(Update::Snapshot(joined.state)),
        };
        let Joined { epoch, state, cursor, guard, .. } = joined;
        let (format, guard) = (format.clone(), Guard::Watch(guard));
        Subscription { post: state.post_id, slot, epoch, format, cursor, first, alone: false, guard }
    });
    let subscriptions = subscriptions.collect();
    // Whoever sees heart-beats gets the first one at once; it says which pod this is, as an EventSource shows no headers.
    let hello = match wish.beat {
        Beat::Comment => bytes::Bytes::new(),
        Beat::Event => {
            let pod = serde_json::json!({ "pod": app.pod.to_str().unwrap_or_default() });
            proto::sse::chunk(format!("event: heartbeat\ndata: {pod}\n\n").as_bytes())
        }
    };
    let take_over = TakeOver::new(app.hub.pick().clone(), Wire::Sse(wire), subscriptions, hello);
    let mut response = head(app, take_over.body());
    response.extensions_mut().insert(take_over);
    Ok(response)
}

fn head(app: &App, body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Origin"));
    if app.config.accel_buffering == AccelBuffering::No {
        headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    }
    response
}
