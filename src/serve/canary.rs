//! The canary (`--canary URL`): one viewer per transport through the public URL, and one like per period on a post of its
//! own, so that production has the number its users have. It is one small task of the pod: everything it does has a time
//! limit, and nothing waits for it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use reqwest::header::AUTHORIZATION;
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::bearer::{self, Bearer};
use crate::domain::{PostId, Transport, Update, Version};
use crate::probe::clients::{SseClient, StompClient};
use crate::probe::is_base_url;
use crate::telemetry::Metrics;

/// A like seen later than this part of the period is late.
const LATE: u32 = 10;
/// A viewer that got nothing for so many periods connects anew.
const SILENT: u32 = 3;
/// Arrivals kept per viewer: likes are one per period, so the last few decide.
const KEPT: usize = 16;

/// Where it sings, who it is, how often.
#[derive(Debug, Clone)]
pub(super) struct Way {
    url: String,
    /// Whoever keeps it valid writes it anew, so nobody keeps what was in it.
    token: Option<PathBuf>,
    period: Duration,
}

/// The token in the canary's file.
pub(super) fn read_token(file: &Path) -> anyhow::Result<Bearer> {
    Bearer::from_file(file).with_context(|| format!("--canary-token-file {}", file.display()))
}

/// The public URL as its clients take it.
pub(super) fn base_url(text: &str) -> Result<String, String> {
    if is_base_url(text) { Ok(text.into()) } else { Err("write http://host:port or https://host".into()) }
}

impl Way {
    pub(super) fn new(url: &str, token: Option<PathBuf>, period: Duration) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), token, period }
    }

    fn bearer(&self) -> anyhow::Result<Option<Bearer>> {
        self.token.as_deref().map(read_token).transpose()
    }

    fn client(&self, bearer: Option<&Bearer>) -> reqwest::Result<Client> {
        bearer::client(bearer).no_proxy().connect_timeout(self.period).build()
    }

    /// With the time limit and the token of all its requests.
    fn signed(&self, request: RequestBuilder) -> anyhow::Result<RequestBuilder> {
        let request = request.timeout(self.period);
        Ok(match self.bearer()? {
            Some(bearer) => request.header(AUTHORIZATION, bearer.header()),
            None => request,
        })
    }
}

/// Sings until it is dropped.
pub(super) async fn sing(way: Way, metrics: Metrics) {
    let client = match way.client(None) {
        Ok(client) => client,
        Err(error) => return tracing::error!(%error, "no canary"),
    };
    loop {
        match new_post(&client, &way).await {
            // Until the post is gone: the database was replaced.
            Ok(post) => Canary::start(&client, &way, &metrics, post).run().await,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), url = way.url, "the canary gets no post");
                Transport::ALL.into_iter().for_each(|transport| count(&metrics, transport, "unreachable"));
            }
        }
        sleep(way.period).await;
    }
}

fn count(metrics: &Metrics, transport: Transport, result: &str) {
    metrics.canary_total.with_label_values(&[transport.label(), result]).inc();
}

struct Canary {
    client: Client,
    likes: String,
    way: Way,
    metrics: Metrics,
    viewers: [Viewer; Transport::ALL.len()],
}

impl Canary {
    fn start(client: &Client, way: &Way, metrics: &Metrics, post: PostId) -> Self {
        let likes = format!("{}/posts/{post}/likes", way.url);
        let viewers = Transport::ALL.map(|transport| Viewer::start(transport, way.clone(), post));
        Self { client: client.clone(), likes, way: way.clone(), metrics: metrics.clone(), viewers }
    }

    /// A like per period, the first after one, when the viewers have had time to connect.
    async fn run(self) {
        let mut every = interval(self.way.period);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        every.tick().await;
        loop {
            every.tick().await;
            let began = Instant::now();
            let connected = self.viewers.each_ref().map(|viewer| viewer.seen.borrow().connected);
            match self.like().await {
                Ok(version) => {
                    let [first, second] = [0, 1].map(|i| self.look(i, connected[i], version, began));
                    tokio::join!(first, second);
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the canary's like failed");
                    Transport::ALL.into_iter().for_each(|transport| count(&self.metrics, transport, "unreachable"));
                    let answer = error.downcast_ref::<reqwest::Error>().and_then(reqwest::Error::status);
                    if answer == Some(StatusCode::NOT_FOUND) {
                        return;
                    }
                }
            }
        }
    }

    async fn like(&self) -> anyhow::Result<Version> {
        #[derive(Deserialize)]
        struct Liked {
            version: Version,
        }
        let request = self.way.signed(self.client.post(&self.likes))?;
        let liked: Liked = request.send().await?.error_for_status()?.json().await?;
        Ok(liked.version)
    }

    /// Waits for the like on one viewer, until the next one is due.
    async fn look(&self, viewer: usize, connected: bool, version: Version, began: Instant) {
        let Viewer { transport, seen, .. } = &self.viewers[viewer];
        if !connected {
            return count(&self.metrics, *transport, "unreachable");
        }
        let mut seen = seen.clone();
        let arrived = timeout_at(began + self.way.period, seen.wait_for(|seen| seen.at(version).is_some())).await;
        let at = arrived.ok().and_then(Result::ok).and_then(|seen| seen.at(version));
        let Some(at) = at else { return count(&self.metrics, *transport, "lost") };
        let took = at.saturating_duration_since(began);
        self.metrics.canary_like_to_view_seconds.with_label_values(&[transport.label()]).observe(took.as_secs_f64());
        count(&self.metrics, *transport, if took * LATE <= self.way.period { "seen" } else { "late" });
    }
}

async fn new_post(client: &Client, way: &Way) -> anyhow::Result<PostId> {
    #[derive(Deserialize)]
    struct Post {
        id: PostId,
    }
    let request =
        way.signed(client.post(format!("{}/posts", way.url)))?.json(&serde_json::json!({ "title": "pushlab canary" }));
    let post: Post = request.send().await?.error_for_status()?.json().await?;
    Ok(post.id)
}

/// What a viewer has seen.
#[derive(Debug, Default)]
struct Seen {
    connected: bool,
    /// The newest versions and when they came, ascending.
    newest: VecDeque<(Version, Instant)>,
}

impl Seen {
    /// When this version, or the first one beyond it, came.
    fn at(&self, version: Version) -> Option<Instant> {
        self.newest.iter().find(|(seen, _)| *seen >= version).map(|(_, at)| *at)
    }

    fn came(&mut self, version: Version, at: Instant) {
        if self.newest.len() >= KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back((version, at));
    }
}

/// One viewer; it comes back when its stream ends.
struct Viewer {
    transport: Transport,
    seen: watch::Receiver<Seen>,
    _task: AbortOnDropHandle<()>,
}

/// Its connection.
#[expect(clippy::large_enum_variant, reason = "a pod has one of each")]
enum Stream {
    Sse(SseClient),
    Stomp(StompClient),
}

impl Stream {
    /// The stream after its snapshot; nothing when there is none.
    async fn open(transport: Transport, way: &Way, post: PostId) -> Option<Self> {
        let bearer = way.bearer().ok()?;
        match transport {
            Transport::Sse => {
                let client = way.client(bearer.as_ref()).ok()?;
                SseClient::open(&client, &way.url, post).await.ok().map(|(stream, _)| Self::Sse(stream))
            }
            Transport::Stomp => {
                let opened = StompClient::open(&way.url, post, bearer.as_ref()).await;
                opened.ok().map(|(session, _)| Self::Stomp(session))
            }
        }
    }

    async fn next(&mut self) -> Option<Update> {
        match self {
            Self::Sse(stream) => stream.next().await.ok(),
            Self::Stomp(session) => session.next().await.ok(),
        }
    }
}

impl Viewer {
    fn start(transport: Transport, way: Way, post: PostId) -> Self {
        let (tell, seen) = watch::channel(Seen::default());
        let period = way.period;
        let task = tokio::spawn(async move {
            loop {
                if let Ok(Some(mut stream)) = timeout(period, Stream::open(transport, &way, post)).await {
                    tell.send_modify(|seen| seen.connected = true);
                    while let Ok(Some(update)) = timeout(period * SILENT, stream.next()).await {
                        tell.send_modify(|seen| seen.came(update.version(), Instant::now()));
                    }
                    tell.send_modify(|seen| seen.connected = false);
                }
                sleep(period.mul_f64(rand::random_range(0.1..=0.5))).await;
            }
        });
        Self { transport, seen, _task: AbortOnDropHandle::new(task) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_like_is_seen_with_its_version_or_the_first_one_beyond_it() {
        let (start, mut seen) = (Instant::now(), Seen::default());
        for version in [3, 5, 6] {
            seen.came(Version(version), start + Duration::from_secs(version));
        }
        let at = |version| seen.at(Version(version)).map(|at| (at - start).as_secs());
        assert_eq!([2, 3, 4, 6, 7].map(at), [Some(3), Some(3), Some(5), Some(6), None]);
        (0..100).for_each(|version| seen.came(Version(version), start));
        assert_eq!(seen.newest.len(), KEPT);
    }
}
