//! Holds the parts of one run together: opens their gates when all of them stand there, and merges their files.
//!
//! It knows control ports only (`load --control`), so that it is tested without a cluster.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::plan::Phases;
use crate::domain::unix_micros;
use crate::load::Gate;
use crate::result::{RunResult, file, merge};

/// Between all being connected and the beginning: enough for the word to reach every part.
const LEAD: Duration = Duration::from_secs(1);
/// Between two looks at a part.
const LOOK: Duration = Duration::from_millis(100);
/// Time after the likes for their outcomes, for viewers to reach the final values, and for writing the file.
const PATIENCE: Duration = Duration::from_secs(60);
/// Two clocks that differ by more than this, and by more than what asking them can explain, spoil latencies.
const CLOCKS_US: u64 = 1_000;

/// A moment of the run.
#[derive(Debug)]
pub enum Moment {
    /// The window begins.
    Measure,
    /// The window is over.
    Cooldown,
    /// Every viewer has the final values and nobody has left: counters are to be read now; say when it is done.
    Converged(oneshot::Sender<()>),
}

/// What came of it.
#[derive(Debug)]
pub struct Conducted {
    /// The run, merged.
    pub run: RunResult,
    /// The parts' clock − this machine's clock, in µs.
    pub skew_us: i64,
    /// Resident memory of all parts at the end of the window, bytes.
    pub rss_bytes: u64,
}

/// What a part says of itself.
#[derive(Debug, Deserialize)]
struct Phase {
    gate: Option<Gate>,
    unix_us: u64,
    rss_bytes: u64,
}

/// Takes the parts behind these control URLs through a run. `alive` is asked when a part does not answer or does not get
/// on: its error, which says why the part ended, is the run's.
///
/// # Errors
/// When a part ends or does not get on, or the files do not fit together.
pub async fn conduct<F: Future<Output = anyhow::Result<()>>>(
    urls: Vec<String>,
    phases: Phases,
    connecting: Duration,
    moments: mpsc::Sender<Moment>,
    alive: impl Fn() -> F,
) -> anyhow::Result<Conducted> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
    let parts = Parts { client, urls };
    parts.until(Gate::Connected, connecting, &alive).await?;
    let (skew_us, clocks) = parts.clocks().await?;
    let begin = unix_micros() + u64::try_from(LEAD.as_micros())?;
    let begun = Instant::now() + LEAD;
    parts.open(Gate::Connected, Some(begin.saturating_add_signed(skew_us))).await?;
    tokio::time::sleep_until(begun + phases.warmup).await;
    let _ = moments.send(Moment::Measure).await;
    tokio::time::sleep_until(begun + phases.warmup + phases.measure).await;
    let _ = moments.send(Moment::Cooldown).await;
    let mut rss_bytes = 0;
    for url in &parts.urls {
        rss_bytes += parts.phase(url).await.map_or(0, |phase| phase.rss_bytes);
    }
    parts.until(Gate::Liked, phases.cooldown + PATIENCE, &alive).await?;
    parts.open(Gate::Liked, None).await?;
    parts.until(Gate::Converged, PATIENCE, &alive).await?;
    let (read, counters_read) = oneshot::channel();
    if moments.send(Moment::Converged(read)).await.is_ok() {
        let _ = counters_read.await;
    }
    parts.open(Gate::Converged, None).await?;
    parts.until(Gate::Saved, PATIENCE, &alive).await?;
    let mut runs = Vec::new();
    for url in &parts.urls {
        runs.push(parts.fetch(url).await.with_context(|| format!("the run file of {url}"))?);
    }
    parts.open(Gate::Saved, None).await?;
    let mut run = tokio::task::spawn_blocking(move || merge::merge(runs)).await??;
    run.header.generator.problems.extend(clocks);
    Ok(Conducted { run, skew_us, rss_bytes })
}

struct Parts {
    client: reqwest::Client,
    urls: Vec<String>,
}

impl Parts {
    async fn phase(&self, url: &str) -> anyhow::Result<Phase> {
        let answer = self.client.get(format!("{url}/phase")).send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }

    /// Waits until every part stands at this gate.
    async fn until<F: Future<Output = anyhow::Result<()>>>(
        &self,
        gate: Gate,
        patience: Duration,
        alive: &impl Fn() -> F,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        for (number, url) in (1..).zip(&self.urls) {
            let mut looks = 0_u32;
            loop {
                let phase = self.phase(url).await;
                if phase.as_ref().is_ok_and(|phase| phase.gate == Some(gate)) {
                    break;
                }
                looks += 1;
                // A part that ended answers no more.
                if phase.is_err() || looks.is_multiple_of(20) {
                    alive().await?;
                }
                if Instant::now() > deadline {
                    let said =
                        phase.map_or_else(|error| format!("{error:#}"), |phase| format!("it is at {:?}", phase.gate));
                    bail!("part {number} of the generator is not at {gate:?} after {} s: {said}", patience.as_secs());
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// How far the first part's clock is ahead of ours, in µs, and sentences about parts whose clocks differ.
    async fn clocks(&self) -> anyhow::Result<(i64, Vec<String>)> {
        let mut offsets: Vec<(i64, u64)> = Vec::new();
        for url in &self.urls {
            let mut best: Option<(u64, i64)> = None;
            for _ in 0..5 {
                let before = unix_micros();
                let phase = self.phase(url).await?;
                let after = unix_micros();
                let reading = (after.saturating_sub(before), signed(phase.unix_us) - signed(before.midpoint(after)));
                best = Some(best.map_or(reading, |best| best.min(reading)));
            }
            let (took, offset) = best.context("a clock cannot be read")?;
            offsets.push((offset, took));
        }
        let (first, took) = offsets[0];
        let mut wrong = Vec::new();
        for (number, (offset, other)) in (2..).zip(&offsets[1..]) {
            let apart = offset.abs_diff(first).saturating_sub((took + other) / 2);
            if apart > CLOCKS_US {
                wrong.push(format!("the clocks of the generator's parts 1 and {number} are at least {apart} µs apart"));
            }
        }
        Ok((first, wrong))
    }

    async fn open(&self, gate: Gate, at_us: Option<u64>) -> anyhow::Result<()> {
        let name = serde_json::to_value(gate)?;
        let query = format!("gate={}", name.as_str().unwrap_or_default());
        let query = at_us.map_or(query.clone(), |at| format!("{query}&at_us={at}"));
        let opened = self.urls.iter().map(|url| self.client.post(format!("{url}/open?{query}")).send());
        for answer in futures_util::future::join_all(opened).await {
            answer
                .and_then(reqwest::Response::error_for_status)
                .with_context(|| format!("a part does not pass {gate:?}"))?;
        }
        Ok(())
    }

    async fn fetch(&self, url: &str) -> anyhow::Result<RunResult> {
        let request = self.client.get(format!("{url}/run")).timeout(Duration::from_secs(120));
        let bytes = request.send().await?.error_for_status()?.bytes().await?;
        let kept = tempfile::NamedTempFile::new()?;
        std::fs::write(kept.path(), &bytes)?;
        Ok(tokio::task::spawn_blocking(move || file::read(kept.path())).await??)
    }
}

fn signed(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}
