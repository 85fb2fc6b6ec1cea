//! Q2: a client that never reads, while events keep coming: who keeps them, and does the pod notice?
//!
//! To have enough bytes the lab publishes synthetic, valid events of one watched post straight to NATS, past the database:
//! what is measured is the way from the pod to the client, and no like of it is counted.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::time::Instant;

use crate::compare::calibrate::create_posts;
use crate::compare::observe::{counters, scrape, sum};
use crate::compare::plan::Planned;
use crate::compare::stack::{Deployment, Stack};
use crate::domain::{LikesChanged, PostId, Version, unix_micros};
use crate::result::{FORMAT, Header, Observed, RunConfig, RunResult};

/// How long events keep coming.
const TIME: Duration = Duration::from_secs(8);
/// Time between two events: slow enough for the pod to write each one, so that what it leaves out it was kept from.
const STEP: Duration = Duration::from_micros(120);
/// Receive buffer of the client, so that the kernel's memory is not what is measured.
const WINDOW: u32 = 8 * 1_024;

/// Runs it.
///
/// # Errors
/// When broker, pod or edge do not answer.
pub async fn run(stack: &Stack, deployment: &Deployment, planned: &Planned) -> anyhow::Result<RunResult> {
    let nats = stack.nats.as_ref().context("this scenario needs a real broker: --stack local")?;
    let pod = deployment.pods.first().context("this scenario needs a pod")?;
    let post = create_posts(&reqwest::Client::new(), &format!("http://{}", pod.listen), 1).await?[0];
    let post = PostId::new(post).context("the pod gave an id that is none")?;
    let broker = async_nats::connect(&nats.url).await.context("NATS")?;

    let base = deployment.base_urls().remove(0);
    let address = base.trim_start_matches("http://");
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(WINDOW)?;
    let mut reader = socket.connect(address.parse().context("the edge's address")?).await?;
    let request = format!("GET /posts/{post}/likes HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n");
    reader.write_all(request.as_bytes()).await?;
    let begun = Instant::now();
    while !scrape(&pod.admin).await.is_some_and(|text| sum(&text, "pushlab_watched_posts ") > 0.0) {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(5), "the stream did not reach the pod within 5 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let before = counters(&pod.admin).await;
    let (origin, begun) = (unix_micros(), Instant::now());
    let (mut version, mut look, mut spilled, mut grew) = (0_u64, Duration::ZERO, 0, (0_u64, Duration::ZERO));
    while begun.elapsed() < TIME {
        let due = begun + STEP * u32::try_from(version)?;
        while Instant::now() < due {
            tokio::task::yield_now().await;
        }
        let prev = Version(version);
        version += 1;
        let (likes, newest) = (version, Version(version));
        let event = LikesChanged { post_id: post, likes, version: newest, prev, committed_at: unix_micros() };
        broker.publish(post.subject(), serde_json::to_vec(&event)?.into()).await?;
        if begun.elapsed() >= look {
            look += Duration::from_millis(250);
            spilled = spilled.max(deployment.edge.as_ref().map_or(0, |edge| size(&edge.spill())));
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
        ("published_events", version as f64),
        ("pod_wrote_mib", mib(after.written_bytes - before.written_bytes)),
        ("pod_left_out_versions", (after.conflated - before.conflated) as f64),
        ("pod_wrote_last_after_s", grew.1.as_secs_f64()),
        ("edge_temp_files_mib", mib(spilled)),
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

/// Bytes of all files below a folder.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let found = entry.metadata().ok()?;
        Some(if found.is_dir() { size(&entry.path()) } else { found.len() })
    });
    sizes.sum()
}
