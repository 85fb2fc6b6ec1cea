//! What metrics and traces cost: CPU per delivery of the same fan-out with and without them, in interleaved bursts of one run.

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{anyhow, ensure};
use statrs::distribution::{ContinuousCDF, StudentsT};
use tokio_util::sync::CancellationToken;

use super::wire::{Frames, Pace};
use super::{Addresses, Burst, Worker, median, name};
use crate::domain::Transport;
use crate::hub::Hub;
use crate::telemetry::Metrics;
use crate::telemetry::trace::export::Tracing;

/// Options.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Viewers of one post per transport; several numbers, several tables. The fewer, the more a span weighs
    #[arg(long, default_value = "1000,20", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub viewers: Vec<u32>,
    /// Length of one burst, seconds
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Rounds per transport, each with a burst of every arm
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(3..=1000))]
    pub rounds: u32,
    /// Core of the pod's part
    #[arg(long, default_value_t = 0)]
    pub sender_cpu: usize,
    /// Core of the readers and of the collector
    #[arg(long, default_value_t = 1)]
    pub reader_cpu: usize,
}

/// What is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arm {
    /// Nothing: deliveries are counted and not timed.
    Bare,
    /// As in every pod: each delivery is timed; scraped once a second. Traces are off.
    Metrics,
    /// The same once more: what the instrument shows where there is nothing.
    Again,
    /// Metrics, and traces of one like in a hundred.
    Some,
    /// Metrics, and traces of every like.
    All,
}

const ARMS: [(Arm, &str); 5] = [
    (Arm::Bare, "no metrics"),
    (Arm::Metrics, "metrics"),
    (Arm::Again, "metrics, again"),
    (Arm::Some, "+ traces, 1 %"),
    (Arm::All, "+ traces, 100 %"),
];

impl FromStr for Arm {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let arm = text.parse().ok().and_then(|at: usize| ARMS.get(at));
        arm.map(|(arm, _)| *arm).ok_or_else(|| anyhow!("no arm {text}"))
    }
}

/// The sender's part: its exporters.
#[derive(Debug, Default)]
pub(super) struct Arms {
    some: Tracing,
    all: Tracing,
}

impl Arms {
    pub(super) fn open(endpoint: &str) -> anyhow::Result<Self> {
        Ok(Self { some: Tracing::of_share(0.01, endpoint)?, all: Tracing::of_share(1.0, endpoint)? })
    }

    /// Sets everything to this arm; scraping ends when the answer is dropped.
    pub(super) fn begin(&self, arm: Arm, hub: &Hub<Frames>, pace: &Pace) -> Option<mpsc::Sender<()>> {
        pace.set_tracer(match arm {
            Arm::Some => self.some.tracer(),
            Arm::All => self.all.tracer(),
            _ => &crate::telemetry::Tracer::OFF,
        });
        hub.measure(arm != Arm::Bare);
        let (scraping, over) = mpsc::channel();
        let hub = hub.clone();
        (arm != Arm::Bare).then(|| {
            std::thread::spawn(move || {
                let metrics = Metrics::new();
                while over.recv_timeout(Duration::from_secs(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
                    std::hint::black_box((hub.counters(), metrics.text().map(|text| text.len()).ok()));
                }
            });
            scraping
        })
    }

    pub(super) fn flush(&self) {
        self.some.flush();
        self.all.flush();
    }

    /// Exported, failed and dropped so far, with all likes traced.
    pub(super) fn spans(&self) -> [u64; 3] {
        let counters = self.all.counters();
        [&counters.exported, &counters.failed, &counters.dropped].map(|n| n.load(Ordering::Relaxed))
    }
}

/// Runs it until done or `shutdown`.
///
/// # Errors
/// A message for the user.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    ensure!(config.seconds.is_finite() && config.seconds > 0.0, "--seconds must be more than 0");
    let conducted =
        tokio::task::spawn_blocking(move || config.viewers.iter().try_for_each(|viewers| conduct(&config, *viewers)));
    tokio::select! {
        done = conducted => done??,
        () = shutdown.cancelled() => std::process::exit(1),
    }
    Ok(ExitCode::SUCCESS)
}

fn conduct(config: &Config, viewers: u32) -> anyhow::Result<()> {
    let mut sender = Worker::start("sender", config.sender_cpu)?;
    let addresses: Addresses = serde_json::from_str(&sender.hear()?)?;
    let mut reader = Worker::start("reader", config.reader_cpu)?;
    let collector = reader.ask("collector")?;
    sender.ask(&format!("collector http://{collector}"))?;
    println!(
        "\n{viewers} viewers of one post, saturated fan-out, loopback; sender on core {}, readers and collector on core {}; {} \
         rounds of {} bursts of {} s in turning order; CPU of the sender's process, export included. A trace has all six spans \
         of a like that is taken and fanned out in one pod",
        config.sender_cpu,
        config.reader_cpu,
        config.rounds,
        ARMS.len(),
        config.seconds
    );
    for transport in Transport::ALL {
        reader.ask(&format!("connect {} {} {viewers}", transport.label(), addresses.http))?;
        sender.ask(&format!("rss {}", transport.label()))?;
        let before = spans(&mut sender)?;
        let mut rounds = Vec::new();
        // The first one warms up.
        for round in 0..=config.rounds as usize {
            let mut bursts = [None; ARMS.len()];
            for step in 0..ARMS.len() {
                // Each arm at each place, and forwards as often as backwards.
                let at = (round / 2 + if round % 2 == 0 { step } else { ARMS.len() - 1 - step }) % ARMS.len();
                let order = format!("arm {at} {} {}", transport.label(), config.seconds);
                let burst: Burst = serde_json::from_str(&sender.ask(&order)?)?;
                ensure!(burst.deliveries > 0, "a burst delivered nothing: are {viewers} sockets within the limits?");
                bursts[at] = Some(burst);
            }
            if round > 0 {
                rounds.push(bursts.map(|burst| burst.expect("each arm had its turn")));
            }
        }
        let after = spans(&mut sender)?;
        print(transport, viewers, &rounds)?;
        let [exported, failed, dropped] = std::array::from_fn(|at| after[at] - before[at]);
        println!(
            "{:18} at 100 %: {exported} spans exported, {failed} failed, {dropped} dropped (the queue was full)",
            ""
        );
    }
    Ok(())
}

fn spans(sender: &mut Worker) -> anyhow::Result<[u64; 3]> {
    Ok(serde_json::from_str(&sender.ask("spans")?)?)
}

fn print(transport: Transport, viewers: u32, rounds: &[[Burst; ARMS.len()]]) -> anyhow::Result<()> {
    println!(
        "\n{:18} {:>13} {:>12} {:>34} {:>34}",
        name(transport),
        "CPU µs/deliv",
        "updates/s",
        "÷ no metrics (95 %)",
        "÷ metrics (95 %)"
    );
    for (at, (_, title)) in ARMS.iter().enumerate() {
        let mut costs: Vec<f64> = rounds.iter().map(|round| round[at].cost()).collect();
        let (deliveries, wall) =
            rounds.iter().fold((0, 0), |(d, w), round| (d + round[at].deliveries, w + round[at].wall_us));
        let updates = deliveries as f64 / f64::from(viewers) / (wall as f64 / 1e6);
        let against = |other: usize| -> anyhow::Result<String> {
            if at <= other {
                return Ok(String::new());
            }
            let logs: Vec<f64> = rounds.iter().map(|round| (round[at].cost() / round[other].cost()).ln()).collect();
            let (low, middle, high) = interval(&logs)?;
            Ok(format!("{middle:.4} ({low:.4}…{high:.4})"))
        };
        let (bare, metrics) = (against(0)?, against(1)?);
        println!("{title:18} {:>13.4} {updates:>12.0} {bare:>34} {metrics:>34}", median(&mut costs));
    }
    Ok(())
}

/// Geometric mean of ratios, given as logarithms, with its 95 % interval (Student).
fn interval(logs: &[f64]) -> anyhow::Result<(f64, f64, f64)> {
    let n = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / n;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = StudentsT::new(0.0, 1.0, n - 1.0)?.inverse_cdf(0.975) * (variance / n).sqrt();
    Ok(((mean - half).exp(), mean.exp(), (mean + half).exp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ratios_have_a_narrow_interval_and_unequal_ones_hold_their_mean() {
        let (low, middle, high) = interval(&[0.1, 0.1, 0.1]).unwrap();
        assert!((middle - 0.1_f64.exp()).abs() < 1e-12 && high - low < 1e-9);
        // t(0.975, 2) = 4.3027; s = 0.1.
        let (low, middle, high) = interval(&[-0.1, 0.0, 0.1]).unwrap();
        assert!((middle - 1.0).abs() < 1e-12 && (high.ln() - 4.3027 * 0.1 / 3.0_f64.sqrt()).abs() < 1e-4);
        assert!((low * high - 1.0).abs() < 1e-12);
    }
}
