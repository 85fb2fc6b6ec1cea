//! Plans: what is run, as data. A plan crosses factors into cells, and says which cells are pairs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::edges::Edge;
use crate::domain::Arm;
pub use crate::load::SseClient;

/// From grids to cells: crossing, blocks, order, duration.
pub mod expand;

pub use expand::{Planned, estimate};

/// Plans that come with the program: name → text.
pub const PRESETS: [(&str, &str); 7] = [
    ("quick", include_str!("../plans/quick.toml")),
    ("seed", include_str!("../plans/seed.toml")),
    ("full", include_str!("../plans/full.toml")),
    ("faults", include_str!("../plans/faults.toml")),
    ("writes", include_str!("../plans/writes.toml")),
    ("incidents", include_str!("../plans/incidents.toml")),
    ("kind", include_str!("../plans/kind.toml")),
];

/// A plan.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What it is for, in a sentence.
    #[serde(default)]
    pub about: String,
    /// Seed of the order of cells, of due times and of choices.
    #[serde(default = "one")]
    pub order_seed: u64,
    /// Phases of every cell that does not say its own.
    pub phases: Phases,
    /// Which CPUs are whose.
    #[serde(default)]
    pub cpus: CpuSets,
    /// Question → the metric its verdict is about: a field of the run's summary.
    #[serde(default)]
    pub primary: BTreeMap<String, String>,
    /// The grids.
    pub cells: Vec<Grid>,
}

/// Lengths of the phases of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phases {
    /// Likes that are not judged, at first.
    #[serde(deserialize_with = "duration")]
    pub warmup: Duration,
    /// The window.
    #[serde(deserialize_with = "duration")]
    pub measure: Duration,
    /// Likes that are not judged, at last.
    #[serde(deserialize_with = "duration")]
    pub cooldown: Duration,
}

/// CPU sets; absent: the generator gets the last core, everything else the others (one core: no pinning).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuSets {
    /// The generator's.
    pub generator: Option<Vec<usize>>,
    /// Pods', edge's, broker's and database's.
    pub stack: Option<Vec<usize>>,
}

/// What a cell does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Viewers that stay, likes at a rate.
    Latency,
    /// One stream of twenty events: when do they get through the edge?
    Buffering,
    /// A client that never reads, while events keep coming.
    SlowReader,
    /// Viewers that come and go, a pod that is added.
    Balance,
    /// Viewers that come and go while a pod answers fast and wrongly.
    BrokenPod,
    /// Something fails under load: `fault`.
    Faults,
    /// Clients that read their snapshot and then nothing, among viewers that do: `slow_readers`.
    SlowConsumer,
}

impl Scenario {
    /// Its name in plans and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Buffering => "buffering",
            Self::SlowReader => "slow-reader",
            Self::Balance => "balance",
            Self::BrokenPod => "broken-pod",
            Self::Faults => "faults",
            Self::SlowConsumer => "slow-consumer",
        }
    }
}

/// What fails (`faults`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The NATS server is killed and, after `hold`, started again.
    NatsRestart,
    /// The NATS server is stopped (SIGSTOP) for `hold`.
    NatsStop,
    /// The database is killed and, after `hold`, started again.
    DatabaseRestart,
    /// kill -9 of one pod.
    PodKill,
    /// One pod is stopped (SIGSTOP) for `hold`.
    PodHang,
    /// One pod is told to end, and drains.
    PodTerm,
    /// The proxy reads its configuration again.
    ProxyReload,
    /// Somebody else locks the row of the newest post for `hold`.
    RowLock,
    /// No packet passes between the edge and one pod for `hold`.
    BlackholeEdgePod,
    /// No packet passes between viewers and the edge for `hold`.
    BlackholeViewerEdge,
    /// Every pod is replaced by a new one (`kubectl rollout restart`).
    RolloutRestart,
}

impl FaultKind {
    /// Its name in plans, levels and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NatsRestart => "nats-restart",
            Self::NatsStop => "nats-stop",
            Self::DatabaseRestart => "database-restart",
            Self::PodKill => "pod-kill",
            Self::PodHang => "pod-hang",
            Self::PodTerm => "pod-term",
            Self::ProxyReload => "proxy-reload",
            Self::RowLock => "row-lock",
            Self::BlackholeEdgePod => "blackhole-edge-pod",
            Self::BlackholeViewerEdge => "blackhole-viewer-edge",
            Self::RolloutRestart => "rollout-restart",
        }
    }

    /// Whether only the viewers of one pod can feel it.
    #[must_use]
    pub const fn is_of_a_pod(self) -> bool {
        matches!(self, Self::PodKill | Self::PodHang | Self::PodTerm | Self::BlackholeEdgePod)
    }

    /// Whether packets are dropped, which needs a network of the lab's own.
    #[must_use]
    pub const fn needs_namespace(self) -> bool {
        matches!(self, Self::BlackholeEdgePod | Self::BlackholeViewerEdge)
    }

    /// How long it lasts unless the plan says it; zero for what has no end.
    #[must_use]
    pub const fn usual_hold(self) -> Duration {
        match self {
            Self::NatsRestart | Self::DatabaseRestart => Duration::from_secs(1),
            Self::NatsStop | Self::RowLock | Self::BlackholeEdgePod | Self::BlackholeViewerEdge => {
                Duration::from_secs(10)
            }
            Self::PodHang => Duration::from_secs(60),
            Self::PodKill | Self::PodTerm | Self::ProxyReload | Self::RolloutRestart => Duration::ZERO,
        }
    }
}

/// A grid: every combination of the listed levels is a cell. With `compare`, the levels of that one factor are run side
/// by side in blocks, `pairs` times, in mirrored order (A B, B A, …), for every combination of the others.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// The question it serves: `Q1`, `Q2`, …
    pub question: String,
    /// What its cells do.
    pub scenario: Scenario,
    /// The factor whose levels are compared in pairs; absent: no pairs.
    pub compare: Option<Factor>,
    /// Pairs per claim; needs `compare`.
    pub pairs: Option<u32>,
    /// How often each cell is run; without `compare`.
    pub repetitions: Option<u32>,
    /// Delivery and write channel.
    #[serde(default = "arms")]
    pub arm: Vec<Arm>,
    /// What stands before the pods.
    #[serde(default = "direct")]
    pub edge: Vec<Edge>,
    /// nginx' `proxy_buffering`; one cell only for edges that have none.
    #[serde(default = "off")]
    pub buffering: Vec<Switch>,
    /// Pods.
    #[serde(default = "three")]
    pub pods: Vec<u32>,
    /// Posts; viewer i watches post i mod posts.
    #[serde(default = "one_post")]
    pub posts: Vec<u32>,
    /// Viewers (with a population: their mean number).
    #[serde(default = "one_post")]
    pub viewers: Vec<u32>,
    /// Likes per second over all posts.
    #[serde(default = "one_rate")]
    pub rate: Vec<f64>,
    /// Liking users; absent: one per like and second, 1 to 1000.
    pub likers: Option<u32>,
    /// `poisson` or `uniform`.
    #[serde(default)]
    pub schedule: Schedule,
    /// Phases, if not the plan's.
    pub phases: Option<Phases>,
    /// Pods' `--max-age` (0s: never).
    #[serde(default = "never", deserialize_with = "durations")]
    pub max_age: Vec<Duration>,
    /// Whether pods send `X-Accel-Buffering: no`.
    #[serde(default = "accel_no")]
    pub accel: Vec<Accel>,
    /// Whether the edge tries a stream that was answered 503 on another pod.
    #[serde(default = "on")]
    pub retry503: Vec<Switch>,
    /// nginx' `proxy_max_temp_file_size`: `default` or a size such as `0`.
    #[serde(default = "default_temp")]
    pub max_temp_file: Vec<String>,
    /// What the first pod does wrong (`broken-pod`).
    #[serde(default = "sound")]
    pub broken: Vec<Broken>,
    /// What fails (`faults`).
    #[serde(default)]
    pub fault: Vec<FaultKind>,
    /// How long a fault lasts that has an end; absent: 1 s until a killed server is started again, 10 s for a stopped NATS
    /// and a black-holed path, 60 s for a hung pod.
    #[serde(default, deserialize_with = "optional_duration")]
    pub hold: Option<Duration>,
    /// Whether pods read quiet posts again.
    #[serde(default = "on")]
    pub anti_entropy: Vec<Switch>,
    /// What SSE viewers emulate; one cell only for arms that deliver over STOMP.
    #[serde(default = "fetch")]
    pub sse_client: Vec<SseClient>,
    /// Stalled clients beside the viewers (`slow-consumer`).
    #[serde(default = "none_slow")]
    pub slow_readers: Vec<u32>,
    /// Further flags of `serve`, for example `"--resume replay"`; each text is a level.
    #[serde(default = "no_flags")]
    pub pod_flags: Vec<String>,
    /// Heartbeat period of pods, which viewers expect too.
    #[serde(default = "ten_seconds", deserialize_with = "duration")]
    pub heartbeat: Duration,
    /// After how much silence the edge gives a stream up; absent: a heartbeat and a half. Less than a heartbeat cuts
    /// streams that are only quiet.
    #[serde(default, deserialize_with = "optional_duration")]
    pub silence: Option<Duration>,
    /// Viewers that come and go: mean session length.
    #[serde(default, deserialize_with = "optional_duration")]
    pub population_mean: Option<Duration>,
    /// σ of the log-normal session lengths.
    #[serde(default = "sigma")]
    pub population_sigma: f64,
    /// `balance`: how many pods are added; more than one needs a cluster.
    #[serde(default = "one_pod")]
    pub add_pods: u32,
    /// `balance`: mean lifetimes before, and after, a pod is added.
    #[serde(default = "five")]
    pub lifetimes: f64,
}

/// A factor whose levels can be paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Factor {
    /// `arm`.
    Arm,
    /// `edge`.
    Edge,
    /// `buffering`.
    Buffering,
    /// `pods`.
    Pods,
    /// `posts`.
    Posts,
    /// `viewers`.
    Viewers,
    /// `rate`.
    Rate,
    /// `max_age`.
    MaxAge,
    /// `slow_readers`.
    SlowReaders,
    /// `pod_flags`.
    PodFlags,
}

impl Factor {
    /// Its name in levels and claims.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arm => "arm",
            Self::Edge => "edge",
            Self::Buffering => "buffering",
            Self::Pods => "pods",
            Self::Posts => "posts",
            Self::Viewers => "viewers",
            Self::Rate => "rate",
            Self::MaxAge => "max_age",
            Self::SlowReaders => "slow_readers",
            Self::PodFlags => "pod_flags",
        }
    }
}

/// `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Spacing of due times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Independent arrivals.
    #[default]
    Poisson,
    /// Equal steps.
    Uniform,
}

/// The header `X-Accel-Buffering` on streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// `X-Accel-Buffering: no`, as in production.
    No,
    /// No such header.
    Unset,
}

/// What a pod does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Broken {
    /// Nothing.
    None,
    /// It answers streams 503 at once.
    RefuseFast,
    /// It answers streams 200 and ends them at once.
    #[serde(rename = "polite-200")]
    Polite200,
}

impl Broken {
    /// The value of `--break`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::RefuseFast => "refuse-fast",
            Self::Polite200 => "polite-200",
        }
    }
}

impl Plan {
    /// A preset by name, or a file; with its text, which is kept beside the results.
    ///
    /// # Errors
    /// When there is no such plan, or it says something that cannot be: file, line, field and what to do.
    pub fn load(name: &str) -> anyhow::Result<(Self, String)> {
        let preset = PRESETS.iter().find(|(preset, _)| *preset == name).map(|(_, text)| (*text).to_owned());
        let text = match preset {
            Some(text) => text,
            None if Path::new(name).extension().is_some_and(|e| e == "toml") => {
                std::fs::read_to_string(name).with_context(|| format!("cannot read the plan {name}"))?
            }
            None => bail!(
                "there is no plan {name:?}; give {} or a file that ends in .toml",
                PRESETS.map(|(name, _)| name).join(", ")
            ),
        };
        let plan = Self::parse(&text).with_context(|| format!("the plan {name} is not usable"))?;
        Ok((plan, text))
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// What is wrong and in which line.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let plan: Self = toml::from_str(text)?;
        for (number, grid) in plan.cells.iter().enumerate() {
            if let Err((field, why)) = grid.check() {
                let place = line_of(text, number, field);
                bail!("line {place}, [[cells]] number {}, field `{field}`: {why}", number + 1);
            }
            let window = grid.phases.unwrap_or(plan.phases).measure;
            let longest = grid.fault.iter().map(|fault| grid.hold.unwrap_or_else(|| fault.usual_hold())).max();
            if longest.is_some_and(|hold| !hold.is_zero() && window < hold + Duration::from_secs(4)) {
                let place = line_of(text, number, if grid.hold.is_some() { "hold" } else { "fault" });
                let why = "the window must be 4 s longer than the fault lasts: give `hold`, or longer `phases`";
                bail!("line {place}, [[cells]] number {}: {why}", number + 1);
            }
        }
        if plan.cells.is_empty() {
            bail!("no [[cells]]");
        }
        Ok(plan)
    }
}

impl Grid {
    /// The first field that cannot be, and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let number = self.question.strip_prefix('Q').and_then(|number| number.parse::<u32>().ok());
        if !number.is_some_and(|number| (1..=14).contains(&number)) {
            return Err(("question", format!("{:?} is not one of Q1 … Q14", self.question)));
        }
        let empty = [
            ("arm", self.arm.is_empty()),
            ("edge", self.edge.is_empty()),
            ("buffering", self.buffering.is_empty()),
            ("pods", self.pods.is_empty()),
            ("posts", self.posts.is_empty()),
            ("viewers", self.viewers.is_empty()),
            ("rate", self.rate.is_empty()),
            ("max_age", self.max_age.is_empty()),
            ("accel", self.accel.is_empty()),
            ("retry503", self.retry503.is_empty()),
            ("max_temp_file", self.max_temp_file.is_empty()),
            ("broken", self.broken.is_empty()),
            ("anti_entropy", self.anti_entropy.is_empty()),
            ("sse_client", self.sse_client.is_empty()),
            ("slow_readers", self.slow_readers.is_empty()),
            ("pod_flags", self.pod_flags.is_empty()),
        ];
        if let Some((field, _)) = empty.into_iter().find(|(_, empty)| *empty) {
            return Err((field, "the list is empty; leave it out for its default".into()));
        }
        if self.pods.iter().any(|pods| !(1..=64).contains(pods)) {
            return Err(("pods", "1 to 64".into()));
        }
        if !(1..=32).contains(&self.add_pods) {
            return Err(("add_pods", "1 to 32".into()));
        }
        if self.posts.contains(&0) {
            return Err(("posts", "at least 1".into()));
        }
        if self.rate.iter().any(|rate| !(*rate > 0.0 && *rate <= 1e6)) {
            return Err(("rate", "more than 0 and at most 1000000 likes per second".into()));
        }
        match (self.compare, self.pairs, self.repetitions) {
            (None, Some(_), _) => return Err(("pairs", "needs `compare`: the factor whose levels are paired".into())),
            (Some(_), None, _) => return Err(("compare", "needs `pairs`: how many pairs per claim".into())),
            (Some(_), _, Some(_)) => {
                return Err(("repetitions", "is for cells without `compare`; `pairs` says it".into()));
            }
            (None, None, Some(0)) => return Err(("repetitions", "at least 1".into())),
            (Some(factor), Some(pairs), None) => {
                if pairs == 0 {
                    return Err(("pairs", "at least 1".into()));
                }
                if self.levels_of(factor) < 2 {
                    return Err((
                        factor.name(),
                        "`compare` needs two levels of it (the same one twice for an A/A)".into(),
                    ));
                }
            }
            _ => {}
        }
        if self.compare == Some(Factor::Buffering) && !self.edge.iter().all(|edge| edge.buffers()) {
            return Err(("edge", "`compare = \"buffering\"` needs edges that can buffer: nginx".into()));
        }
        if self.compare == Some(Factor::Edge) && self.buffering.len() > 1 {
            return Err((
                "buffering",
                "`compare = \"edge\"` needs one level of it: not every edge has the switch".into(),
            ));
        }
        if self
            .max_temp_file
            .iter()
            .any(|s| s != "default" && !s.trim_end_matches(['k', 'm', 'g']).bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(("max_temp_file", "`default`, or an nginx size such as \"0\" or \"8m\"".into()));
        }
        if matches!(self.scenario, Scenario::Balance | Scenario::BrokenPod) && self.population_mean.is_none() {
            return Err(("population_mean", "this scenario needs the mean session length, for example \"60s\"".into()));
        }
        if (self.scenario == Scenario::Faults) == self.fault.is_empty() {
            let why = "what fails, for example [\"pod-kill\"]: for the scenario `faults`, and for no other";
            return Err(("fault", why.into()));
        }
        if self.fault.iter().any(|fault| fault.is_of_a_pod()) && self.pods.iter().any(|pods| *pods < 2) {
            return Err(("pods", "a fault of one of them needs at least 2".into()));
        }
        let edged = [FaultKind::ProxyReload, FaultKind::BlackholeEdgePod, FaultKind::BlackholeViewerEdge];
        if self.fault.iter().any(|fault| edged.contains(fault)) && !self.edge.iter().all(|edge| edge.buffers()) {
            return Err(("edge", "a reload of the proxy, or a path from or to it, needs nginx".into()));
        }
        if self.pod_flags.iter().any(|flags| flags.contains("--write event") || flags.contains("--write=event")) {
            return Err((
                "pod_flags",
                "its answers carry no version, so no ledger closes: `pushlab bench writes`".into(),
            ));
        }
        if self.pod_flags.iter().any(|flags| !flags.is_empty() && !flags.starts_with("--")) {
            return Err(("pod_flags", "each text is empty or begins with the first flag: \"--resume replay\"".into()));
        }
        if self.silence.is_some_and(|silence| silence < Duration::from_secs(1)) {
            return Err(("silence", "at least 1s: edges count whole seconds".into()));
        }
        if self.heartbeat < Duration::from_secs(1) {
            return Err(("heartbeat", "at least 1s".into()));
        }
        Ok(())
    }

    fn levels_of(&self, factor: Factor) -> usize {
        match factor {
            Factor::Arm => self.arm.len(),
            Factor::Edge => self.edge.len(),
            Factor::Buffering => self.buffering.len(),
            Factor::Pods => self.pods.len(),
            Factor::Posts => self.posts.len(),
            Factor::Viewers => self.viewers.len(),
            Factor::Rate => self.rate.len(),
            Factor::MaxAge => self.max_age.len(),
            Factor::SlowReaders => self.slow_readers.len(),
            Factor::PodFlags => self.pod_flags.len(),
        }
    }
}

/// Line of a field within the grid of that number, else the line of the grid itself.
fn line_of(text: &str, grid: usize, field: &str) -> usize {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let heads = lines.iter().enumerate().filter(|(_, line)| line.starts_with("[[cells]]"));
    let begin = heads.map(|(line, _)| line).nth(grid).unwrap_or_default();
    let within = lines.iter().enumerate().skip(begin + 1).take_while(|(_, line)| !line.starts_with("[["));
    let mut named = within.filter(|(_, line)| line.split(['=', ' ']).next() == Some(field));
    named.next().map_or(begin, |(line, _)| line) + 1
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text)
        .map_err(|e| D::Error::custom(format!("{text:?} is not a duration such as \"30s\": {e}")))
}

fn optional_duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    duration(from).map(Some)
}

fn durations<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
    #[derive(Deserialize)]
    struct Item(#[serde(deserialize_with = "duration")] Duration);
    Ok(Vec::<Item>::deserialize(from)?.into_iter().map(|item| item.0).collect())
}

fn one() -> u64 {
    1
}
fn arms() -> Vec<Arm> {
    Arm::ALL.to_vec()
}
fn direct() -> Vec<Edge> {
    vec![Edge::Direct]
}
fn off() -> Vec<Switch> {
    vec![Switch::Off]
}
fn on() -> Vec<Switch> {
    vec![Switch::On]
}
fn three() -> Vec<u32> {
    vec![3]
}
fn one_pod() -> u32 {
    1
}
fn one_post() -> Vec<u32> {
    vec![1]
}
fn one_rate() -> Vec<f64> {
    vec![1.0]
}
fn never() -> Vec<Duration> {
    vec![Duration::ZERO]
}
fn accel_no() -> Vec<Accel> {
    vec![Accel::No]
}
fn default_temp() -> Vec<String> {
    vec!["default".into()]
}
fn sound() -> Vec<Broken> {
    vec![Broken::None]
}
fn none_slow() -> Vec<u32> {
    vec![0]
}
fn no_flags() -> Vec<String> {
    vec![String::new()]
}
fn fetch() -> Vec<SseClient> {
    vec![SseClient::Fetch]
}
fn ten_seconds() -> Duration {
    Duration::from_secs(10)
}
fn sigma() -> f64 {
    1.0
}
fn five() -> f64 {
    5.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(cells: &str) -> String {
        let head = "name = \"x\"\nphases = { warmup = \"1s\", measure = \"1s\", cooldown = \"1s\" }\n";
        format!("{:#}", Plan::parse(&format!("{head}{cells}")).unwrap_err())
    }

    #[test]
    fn a_bad_plan_is_told_by_line_and_field() {
        let said = problem("[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\nrat = [1]\n");
        assert!(said.contains("line 6") && said.contains("rat"), "{said}");
        let said = problem("[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\nedge = [\"apache\"]\n");
        assert!(said.contains("line 6") && said.contains("apache") && said.contains("nginx-rr"), "{said}");
        let said = problem(
            "[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\n\n[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\nrate = [0]\n",
        );
        assert!(said.contains("line 10, [[cells]] number 2, field `rate`"), "{said}");
        let said = problem("[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\nmax_age = [\"soon\"]\n");
        assert!(said.contains("line 6") && said.contains("soon"), "{said}");
        let said = problem(
            "[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\ncompare = \"arm\"\narm = [\"sse-post\"]\npairs = 8\n",
        );
        assert!(said.contains("line 7") && said.contains("two levels"), "{said}");
        let said = problem("[[cells]]\nquestion = \"Q12\"\nscenario = \"faults\"\n");
        assert!(said.contains("field `fault`") && said.contains("pod-kill"), "{said}");
        let hangs = "[[cells]]\nquestion = \"Q12\"\nscenario = \"faults\"\nfault = [\"pod-hang\"]\n";
        let said = problem(hangs);
        assert!(said.contains("line 6") && said.contains("4 s longer than the fault lasts"), "{said}");
        let said = problem(&hangs.replace("pod-hang", "proxy-reload"));
        assert!(said.contains("field `edge`") && said.contains("needs nginx"), "{said}");
        assert!(problem("cells = []\n").contains("no [[cells]]"));
    }

    #[test]
    fn an_unknown_plan_says_which_there_are() {
        assert!(format!("{:#}", Plan::load("fast").unwrap_err()).contains("quick, seed, full"));
    }
}
