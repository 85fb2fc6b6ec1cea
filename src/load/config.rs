//! Options of `pushlab load`, checked before anything starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::ValueEnum;
use serde::Deserialize;

use crate::bearer::BearerArgs;
use crate::domain::{Arm, PostId};
use crate::result::merge::Part;
use crate::result::{Population, RunConfig};

/// Longest run: arrivals are kept as 31 bits of microseconds (2^31 µs = 35.8 min), the rest is for connecting and converging.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// Options.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Where likes go; several are used round robin
    #[arg(long, value_name = "URL", required = true, value_delimiter = ',', env = "PUSHLAB_BASE_URL")]
    pub base_url: Vec<String>,
    /// Where streams are opened; the base URLs unless given
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "PUSHLAB_STREAM_URL")]
    pub stream_url: Vec<String>,
    /// Admin URLs of all pods: their counters are read before the viewers connect and after the end
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "PUSHLAB_ADMIN_URL")]
    pub admin_url: Vec<String>,
    /// Delivery transport and write channel
    #[arg(long, value_enum, default_value = "sse-post")]
    pub arm: Arm,
    /// Viewers held for the whole run; with --population-mean: their mean number
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub viewers: u32,
    /// Liking users, each a session of its own with at most one like on its way
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub likers: u32,
    /// Likes per second over all posts
    #[arg(long, value_name = "LIKES/S", default_value_t = 1.0)]
    pub rate: f64,
    /// Posts; viewer i watches post i mod N, likes go to random posts (uniform schedule: in turn)
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub posts: u32,
    /// Posts that exist already, instead of new ones
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub post_ids: Vec<PostId>,
    /// When likes are due
    #[arg(long, value_enum, default_value = "poisson")]
    pub schedule: Schedule,
    /// Likes that are sent but not measured, at the start
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub warmup: Duration,
    /// The measured window, by due time
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub measure: Duration,
    /// Likes that are sent but not measured, at the end
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    pub cooldown: Duration,
    /// Seed of due times, session lengths and jitter
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// CPUs for all threads of the generator, for example 1 or 2,3
    #[arg(long, value_name = "CPU", value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// The run file to write
    #[arg(long, value_name = "FILE", default_value = "load.run.gz")]
    pub out: PathBuf,
    /// Viewers come (Poisson) and go: mean length of a session
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub population_mean: Option<Duration>,
    /// σ of the log-normal session length
    #[arg(long, value_name = "SIGMA", default_value_t = 1.0, requires = "population_mean")]
    pub population_sigma: f64,
    /// Give each like an Idempotency-Key and repeat it until its outcome is known (runs with faults)
    #[arg(long)]
    pub idempotent: bool,
    /// Further viewers that read nothing until the cool-down ends
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub slow_readers: u32,
    /// Accept compressed streams (SSE), as browsers do: for proxies that compress
    #[arg(long)]
    pub accept_gzip: bool,
    /// How SSE viewers behave when a stream ends, is refused, or falls silent: an emulation, no browser
    #[arg(long, value_enum, default_value = "fetch")]
    pub sse_client: SseClient,
    /// Heartbeat period expected of the server; a stream silent for two of them is given up
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub heartbeat: Duration,
    /// New viewer connections per second, at the start and in the worst reconnect storm
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub connect_rate: u32,
    /// A like without an answer after this long has an unknown outcome
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub like_timeout: Duration,
    /// How long viewers may take to reach the final values after the last answer
    #[arg(long, default_value = "15s", value_parser = humantime::parse_duration)]
    pub converge: Duration,
    /// The token, when the service asks for one: all likers are its user, whose every POST and SEND counts
    #[command(flatten)]
    pub bearer: BearerArgs,
    /// Make only this part of the load, for example 2/3: of everything every third, from the second on. The other parts are
    /// other processes with the same flags, and --control brings them together
    #[arg(long, value_name = "K/N", default_value_t = Part::WHOLE)]
    pub part: Part,
    /// Wait here to be told to begin, to take stock, and to end: what `compare --stack kubernetes` does
    #[arg(long, value_name = "ADDR", env = "PUSHLAB_LOAD_CONTROL")]
    pub control: Option<SocketAddr>,
    /// Serves /metrics here while the run goes on (port 0: any free one, said on stderr): latencies from the run file's own stamps, likes, viewers
    #[arg(long, value_name = "ADDR", env = "PUSHLAB_METRICS_LISTEN")]
    pub metrics_listen: Option<SocketAddr>,
    /// Serves them on for this long after the end, so that the last scrape has everything
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration, requires = "metrics_listen")]
    pub metrics_linger: Duration,
    /// How to show progress
    #[arg(long, value_enum, default_value = "auto")]
    pub progress: Progress,
}

/// When likes are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Schedule {
    /// Exponential gaps: independent users
    Poisson,
    /// Equal gaps
    Uniform,
}

/// What an SSE viewer notices, and when it comes back. STOMP viewers see every byte, as [`SseClient::Fetch`] does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SseClient {
    /// A page that reads the stream itself by fetch(): sees every byte, comments too, and comes back after anything
    #[default]
    Fetch,
    /// EventSource alone: gives up for good on any answer but a 200 stream, comes back after `retry:` when a stream breaks, never notices silence
    Native,
    /// A page that makes its EventSource anew after two heartbeats without an event; comments are invisible to it, so quiet looks like dead
    Watchdog,
    /// The same, with heartbeats asked for as named events (`?heartbeat=event`), which it sees
    NamedHeartbeat,
}

impl SseClient {
    /// Its name in flags, plans and run files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Native => "native",
            Self::Watchdog => "watchdog",
            Self::NamedHeartbeat => "named-heartbeat",
        }
    }
}

/// How to show progress (on stderr; stdout carries the phase lines).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// A bar on a terminal, lines otherwise
    Auto,
    /// Lines
    Lines,
    /// Nothing
    None,
}

impl Config {
    /// Refuses what cannot run, with a hint.
    ///
    /// # Errors
    /// The first thing that is wrong, in a sentence.
    pub fn validate(&self) -> anyhow::Result<()> {
        ensure!(self.rate.is_finite() && self.rate >= 0.0, "--rate must be 0 or more likes per second");
        ensure!(self.rate == 0.0 || self.likers > 0, "--rate {} needs at least one liker: --likers 1", self.rate);
        ensure!(self.posts > 0, "--posts must be at least 1");
        ensure!(
            self.post_ids.is_empty() || self.posts == 1 || self.posts as usize == self.post_ids.len(),
            "--posts {} and {} --post-ids: leave --posts away",
            self.posts,
            self.post_ids.len()
        );
        ensure!(!self.measure.is_zero(), "--measure must be longer than 0");
        ensure!(
            self.length() <= LONGEST,
            "warm-up, measurement and cool-down together are limited to {}",
            humantime::format_duration(LONGEST)
        );
        ensure!(self.connect_rate > 0, "--connect-rate must be at least 1");
        ensure!(
            !self.heartbeat.is_zero() && !self.like_timeout.is_zero(),
            "--heartbeat and --like-timeout must not be 0"
        );
        ensure!(self.population_sigma >= 0.0 && self.population_sigma <= 4.0, "--population-sigma must be from 0 to 4");
        ensure!(
            self.part.is_whole() || self.control.is_some() && !self.post_ids.is_empty(),
            "--part {} needs --post-ids, since all parts like the same posts, and --control, where they are brought together",
            self.part
        );
        ensure!(self.population_mean.is_none_or(|mean| !mean.is_zero()), "--population-mean must not be 0");
        Ok(())
    }

    /// Warm-up + measurement + cool-down.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.warmup + self.measure + self.cooldown
    }

    /// Number of posts, given or to be created.
    #[must_use]
    pub fn post_count(&self) -> u32 {
        if self.post_ids.is_empty() { self.posts } else { u32::try_from(self.post_ids.len()).unwrap_or(u32::MAX) }
    }

    /// What the run file keeps of it.
    #[must_use]
    pub fn to_run_config(&self) -> RunConfig {
        let schedule = match self.schedule {
            Schedule::Poisson => "poisson",
            Schedule::Uniform => "uniform",
        };
        RunConfig {
            arm: self.arm,
            base_urls: self.base_url.clone(),
            viewers: self.viewers,
            likers: self.likers,
            rate: self.rate,
            posts: self.post_count(),
            schedule: schedule.into(),
            seed: self.seed,
            warmup_s: self.warmup.as_secs_f64(),
            measure_s: self.measure.as_secs_f64(),
            cooldown_s: self.cooldown.as_secs_f64(),
            cpus: self.cpus.clone(),
            population: self
                .population_mean
                .map(|mean| Population { mean_s: mean.as_secs_f64(), sigma: self.population_sigma }),
            idempotent: self.idempotent,
            slow_readers: self.slow_readers,
            heartbeat_s: self.heartbeat.as_secs_f64(),
            sse_client: Some(self.sse_client.name().to_owned()).filter(|_| self.sse_client != SseClient::Fetch),
            part: Some(self.part).filter(|part| !part.is_whole()),
        }
    }
}
