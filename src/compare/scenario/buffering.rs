//! Q2: when do events get through an edge? One stream, twenty likes, one per 200 ms, then the pod ends the stream.
//!
//! The viewer is this file's own, since it must accept gzip as browsers do; its stamps are taken in user space, which is
//! fine where the answer is a fraction of a millisecond or two seconds.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use flate2::write::MultiGzDecoder;
use nix::sys::signal::Signal;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::compare::calibrate::create_posts;
use crate::compare::observe::{scrape, sum};
use crate::compare::plan::Planned;
use crate::compare::stack::{Deployment, Stack};
use crate::domain::{PostId, Update, unix_micros};
use crate::result::{FORMAT, Header, Observed, Outcome, RunConfig, RunResult, SNAPSHOT, Session};

/// Likes of one row.
const LIKES: u32 = 20;
/// Time between them.
const STEP: Duration = Duration::from_millis(200);

/// What a viewer saw: when a chunk came, and the updates it completed.
#[derive(Debug, Default)]
struct Seen {
    arrivals: Vec<(u64, Update)>,
    pod: Option<String>,
    ended: u64,
}

impl Seen {
    fn complete(&self) -> bool {
        self.arrivals.iter().any(|(_, update)| update.version().0 == u64::from(LIKES))
    }
}

/// Runs one row.
///
/// # Errors
/// When a pod or the edge does not answer at all.
pub async fn run(stack: &Stack, deployment: &Deployment, planned: &Planned) -> anyhow::Result<RunResult> {
    let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build()?;
    let pod = deployment.pods.first().context("this scenario needs pods of its own")?;
    let base = format!("http://{}", pod.listen);
    let post = create_posts(&client, &base, 1).await?[0];
    let path = format!("posts/{post}/likes");
    let origin = unix_micros();
    let at = |now: u64| u32::try_from(now.saturating_sub(origin)).unwrap_or(u32::MAX);
    let viewer = watch(client.clone(), format!("{}/{path}", deployment.base_urls()[0]));
    until_watched(deployment).await?;

    let (mut run, begun) = (RunResult::default(), Instant::now());
    for number in 0..LIKES {
        let due = begun + STEP * number;
        sleep_until(due).await;
        let sent = unix_micros();
        let answer = client.post(format!("{base}/{path}")).send().await?.error_for_status()?;
        let state: serde_json::Value = answer.json().await?;
        let version = state["version"].as_u64().and_then(|version| u32::try_from(version).ok());
        run.likes.due_us.push(at(sent));
        run.likes.sent_us.push(at(sent));
        run.likes.answered_us.push(at(unix_micros()));
        run.likes.post.push(0);
        run.likes.version.push(version.context("an answer to a like without a version")?);
        run.likes.outcome.push(Outcome::Ok as u8);
    }
    tokio::time::sleep(STEP).await;
    let liked = at(unix_micros());
    // The stream ends cleanly, as at a roll-out; whatever the edge has kept back arrives now.
    for pid in deployment.processes.iter().map(|process| process.pid) {
        stack.guardian.signal(pid, Signal::SIGTERM).await?;
    }
    let seen = timeout(Duration::from_secs(10), viewer).await.context("the edge never ended the stream")???;
    book(&mut run, &seen, at);
    run.header = header(planned, deployment, origin, liked, &seen, at);
    run.header.posts = PostId::new(post).into_iter().collect();
    run.header.initial = vec![(0, 0)];
    run.header.finals = vec![(LIKES.into(), LIKES.into())];
    run.header.converged = seen.complete();
    let early = run.arrivals.at_us.iter().filter(|at| **at & SNAPSHOT == 0 && **at < liked).count();
    let figures = [("events_before_the_end".to_owned(), f64::from(u32::try_from(early)?) / f64::from(LIKES))];
    run.header.observed = Some(Observed { figures: figures.into(), ..Observed::default() });
    Ok(run)
}

/// Opens the stream, accepting gzip, and stamps what comes until it ends.
fn watch(client: reqwest::Client, url: String) -> JoinHandle<anyhow::Result<Seen>> {
    tokio::spawn(async move {
        let request = client.get(url).header("accept", "text/event-stream").header("accept-encoding", "gzip");
        let mut answer = request.send().await?.error_for_status()?;
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut seen = Seen { pod: header("x-pushlab-pod"), ..Seen::default() };
        let mut gzip =
            header("content-encoding").filter(|coding| coding == "gzip").map(|_| MultiGzDecoder::new(Vec::new()));
        let mut text = Vec::new();
        // A stream that is cut ends with an error, a clean one without: both end it.
        while let Ok(Some(chunk)) = answer.chunk().await {
            let now = unix_micros();
            match &mut gzip {
                Some(gzip) => {
                    gzip.write_all(&chunk).and_then(|()| gzip.flush()).context("not gzip")?;
                    text.append(gzip.get_mut());
                }
                None => text.extend_from_slice(&chunk),
            }
            while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                let data = event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"data: "));
                seen.arrivals.extend(data.and_then(|json| Some((now, Update::from_json(json).ok()?))));
            }
        }
        seen.ended = unix_micros();
        Ok(seen)
    })
}

/// Waits until a pod watches a post: the stream's headers may be held back, so its answer cannot be waited for.
async fn until_watched(deployment: &Deployment) -> anyhow::Result<()> {
    let joined = async {
        loop {
            for pod in &deployment.pods {
                if scrape(&pod.admin).await.is_some_and(|text| sum(&text, "pushlab_watched_posts ") > 0.0) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(5), joined).await.context("the stream did not reach a pod within 5 s")
}

fn book(run: &mut RunResult, seen: &Seen, at: impl Fn(u64) -> u32) {
    for (when, update) in &seen.arrivals {
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let mark = match update {
            Update::Snapshot(_) => SNAPSHOT,
            Update::Changed(event) => {
                run.events.post.push(0);
                run.events.version.push(small(event.version.0));
                run.events.prev.push(small(event.prev.0));
                run.events.likes.push(small(event.likes));
                run.events.committed_us.push(at(event.committed_at));
                0
            }
        };
        run.arrivals.session.push(0);
        run.arrivals.version.push(small(update.version().0));
        run.arrivals.at_us.push(at(*when) | mark);
    }
}

fn header(
    planned: &Planned,
    deployment: &Deployment,
    origin: u64,
    liked: u32,
    seen: &Seen,
    at: impl Fn(u64) -> u32,
) -> Header {
    let first = seen.arrivals.first();
    let whole = seen.complete();
    let session = Session {
        joined_us: first.map(|(when, _)| at(*when)),
        joined_version: first.map_or(0, |(_, update)| update.version().0),
        // The pod ended the stream by plan; who has everything by then is counted as there.
        ended_us: (!whole).then(|| at(seen.ended)),
        reason: (!whole).then(|| "eof".into()),
        pod: seen.pod.clone(),
        ..Session::default()
    };
    let config = RunConfig {
        arm: planned.arm,
        base_urls: deployment.base_urls(),
        viewers: 1,
        likers: 1,
        rate: 1.0 / STEP.as_secs_f64(),
        posts: 1,
        schedule: "uniform".into(),
        measure_s: Duration::from_micros(liked.into()).as_secs_f64(),
        heartbeat_s: planned.heartbeat.as_secs_f64(),
        ..RunConfig::default()
    };
    Header {
        format: FORMAT,
        pushlab: env!("CARGO_PKG_VERSION").into(),
        config,
        origin_us: origin,
        measure_end_us: liked.into(),
        cooldown_end_us: liked.into(),
        sessions: vec![session],
        ..Header::default()
    }
}
