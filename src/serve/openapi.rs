//! The interface described: OpenAPI 3.1 made from the handlers, AsyncAPI 3.0 for what is pushed, and what each problem means.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref};
use utoipa::{Modify, OpenApi};

use super::auth::guard;
use super::error::{ApiError, Problem};
use super::{api, sse};

/// `Link` of the page and of the API (RFC 8631): where both descriptions are.
pub(super) const LINKS: HeaderValue = HeaderValue::from_static(
    "</openapi.json>; rel=\"service-desc\", </asyncapi.json>; rel=\"service-desc\", </problems>; rel=\"service-doc\"",
);

/// For what is pushed: written by hand, held against the code by the tests below.
const ASYNC: &str = include_str!("asyncapi.json");

/// Every problem type, in words.
const PROBLEMS: &str = include_str!("../../docs/problems.md");

#[derive(OpenApi)]
#[openapi(
    info(
        title = "pushlab",
        description = "Posts, their likes, and streams of the count's changes. A like raises the post's version by one: \
            version = effective likes + effective unlikes. Streams over Server-Sent Events and STOMP are described in /asyncapi.json, \
            problem types in /problems."
    ),
    paths(
        api::create_post,
        api::post,
        api::likes,
        api::like,
        api::unlike,
        api::like_me,
        api::unlike_me,
        sse::many,
        guard::ticket,
        guard::session,
        guard::end_session
    ),
    components(schemas(Problem)),
    modifiers(&Refusals)
)]
struct Doc;

static DOC: LazyLock<String> = LazyLock::new(|| Doc::openapi().to_pretty_json().unwrap_or_default());

/// Adds the problems of each operation, from the one place that knows them.
struct Refusals;

impl Modify for Refusals {
    fn modify(&self, doc: &mut utoipa::openapi::OpenApi) {
        for item in doc.paths.paths.values_mut() {
            let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete];
            operations.into_iter().flatten().for_each(add_refusals);
        }
    }
}

fn add_refusals(operation: &mut Operation) {
    let mut by_status = BTreeMap::<u16, Vec<Problem>>::new();
    for problem in refusals(operation.operation_id.as_deref().unwrap_or_default()).iter().map(ApiError::problem) {
        by_status.entry(problem.status).or_default().push(problem);
    }
    for (status, problems) in by_status {
        let words: Vec<_> = problems.iter().map(|problem| format!("{} (`{}`)", problem.title, problem.kind)).collect();
        let schema = Some(Ref::from_schema_name("Problem"));
        let mut response = ResponseBuilder::new()
            .description(words.join(", or "))
            .content("application/problem+json", ContentBuilder::new().schema(schema).build());
        if matches!(status, 409 | 429 | 503) {
            let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).build();
            let header =
                HeaderBuilder::new().schema(Some(seconds)).description(Some("Seconds, random in a small range"));
            response = response.header("Retry-After", header.build());
        }
        operation.responses.responses.insert(status.to_string(), response.build().into());
    }
}

/// What may become of an operation besides what its handler's own description says.
fn refusals(operation: &str) -> Vec<ApiError> {
    use ApiError as E;
    let unavailable = || E::Unavailable("");
    let mut all =
        vec![E::Origin, E::NoRole, E::Internal, unavailable(), E::Unauthorized, E::RateLimited { seconds: 1 }];
    let body = || [E::BadRequest(String::new()), E::TooLarge { limit: 0 }, E::MediaType, E::RequestTimeout];
    let stream = || [E::Full, E::Rush, E::Draining, E::Broken];
    if ["ticket", "session", "end_session"].contains(&operation) {
        // 404 without --auth jwt.
        return vec![E::NoRoute, E::Origin, E::Unauthorized, E::RateLimited { seconds: 1 }, E::Internal];
    }
    if operation != "create_post" {
        all.push(E::UnknownPost);
    }
    match operation {
        "create_post" => all.extend(body()),
        "post" => {}
        "likes" | "many" => {
            all.extend(stream());
            all.extend([E::BadRequest(String::new()), E::NotAcceptable]);
        }
        _ => {
            all.extend(body());
            all.extend([E::KeyInFlight, E::KeyMismatch, E::OutcomeUnknown]);
            match operation {
                "unlike" => all.push(E::KeyRequired),
                "like_me" | "unlike_me" => all.push(E::UserRequired(String::new())),
                _ => {}
            }
        }
    }
    all
}

fn text(kind: &'static str, text: impl IntoResponse) -> Response {
    let head = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")];
    (head, text).into_response()
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    text("application/json", DOC.as_str())
}

/// `GET /asyncapi.json`.
pub(super) async fn asyncapi() -> Response {
    text("application/json", ASYNC)
}

/// `GET /problems`. As plain text, which a browser shows and does not download.
pub(super) async fn problems() -> Response {
    text("text/plain; charset=utf-8", PROBLEMS)
}

/// `GET /problems/{name}`: the `type` of a problem leads to its meaning.
pub(super) async fn problem(Path(name): Path<String>) -> Result<Response, ApiError> {
    let section = section(&name).ok_or(ApiError::NoRoute)?;
    Ok(text("text/plain; charset=utf-8", section))
}

fn section(name: &str) -> Option<&'static str> {
    PROBLEMS.split("\n## ").skip(1).find(|section| section.lines().next() == Some(name))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::domain::{LikesChanged, LikesState, MAX_SAFE_INTEGER, PostId, Update, Version};
    use crate::proto::stomp;

    fn described() -> (Value, Value) {
        (serde_json::from_str(&DOC).unwrap(), serde_json::from_str(ASYNC).unwrap())
    }

    #[test]
    fn every_route_is_described() {
        let (doc, events) = described();
        let channels: Vec<_> =
            events["channels"].as_object().unwrap().values().map(|c| c["address"].as_str().unwrap()).collect();
        let stomp = events["servers"]["stomp"]["pathname"].as_str().unwrap();
        let routes = include_str!("router.rs").split(".route(\"").skip(1);
        let mut seen = 0;
        for route in routes {
            let (path, handlers) = route.split_once('"').unwrap();
            let handlers = handlers.split(".route").next().unwrap().split(';').next().unwrap();
            let for_people = ["/", "/page/{file}", "/openapi.json", "/asyncapi.json", "/problems", "/problems/{name}"];
            if for_people.contains(&path) || path == stomp || path.starts_with("/ws/") {
                continue;
            }
            for method in ["get", "post", "put", "delete"] {
                let served = handlers.contains(&format!(" {method}(")) || handlers.contains(&format!(".{method}("));
                assert_eq!(doc["paths"][path][method].is_object(), served, "{method} {path}");
                seen += usize::from(served);
            }
        }
        assert!(seen >= 8, "{seen}");
        let id = &doc["paths"]["/posts/{id}"]["get"]["parameters"][0]["schema"];
        assert_eq!(id["maximum"], MAX_SAFE_INTEGER, "{id}");
        assert_eq!(doc["openapi"], "3.1.0");
        for stream in ["/posts/{postId}/likes", "/likes"] {
            assert!(channels.contains(&stream), "{stream}");
        }
    }

    #[test]
    fn operations_and_their_refusals_are_in_the_description() {
        let (doc, _) = described();
        let like = &doc["paths"]["/posts/{id}/likes"]["post"];
        assert_eq!(like["operationId"], "like");
        assert_eq!(
            like["responses"]["200"]["content"]["application/json"]["schema"]["$ref"],
            "#/components/schemas/Liked"
        );
        let busy = &like["responses"]["503"];
        assert!(busy["description"].as_str().unwrap().contains("/problems/unavailable"));
        assert_eq!(busy["content"]["application/problem+json"]["schema"]["$ref"], "#/components/schemas/Problem");
        assert!(busy["headers"]["Retry-After"].is_object());
        for (path, methods) in doc["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                assert!(operation["responses"]["404"].is_object(), "{method} {path}");
                assert!(operation["summary"].as_str().is_some_and(|s| !s.is_empty()), "{method} {path}");
            }
        }
    }

    #[test]
    fn what_is_pushed_is_as_described() {
        let (_, events) = described();
        assert_eq!(events["asyncapi"], "3.0.0");
        assert_eq!(events["info"]["version"], env!("CARGO_PKG_VERSION"));
        let address = |channel: &str| events["channels"][channel]["address"].as_str().unwrap().replace("{postId}", "7");
        let post = PostId::new(7).unwrap();
        assert_eq!(address("topic"), post.topic());
        assert_eq!(address("replies"), stomp::REPLIES);
        for (channel, verb) in [("like", "like"), ("unlike", "unlike")] {
            assert_eq!(address(channel), format!("{}7.{verb}", stomp::APP_PREFIX));
        }
        let protocols = &events["servers"]["stomp"]["x-subprotocols"];
        assert_eq!(*protocols, serde_json::json!(stomp::Version::ALL.map(stomp::Version::subprotocol)));

        let changed = Update::Changed(LikesChanged {
            post_id: post,
            likes: 3,
            version: Version(9),
            prev: Version(8),
            committed_at: 1_700_000_000_000_000,
        });
        let snapshot = Update::Snapshot(LikesState { post_id: post, likes: 3, version: Version(9) });
        let liked = serde_json::json!({ "postId": 7, "likes": 3, "version": 9, "changed": true });
        let pending = serde_json::json!({ "postId": 7, "pending": true });
        let problem = serde_json::to_value(ApiError::UnknownPost.problem()).unwrap();
        let parse = |update: Update| serde_json::from_str::<Value>(&update.to_json()).unwrap();
        let bodies = [
            ("Changed", parse(changed)),
            ("Snapshot", parse(snapshot)),
            ("Liked", liked),
            ("Pending", pending),
            ("Problem", problem),
        ];
        for (name, body) in &bodies {
            for (schema, _) in &bodies {
                let valid = jsonschema::is_valid(&events["components"]["schemas"][schema], body);
                assert_eq!(valid, name == schema, "{name} as {schema}: {body}");
            }
        }
    }

    /// The names, statuses and titles as `error.rs` has them, read from its text: an enum cannot list itself.
    #[test]
    fn every_problem_is_explained_and_no_other() {
        let code = include_str!("error.rs");
        let code = code.split_once("fn kind(").unwrap().1.split_once("\n    }\n").unwrap().0;
        let pieces: Vec<_> = code.split('"').collect();
        let mut names = Vec::new();
        for at in (1..pieces.len()).step_by(4) {
            let (before, name) = (pieces[at - 1], pieces[at]);
            names.push(name);
            let section = section(name).unwrap_or_else(|| panic!("docs/problems.md has no section {name}"));
            let constant = before.rsplit_once("StatusCode::").unwrap().1.trim_end_matches([',', ' ', '\n']);
            let of = |code: &u16| {
                let status = http::StatusCode::from_u16(*code).unwrap();
                let name = status.canonical_reason().unwrap_or_default().to_uppercase();
                name.replace([' ', '-'], "_") == constant
            };
            if let Some(status) = (400..600).find(of) {
                assert!(section.contains(&format!("Status {status}.")), "{name} is {status}: {section}");
            } else {
                assert_eq!(name, "handshake", "{constant}");
            }
        }
        assert!(names.len() > 20, "{names:?}");
        for section in PROBLEMS.split("\n## ").skip(1) {
            let title = section.lines().next().unwrap();
            assert!(names.contains(&title), "{title} is not in error.rs");
        }
    }
}
