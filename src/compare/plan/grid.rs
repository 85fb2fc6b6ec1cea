//! A grid of a plan: which levels are crossed, what they are when the plan is silent, and which cannot be.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::{Accel, Broken, Factor, FaultKind, Phases, Scenario, Schedule, Switch};
use crate::compare::edges::Edge;
use crate::domain::Arm;
use crate::load::SseClient;

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

impl Grid {
    /// The first field that cannot be, and why.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
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

    pub(super) fn levels_of(&self, factor: Factor) -> usize {
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

/// Such as `30s`.
pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
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
