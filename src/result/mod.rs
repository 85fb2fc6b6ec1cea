//! What a run leaves behind: the versioned file between `load` and `report`, the ledger and the summary made from it.
//!
//! Leaf: imports nothing of ours but [`crate::domain`]. Strangers recompute every verdict from these files alone.

/// Computes the figures from the columns.
mod figures;
/// Reading and writing run files.
pub mod file;
/// Finds the event and the like of a version.
mod index;
/// What k6 scripts leave.
pub mod k6;
/// Joins likes, events and arrivals into classes and proves that nothing was lost or counted twice.
pub mod ledger;
/// One run of the parts several generators made.
pub mod merge;
/// Noticing and healing.
mod outage;
/// What Prometheus saw of a run.
pub mod snapshot;
/// The figures of one run that reports compare.
pub mod summary;
/// A good history for tests to break.
#[cfg(test)]
pub(crate) mod synthetic;
/// Whether a run counts.
mod validity;
/// The walk along the arrivals that they are taken from.
mod walk;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::{Arm, PostId, Transport};

/// The format's number; a reader refuses another.
pub const FORMAT: u32 = 1;

/// One run: the header (JSON, the file's first line) and the columns behind it. All times are µs after `origin_us`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunResult {
    /// Everything but the columns.
    pub header: Header,
    /// One entry per due like, in due order.
    pub likes: LikeColumns,
    /// One entry per distinct (post, version) some viewer saw as a change.
    pub events: EventColumns,
    /// One entry per update a viewer received: the arrival matrix, in sparse form.
    pub arrivals: ArrivalColumns,
}

/// The first line of a run file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: u32,
    /// The generator's version.
    pub pushlab: String,
    /// Which cell of which plan this run is; none for a bare `load`.
    pub cell: Option<Cell>,
    /// What was asked for.
    pub config: RunConfig,
    /// Unix time in µs to which all other times are relative.
    pub origin_us: u64,
    /// Ends of the phases, µs after the origin: warm-up ends, measurement ends, cool-down ends (the last like is due before it).
    pub warmup_end_us: u64,
    /// See `warmup_end_us`; the window is [warmup_end, measure_end) by *due* time.
    pub measure_end_us: u64,
    /// See `warmup_end_us`.
    pub cooldown_end_us: u64,
    /// The posts, by column index.
    pub posts: Vec<PostId>,
    /// Every viewer session, by column index: a reconnect is a new session of the same viewer.
    pub sessions: Vec<Session>,
    /// State of each post (by column index) asked over HTTP after the last answer: (likes, version); before the run in `initial`.
    pub finals: Vec<(u64, u64)>,
    /// State of each post before the first like: (likes, version).
    pub initial: Vec<(u64, u64)>,
    /// Whether every live viewer reached the final versions before the time allowed.
    pub converged: bool,
    /// How the generator itself did.
    pub generator: GeneratorHealth,
    /// The pods' counters over the run, one entry per admin URL; empty when none was given.
    pub pods: Vec<PodCounters>,
    /// What `compare` saw from outside: processes, markers, edge; none for a bare `load`.
    pub observed: Option<Observed>,
}

/// The place of a run in a plan.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Cell {
    /// Running number in the executed order.
    pub index: u32,
    /// Stable name: question, levels, repetition.
    pub id: String,
    /// The question it serves: `Q1`, `Q2`, …
    pub question: String,
    /// Factor → level, for example `arm` → `sse-post`, `edge` → `nginx-least-conn`, `rate` → `10`.
    pub levels: BTreeMap<String, String>,
    /// The pairs it belongs to.
    pub pairs: Vec<PairRef>,
    /// The metric its question's verdict is about, named in the plan: a field of [`summary::RunSummary`].
    pub primary_metric: String,
    /// Offered ÷ capacity measured here before the cell ran; none where it was not calibrated.
    pub offered_over_capacity: Option<f64>,
    /// Why earlier attempts at this cell were INVALID, one sentence each; only cells in no pair are tried again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invalid_before: Vec<String>,
}

/// Membership in a pair: two adjacent runs that differ in one factor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PairRef {
    /// The claim, for example `arm: sse-post / stomp-post @ edge=direct`.
    pub claim: String,
    /// Number of the pair within its claim.
    pub number: u32,
    /// `a` or `b`: the ratio is A ÷ B.
    pub side: char,
}

/// What `load` was asked to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// The arm.
    pub arm: Arm,
    /// Where streams and likes go, round robin when several.
    pub base_urls: Vec<String>,
    /// Viewers (concurrent; with a population: the mean).
    pub viewers: u32,
    /// Liking users, each a session of its own.
    pub likers: u32,
    /// Likes per second over all posts.
    pub rate: f64,
    /// Number of posts; viewer i watches post i mod posts.
    pub posts: u32,
    /// `poisson` or `uniform`.
    pub schedule: String,
    /// Seed of due times, choices and jitter.
    pub seed: u64,
    /// Phases in seconds.
    pub warmup_s: f64,
    /// See `warmup_s`.
    pub measure_s: f64,
    /// See `warmup_s`.
    pub cooldown_s: f64,
    /// CPUs the generator was pinned to; empty: not pinned.
    pub cpus: Vec<usize>,
    /// Viewers that come and go; none: all stay for the run.
    pub population: Option<Population>,
    /// Keys and repetition of unknown outcomes until known (runs with faults).
    pub idempotent: bool,
    /// Viewers beside the others that read nothing until the cool-down ends: [`Session::slow`].
    pub slow_readers: u32,
    /// The heartbeat period the viewers expect, in seconds.
    pub heartbeat_s: f64,
    /// What the SSE viewers emulate, if not a client that sees every byte: `native`, `watchdog`, `named-heartbeat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_client: Option<String>,
    /// Which part of the run this file is, if not the whole: its likes and viewers are every n-th of those above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<merge::Part>,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            arm: Arm::SsePost,
            base_urls: Vec::new(),
            viewers: 1,
            likers: 1,
            rate: 1.0,
            posts: 1,
            schedule: "poisson".into(),
            seed: 1,
            warmup_s: 0.0,
            measure_s: 1.0,
            cooldown_s: 0.0,
            cpus: Vec::new(),
            population: None,
            idempotent: false,
            slow_readers: 0,
            heartbeat_s: 10.0,
            sse_client: None,
            part: None,
        }
    }
}

/// Viewers that arrive by a Poisson process and stay for log-normal times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Population {
    /// Mean session length in seconds.
    pub mean_s: f64,
    /// σ of the underlying normal distribution.
    pub sigma: f64,
}

/// One connection of one viewer, from its first attempt to its end.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Session {
    /// The viewer.
    pub viewer: u32,
    /// The post it watches, by column index.
    pub post: u32,
    /// When the connection was attempted.
    pub attempted_us: u32,
    /// When the snapshot arrived; none: it never did.
    pub joined_us: Option<u32>,
    /// The snapshot's version.
    pub joined_version: u64,
    /// The last version seen by this viewer's previous session (what a resume must not lose).
    pub resumed_from: Option<u64>,
    /// When it ended; none: alive at the end of the run.
    pub ended_us: Option<u32>,
    /// Why it ended: `left` (by plan), `eof`, `reset`, `silent` (no byte for two heartbeats), `refused`, `error`, or the server's own word;
    /// [`GAVE_UP`] and one of these: its emulated client does not come back (a native EventSource that was refused).
    pub reason: Option<String>,
    /// The pod that served it (response header `X-Pushlab-Pod`), if told.
    pub pod: Option<String>,
    /// A stalled viewer (`--slow-readers`): in the ledger like any other, but no part of latencies.
    #[serde(default)]
    pub slow: bool,
}

/// Likes, one entry each.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LikeColumns {
    /// When it was due.
    pub due_us: Vec<u32>,
    /// When the generator sent it.
    pub sent_us: Vec<u32>,
    /// When its answer arrived; 0: never.
    pub answered_us: Vec<u32>,
    /// Post by column index.
    pub post: Vec<u32>,
    /// Version given by the answer; 0 unless `Ok` and changed.
    pub version: Vec<u32>,
    /// [`Outcome`] as a number.
    pub outcome: Vec<u8>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Answered 2xx / RECEIPT.
    Ok = 0,
    /// Answered with a failure: certainly not counted.
    Failed = 1,
    /// Time-out or reset: may have been counted.
    Unknown = 2,
    /// Never sent: the generator could not (counted against it).
    Unsent = 3,
}

/// Events, one entry per distinct (post, version) seen as a change.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EventColumns {
    /// Post by column index.
    pub post: Vec<u32>,
    /// Its newest version.
    pub version: Vec<u32>,
    /// It covers (prev, version].
    pub prev: Vec<u32>,
    /// The count it carries.
    pub likes: Vec<u32>,
    /// When it was committed, by the pod's clock.
    pub committed_us: Vec<u32>,
}

/// Arrivals, one entry per update received, grouped by session in order of arrival.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ArrivalColumns {
    /// Session by column index.
    pub session: Vec<u32>,
    /// Version.
    pub version: Vec<u32>,
    /// Kernel receive stamp. The top bit is set when the update was a snapshot.
    pub at_us: Vec<u32>,
}

/// How the reason of a session begins whose viewer does not come back by its client's rules: no live viewer, and no fault
/// of the server's, but a final value that was lost on somebody.
pub const GAVE_UP: &str = "gave up: ";

/// Top bit of [`ArrivalColumns::at_us`].
pub const SNAPSHOT: u32 = 1 << 31;

/// How the generator itself did; a run in which it was the bottleneck is INVALID.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GeneratorHealth {
    /// sent − due, p50/p99/p99.9 in µs.
    pub schedule_lag_us: [f64; 3],
    /// user-space read − kernel stamp, p50/p99/p99.9 in µs.
    pub stamp_to_read_us: [f64; 3],
    /// Their 90th percentiles: sent − due, read − stamp; what a run of few likes is judged by.
    #[serde(default)]
    pub p90_us: [f64; 2],
    /// CPU seconds of the generator within the window, and the window's length.
    pub cpu_s: f64,
    /// See `cpu_s`.
    pub window_s: f64,
    /// CPU seconds in the window that kept the generator's cores awake at the lowest priority; not in `cpu_s`.
    #[serde(default)]
    pub awake_s: f64,
    /// Seconds in the window that a hypervisor took from the cores of the generator's machine, summed over them.
    #[serde(default)]
    pub stolen_s: f64,
    /// Threads × window: share = `cpu_s` / `window_s` / cores given.
    pub cores: f64,
    /// Kernel stamps were had (else user-space stamps, and the report says so).
    pub kernel_stamps: bool,
    /// Bytes received by viewers within the window, headers of our protocols included.
    pub received_bytes: u64,
    /// Connections and file descriptors held at the middle of the window, viewers and likers apart.
    pub viewer_connections: u32,
    /// See `viewer_connections`.
    pub liker_connections: u32,
    /// See `viewer_connections`.
    pub fds: u32,
    /// Likes sent once more because their outcome was unknown (idempotent runs), counted as often as that happened.
    #[serde(default)]
    pub retried: u64,
    /// Things that went wrong in the generator, in words; non-empty makes the run INVALID.
    pub problems: Vec<String>,
}

/// One pod's counters over the run (differences of two scrapes).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PodCounters {
    /// Admin URL.
    pub admin_url: String,
    /// False when the second scrape failed (the pod died): its counters are bounded by the last scrape.
    pub complete: bool,
    /// Versions not sent because a newer one was sent instead, over all viewers.
    pub conflated: u64,
    /// Versions not sent because they reached the pod after a newer one (or never), over all viewers.
    pub superseded: u64,
    /// Versions dropped by a bounded queue, over all viewers.
    pub dropped: u64,
    /// Updates written to sockets.
    pub deliveries: u64,
    /// Socket writes that carried them.
    pub socket_writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Every other counter, by its Prometheus name with labels.
    pub other: BTreeMap<String, f64>,
}

/// What `compare` saw from outside.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// Processes of the stack.
    pub processes: Vec<ProcessUse>,
    /// Things that were done to the stack (`pod added`, `pod killed`, `edge reloaded`), µs after the origin.
    pub markers: Vec<Marker>,
    /// Viewer connections per pod over time.
    pub connections: Vec<PodConnections>,
    /// Scenario-specific figures, name → value, units in the name.
    pub figures: BTreeMap<String, f64>,
    /// Scenario-specific assertions that failed (Q8 and others); non-empty fails the run.
    pub violations: Vec<String>,
}

/// CPU and memory of one process over the window.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProcessUse {
    /// `pod-1`, `nginx`, `mariadb`, `nats`, `generator`, …
    pub name: String,
    /// User CPU seconds in the window.
    pub user_s: f64,
    /// System CPU seconds in the window.
    pub system_s: f64,
    /// Resident set at the end of the window, bytes.
    pub rss_bytes: u64,
    /// Open file descriptors at the end of the window.
    pub fds: u32,
}

/// Something done to the stack.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Marker {
    /// When.
    pub at_us: u64,
    /// What.
    pub label: String,
    /// It ends a fault (`released`, `started again`) instead of being one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recovery: bool,
}

/// Open viewer connections of one pod over time.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PodConnections {
    /// `pod-1`, …
    pub pod: String,
    /// (µs after the origin, connections).
    pub samples: Vec<(u64, u32)>,
}

/// Everything about one executed plan that is not a run: kept beside the run files as `environment.json`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Environment {
    /// `embedded`, `local`, `remote`.
    pub stack: String,
    /// Why this stack, and what it cannot show, as sentences.
    pub notes: Vec<String>,
    /// The plan's name and the command that repeats it.
    pub plan: String,
    /// The command that repeats the whole.
    pub command: String,
    /// When it began, Unix seconds.
    pub started: u64,
    /// `cpu`, `kernel`, `cores`, `memory`, `nofile`, `clock`, … and `pushlab`, `nats-server`, `mariadbd`, `nginx` versions.
    pub facts: BTreeMap<String, String>,
    /// What is equal between the arms, from the running configuration: (what, SSE, STOMP, equal?, measured cost or note).
    pub parity: Vec<ParityRow>,
    /// Calibrations: name → value with unit in the name.
    pub calibration: BTreeMap<String, f64>,
}

/// One row of the parity sheet.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ParityRow {
    /// What is compared.
    pub what: String,
    /// Value on the SSE side.
    pub sse: String,
    /// Value on the STOMP side.
    pub stomp: String,
    /// Equal or not.
    pub equal: bool,
    /// Where not: its measured cost, or why it cannot be equal.
    pub note: String,
}

/// The transport of a run's viewers.
impl RunConfig {
    /// How this run's viewers are served.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.arm.transport()
    }
}
