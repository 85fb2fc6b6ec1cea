//! Plans: what is run, as data. A plan crosses factors into cells, and says which cells are pairs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::edges::Edge;
use crate::domain::Arm;

/// From grids to cells: crossing, blocks, order, duration.
pub mod expand;

pub use expand::{Planned, estimate};

/// Plans that come with the program: name → text.
pub const PRESETS: [(&str, &str); 3] = [
    ("quick", include_str!("../plans/quick.toml")),
    ("seed", include_str!("../plans/seed.toml")),
    ("full", include_str!("../plans/full.toml")),
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
    /// kill -9 of a pod.
    Kill,
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
            Self::Kill => "kill",
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
    /// Viewers that come and go: mean session length.
    #[serde(default, deserialize_with = "optional_duration")]
    pub population_mean: Option<Duration>,
    /// σ of the log-normal session lengths.
    #[serde(default = "sigma")]
    pub population_sigma: f64,
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
            None => bail!("there is no plan {name:?}; give quick, seed, full or a file that ends in .toml"),
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
        ];
        if let Some((field, _)) = empty.into_iter().find(|(_, empty)| *empty) {
            return Err((field, "the list is empty; leave it out for its default".into()));
        }
        if self.pods.iter().any(|pods| !(1..=64).contains(pods)) {
            return Err(("pods", "1 to 64".into()));
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
        if self.scenario == Scenario::Kill && self.pods.iter().any(|pods| *pods < 2) {
            return Err(("pods", "killing one of them needs at least 2".into()));
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
        assert!(problem("cells = []\n").contains("no [[cells]]"));
    }

    #[test]
    fn an_unknown_plan_says_which_there_are() {
        assert!(format!("{:#}", Plan::load("fast").unwrap_err()).contains("quick, seed, full"));
    }
}
