//! One SSE and one STOMP session, one like, expected on both: `helm test`, smoke tests, "does it work through my proxy?".
//!
//! The WebSocket client is tokio-tungstenite and the HTTP client reqwest, so that the service is not checked by its own
//! code alone.

/// A viewer per transport.
pub(crate) mod clients;

use std::fmt::Display;
use std::future::Future;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clients::{SseClient, StompClient};
use reqwest::{Client, Response};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::bearer::{self, BearerArgs};
use crate::domain::{PostId, Update, Version};

/// Options of `pushlab probe`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Prints one line per step. Exit codes: 0 all steps passed, 1 one failed (its line has a hint).")]
pub struct Config {
    /// Where the service is, as its clients see it: a pod or the proxy in front
    #[arg(long, env = "PUSHLAB_BASE_URL", value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub base_url: String,

    /// Where streams (SSE and STOMP) are, if elsewhere
    #[arg(long, env = "PUSHLAB_STREAM_URL", value_name = "URL")]
    pub stream_url: Option<String>,

    /// Where SSE streams are, if apart from STOMP
    #[arg(long, env = "PUSHLAB_SSE_URL", value_name = "URL")]
    pub sse_url: Option<String>,

    /// Where STOMP is, if apart from SSE streams
    #[arg(long, env = "PUSHLAB_STOMP_URL", value_name = "URL")]
    pub stomp_url: Option<String>,

    /// Admin ports of pods (may be repeated, or one list with commas): /readyz is asked first
    #[arg(long, env = "PUSHLAB_ADMIN_URL", value_name = "URL", value_delimiter = ',')]
    pub admin_url: Vec<String>,

    /// Like this post instead of a new one
    #[arg(long, value_name = "ID")]
    pub post_id: Option<PostId>,

    /// The token, when the service asks for one
    #[command(flatten)]
    pub bearer: BearerArgs,

    /// Give up on a step after this long
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// Runs the steps in order until one fails.
///
/// # Errors
/// When interrupted. A failed step is a line on stdout and exit code 1.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    tokio::select! {
        result = probe(&config) => Ok(match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                println!("FAIL  {:<10} {}: {}", failure.step, failure.what, failure.hint);
                ExitCode::FAILURE
            }
        }),
        () = shutdown.cancelled() => anyhow::bail!("interrupted before the probe was done"),
    }
}

/// A step that failed, and what to look at.
#[derive(Debug)]
struct Failure {
    step: &'static str,
    what: String,
    hint: String,
}

/// What went wrong inside a step; the hint may be better than the step's own.
#[derive(Debug)]
pub(crate) struct Wrong {
    what: String,
    hint: Option<&'static str>,
}

impl Wrong {
    fn new(what: impl Display) -> Self {
        Self { what: what.to_string(), hint: None }
    }

    fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }
}

/// Runs one step within the time-out and prints its line.
async fn step<T>(
    name: &'static str,
    limit: Duration,
    hint: &str,
    work: impl Future<Output = Result<(T, String), Wrong>>,
) -> Result<T, Failure> {
    let started = Instant::now();
    let failure = |what, hint: &str| Failure { step: name, what, hint: hint.to_owned() };
    match tokio::time::timeout(limit, work).await {
        Ok(Ok((value, told))) => {
            println!("ok    {name:<10} {told} ({:.1} ms)", started.elapsed().as_secs_f64() * 1e3);
            Ok(value)
        }
        Ok(Err(wrong)) => Err(failure(wrong.what, wrong.hint.unwrap_or(hint))),
        Err(_) => Err(failure(format!("nothing came within {}", humantime::format_duration(limit)), hint)),
    }
}

async fn probe(config: &Config) -> Result<(), Failure> {
    let limit = config.timeout;
    let failed = |what: String, hint: &str| Failure { step: "start", what, hint: hint.into() };
    let bearer =
        config.bearer.read().map_err(|e| failed(format!("{e:#}"), "--token, --token-file or PUSHLAB_TOKEN"))?;
    let made = |bearer| bearer::client(bearer).no_proxy().build().map_err(|e| failed(e.to_string(), "this is a bug"));
    // The admin port asks for no token, and so it is shown none.
    let (client, admin_client) = (made(bearer.as_ref())?, made(None)?);
    let base = usable(&config.base_url)?;
    let streams = config.stream_url.as_ref().unwrap_or(&config.base_url);
    let sse_url = usable(config.sse_url.as_ref().unwrap_or(streams))?;
    let stomp_url = usable(config.stomp_url.as_ref().unwrap_or(streams))?;

    for admin in &config.admin_url {
        let hint = "the pod says on its admin port what it waits for: is the database up, is NATS up, is it draining?";
        step("ready", limit, hint, ready(&admin_client, usable(admin)?)).await?;
    }
    let hint = "is the service running there, with the role api and its database?";
    let post = step("post", limit, hint, take_post(&client, base, config.post_id)).await?;
    let hint = "a proxy that holds the stream back (nginx: proxy_buffering off) or a pod without the role sse";
    let mut sse = step("sse", limit, hint, SseClient::open(&client, sse_url, post)).await?;
    let hint = "a proxy that does not pass Upgrade on (nginx: proxy_http_version 1.1 with Upgrade and Connection headers) \
        or a pod without the role stomp";
    let mut stomp = step("stomp", limit, hint, StompClient::open(stomp_url, post, bearer.as_ref())).await?;
    let hint = "is the database writable? The pod's log has the cause";
    let liked = step("like", limit, hint, like(&client, base, post)).await?;
    let hint = "it was committed but not delivered: is NATS reachable from all pods (/readyz), does a proxy buffer?";
    let (a, b) = tokio::join!(
        step("like→sse", limit, hint, expect(liked, async || sse.next().await)),
        step("like→stomp", limit, hint, expect(liked, async || stomp.next().await)),
    );
    let (a, b) = (a?, b?);
    if a.likes() != b.likes() && a.version() == b.version() {
        let what = format!("version {} is {} likes over SSE and {} over STOMP", a.version(), a.likes(), b.likes());
        return Err(Failure { step: "agree", what, hint: "this must never happen: please report it".into() });
    }
    let hint =
        "Last-Event-ID does not reach the pod, or another pod has an older state: is one database behind all of them?";
    step("resume", limit, hint, resume(&client, sse_url, post, &sse, a.version())).await?;
    step("leave", limit, "the session was not closed in order", stomp.leave()).await?;
    println!("ok    both transports delivered version {} ({} likes) of post {post}", a.version(), a.likes());
    Ok(())
}

/// A base URL that can be spoken to.
fn usable(url: &str) -> Result<&str, Failure> {
    if is_base_url(url) {
        return Ok(url.trim_end_matches('/'));
    }
    let hint = "write http://host:port or https://host".into();
    Err(Failure { step: "url", what: format!("cannot use {url:?}"), hint })
}

/// Whether the probe's clients can speak to it: HTTP, with or without TLS.
pub(crate) fn is_base_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.trim_end_matches('/').is_empty())
}

/// What rustls says comes as an I/O error, from hyper within another one.
fn is_tls(error: &std::io::Error) -> bool {
    let within = error.get_ref().and_then(|error| error.downcast_ref());
    error.kind() == std::io::ErrorKind::InvalidData || within.is_some_and(is_tls)
}

/// What to do about a certificate that nobody here vouches for.
const UNTRUSTED: &str = "its certificate is not trusted here: SSL_CERT_FILE names the roots to trust (PEM)";

/// A status other than 2xx as a failure, with the problem's detail or the first line of the body.
async fn success(response: Response) -> Result<Response, Wrong> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.text().await.unwrap_or_default();
    let detail = serde_json::from_str(&body).ok().and_then(|problem: serde_json::Value| {
        problem.get("detail").and_then(|detail| detail.as_str()).map(str::to_owned)
    });
    let told = detail.unwrap_or_else(|| body.lines().next().unwrap_or_default().chars().take(200).collect());
    let wrong = Wrong::new(format!("HTTP {status}: {told}"));
    Err(match status.as_u16() {
        401 => wrong.hint("the service asks for a token, or for another one: --token, --token-file or PUSHLAB_TOKEN"),
        502 | 504 => wrong.hint("the proxy answers but reaches no pod: check its upstreams"),
        503 => wrong.hint("/readyz on the pod's admin port says what it misses; the pod may be full or draining, too"),
        404 if body.contains("/problems/no-role") => {
            wrong.hint("this pod has another role: --base-url (api), --sse-url and --stomp-url say where each is")
        }
        404 => wrong.hint("is this the base URL of pushlab, and does the post exist?"),
        _ => wrong,
    })
}

fn unreachable(error: &reqwest::Error) -> Wrong {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let wrong = Wrong::new(cause);
    if cause.downcast_ref().is_some_and(is_tls) {
        wrong.hint(UNTRUSTED)
    } else if error.is_connect() {
        wrong.hint("nothing answers there: is the service running, is the port right?")
    } else {
        wrong
    }
}

/// The pod that answered, as ` by pod-1`.
fn by(response: &Response) -> String {
    let pod = response.headers().get("x-pushlab-pod").and_then(|pod| pod.to_str().ok());
    pod.map_or_else(String::new, |pod| format!(" by {pod}"))
}

async fn ready(client: &Client, admin: &str) -> Result<((), String), Wrong> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Body {
        roles: Vec<String>,
        degraded: bool,
    }
    let response = client.get(format!("{admin}/readyz")).send().await.map_err(|e| unreachable(&e))?;
    let body: Body = success(response).await?.json().await.unwrap_or_default();
    let degraded = if body.degraded { ", but without its broker" } else { "" };
    Ok(((), format!("the pod at {admin} is ready for {}{degraded}", body.roles.join(", "))))
}

/// A second stream with the id of the first: it may not begin below what that one saw.
async fn resume(
    client: &Client,
    base: &str,
    post: PostId,
    before: &SseClient,
    seen: Version,
) -> Result<((), String), Wrong> {
    let id = before.last_id();
    let (_, first, told) = SseClient::begin(client, base, post, Some(id)).await?;
    if first.version() < seen {
        return Err(Wrong::new(format!(
            "after {id} the stream begins at version {}, seen was {seen}",
            first.version()
        )));
    }
    Ok(((), format!("with Last-Event-ID {id} a {told}")))
}

async fn take_post(client: &Client, base: &str, wanted: Option<PostId>) -> Result<(PostId, String), Wrong> {
    #[derive(Deserialize)]
    struct Body {
        id: PostId,
    }
    let request = match wanted {
        Some(id) => client.get(format!("{base}/posts/{id}")),
        None => client.post(format!("{base}/posts")).json(&serde_json::json!({"title": "pushlab probe"})),
    };
    let response = success(request.send().await.map_err(|e| unreachable(&e))?).await?;
    let by = by(&response);
    let body: Body = response.json().await.map_err(|e| Wrong::new(format!("no post in the answer: {e}")))?;
    let verb = if wanted.is_some() { "found" } else { "created" };
    Ok((body.id, format!("post {} {verb}{by}", body.id)))
}

/// One like by POST; the version it got.
async fn like(client: &Client, base: &str, post: PostId) -> Result<(Version, String), Wrong> {
    #[derive(Deserialize)]
    struct Body {
        version: Version,
        likes: u64,
        changed: bool,
    }
    let key = format!("probe-{:032x}", rand::random::<u128>());
    let request = client.post(format!("{base}/posts/{post}/likes")).header("idempotency-key", key);
    let response = success(request.send().await.map_err(|e| unreachable(&e))?).await?;
    let by = by(&response);
    let body: Body = response.json().await.map_err(|e| Wrong::new(format!("no likes in the answer: {e}")))?;
    if !body.changed {
        return Err(Wrong::new("a new like changed nothing"));
    }
    Ok((body.version, format!("committed{by} as version {}, {} likes", body.version, body.likes)))
}

/// Waits for the update that covers `version`; others may like the post too.
async fn expect(
    version: Version,
    mut next: impl AsyncFnMut() -> Result<Update, Wrong>,
) -> Result<(Update, String), Wrong> {
    loop {
        let update = next().await?;
        if update.version() >= version {
            return Ok((update, format!("version {} arrived", update.version())));
        }
    }
}
