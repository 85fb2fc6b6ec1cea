//! Q2: a client that never reads, while events keep coming: who keeps them, and does the pod notice?
//!
//! To have enough bytes the client watches a hundred posts on one stream (the pod keeps only the newest state per post for
//! it), and the lab publishes synthetic, valid events of them straight to NATS, past the database: what is measured is
//! the way from the pod to the client, and no like of it is counted.

use std::time::Duration;

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::time::Instant;

use crate::compare::calibrate::create_posts;
use crate::compare::edges::RunningEdge;
use crate::compare::observe::{counters, scrape, sum};
use crate::compare::plan::Planned;
use crate::compare::stack::guardian::descendants;
use crate::compare::stack::{Deployment, Stack};
use crate::domain::{LikesChanged, PostId, Version, unix_micros};
use crate::result::{FORMAT, Header, Observed, RunConfig, RunResult};

/// How long events keep coming.
const TIME: Duration = Duration::from_secs(8);
/// Posts on the stream; ids fill the request's line.
const POSTS: usize = 100;
/// Time between two rounds of one event per post: slow enough for the pod to write each one, so that what it leaves out
/// it was kept from.
const ROUND: Duration = Duration::from_millis(8);
/// Receive buffer of the client, so that the kernel's memory is not what is measured.
const WINDOW: u32 = 8 * 1_024;

/// Runs it.
///
/// # Errors
/// When broker, pod or edge do not answer.
pub async fn run(stack: &Stack, deployment: &Deployment, planned: &Planned) -> anyhow::Result<RunResult> {
    let nats = stack.nats.as_ref().context("this scenario needs a real broker: --stack local")?;
    let pod = deployment.pods.first().context("this scenario needs a pod")?;
    let made = create_posts(&reqwest::Client::new(), &format!("http://{}", pod.listen), POSTS).await?;
    let posts: Vec<PostId> = made.into_iter().filter_map(PostId::new).collect();
    let broker = async_nats::connect(&nats.url).await.context("NATS")?;

    let base = deployment.base_urls().remove(0);
    let address = base.trim_start_matches("http://");
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(WINDOW)?;
    let mut reader = socket.connect(address.parse().context("the edge's address")?).await?;
    let query: Vec<_> = posts.iter().map(|post| format!("post={post}")).collect();
    let query = query.join("&");
    let request = format!("GET /likes?{query} HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n");
    reader.write_all(request.as_bytes()).await?;
    let begun = Instant::now();
    while !scrape(&pod.admin).await.is_some_and(|text| sum(&text, "pushlab_watched_posts ") >= POSTS as f64) {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(5), "the stream did not reach the pod within 5 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let before = counters(&pod.admin).await;
    let (origin, begun) = (unix_micros(), Instant::now());
    let (mut round, mut look, mut most, mut grew) = (0_u32, Duration::ZERO, 0, (0_u64, Duration::ZERO));
    while begun.elapsed() < TIME {
        tokio::time::sleep_until(begun + ROUND * round).await;
        let prev = Version(round.into());
        round += 1;
        let version = Version(round.into());
        for &post_id in &posts {
            let event = LikesChanged { post_id, likes: version.0, version, prev, committed_at: unix_micros() };
            broker.publish(post_id.subject(), serde_json::to_vec(&event)?.into()).await?;
        }
        if begun.elapsed() >= look {
            look += Duration::from_millis(250);
            most = most.max(deployment.edge.as_ref().map_or(0, spilled));
            let written = counters(&pod.admin).await.written_bytes;
            if written > grew.0 {
                grew = (written, begun.elapsed());
            }
        }
    }
    let after = counters(&pod.admin).await;
    let ended = unix_micros();
    drop(reader);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let figures = [
        ("published_events", f64::from(round) * POSTS as f64),
        ("pod_wrote_mib", mib(after.written_bytes - before.written_bytes)),
        ("pod_left_out_versions", (after.conflated - before.conflated) as f64),
        ("pod_wrote_last_after_s", grew.1.as_secs_f64()),
        ("edge_temp_files_mib", mib(most)),
    ];
    let config = RunConfig {
        arm: planned.arm,
        base_urls: deployment.base_urls(),
        viewers: 0,
        likers: 0,
        rate: 0.0,
        measure_s: TIME.as_secs_f64(),
        slow_readers: 1,
        ..RunConfig::default()
    };
    let window = ended.saturating_sub(origin);
    let header = Header {
        format: FORMAT,
        pushlab: env!("CARGO_PKG_VERSION").into(),
        config,
        origin_us: origin,
        measure_end_us: window,
        cooldown_end_us: window,
        converged: true,
        observed: Some(Observed {
            figures: figures.map(|(name, value)| (name.to_owned(), value)).into(),
            ..Observed::default()
        }),
        ..Header::default()
    };
    Ok(RunResult { header, ..RunResult::default() })
}

/// Bytes of the edge's temporary files. nginx unlinks them at once, so they are found among its open descriptors.
fn spilled(edge: &RunningEdge) -> u64 {
    let (folder, mut sum) = (edge.spill(), 0);
    let pid = edge.server.process.pid;
    for pid in descendants(pid).into_iter().chain([pid]) {
        let open =
            std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        let spills = open.filter(|fd| std::fs::read_link(fd).is_ok_and(|target| target.starts_with(&folder)));
        sum += spills.filter_map(|fd| Some(std::fs::metadata(fd).ok()?.len())).sum::<u64>();
    }
    sum
}
