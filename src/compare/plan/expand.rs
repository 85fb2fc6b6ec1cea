//! From grids to cells: crossing, blocks of pairs, seeded order, estimated duration.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::{Accel, Broken, Factor, FaultKind, Grid, Phases, Plan, Scenario, Schedule, SseClient, Switch};
use crate::compare::edges::{Edge, EdgeConfig, silence_s};
use crate::domain::{Arm, Transport};
use crate::result::{self, PairRef};

/// One run to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Its place: name, levels, pairs, metric. The index is its place in the executed order.
    pub cell: result::Cell,
    /// What it does.
    pub scenario: Scenario,
    /// Delivery and write channel.
    pub arm: Arm,
    /// What stands before the pods.
    pub edge: EdgeConfig,
    /// Pods.
    pub pods: u32,
    /// Posts.
    pub posts: u32,
    /// Viewers.
    pub viewers: u32,
    /// Liking users.
    pub likers: u32,
    /// Likes per second.
    pub rate: f64,
    /// Spacing of due times.
    pub schedule: Schedule,
    /// Phases.
    pub phases: Phases,
    /// Pods' `--max-age`.
    pub max_age: Duration,
    /// Pods' `--accel-buffering`.
    pub accel: Accel,
    /// What the first pod does wrong.
    pub broken: Broken,
    /// What fails.
    pub fault: Option<FaultKind>,
    /// How long it lasts.
    pub hold: Duration,
    /// Pods' `--anti-entropy`.
    pub anti_entropy: Switch,
    /// The generator's `--sse-client`.
    pub sse_client: SseClient,
    /// Stalled clients beside the viewers.
    pub slow_readers: u32,
    /// Further flags of every pod.
    pub pod_flags: String,
    /// Heartbeat period.
    pub heartbeat: Duration,
    /// Pods that are added in the middle (`balance`).
    pub add_pods: u32,
    /// Viewers that come and go: mean session length and σ.
    pub population: Option<(Duration, f64)>,
    /// Seed of its due times and choices; the same for all members of a block.
    pub seed: u64,
}

/// The metric of a question for which the plan names none.
fn default_metric(question: &str) -> &'static str {
    match question {
        "Q4" => "figures.max_over_mean",
        "Q10" => "due_to_answer.p50",
        "Q12" => "healed_ms.0",
        "Q13" => "commit_to_arrival.p99",
        _ => "commit_to_arrival.p50",
    }
}

impl Plan {
    /// Every cell, in the order in which they are run. Units (a cell, or two mirrored blocks) are shuffled by the
    /// plan's seed, so that drift of the machine does not favour one claim; within a unit the order is the mirror's.
    #[must_use]
    pub fn expand(&self, question: Option<&str>) -> Vec<Planned> {
        let mut units: Vec<Vec<Planned>> = Vec::new();
        for (number, grid) in self.cells.iter().enumerate() {
            if question.is_none_or(|question| grid.question == question) {
                units.extend(self.units(number, grid));
            }
        }
        units.shuffle(&mut StdRng::seed_from_u64(self.order_seed));
        let mut cells: Vec<_> = units.into_iter().flatten().collect();
        for (index, planned) in (0..).zip(&mut cells) {
            planned.cell.index = index;
        }
        cells
    }

    fn units(&self, number: usize, grid: &Grid) -> Vec<Vec<Planned>> {
        let base = |block: u32| self.order_seed * 1_000_003 + number as u64 * 1_009 + u64::from(block) * 7 + 1;
        let mut units = Vec::new();
        let (Some(factor), Some(pairs)) = (grid.compare, grid.pairs) else {
            for repetition in 0..grid.repetitions.unwrap_or(1) {
                for cell in self.cross(grid) {
                    units.push(vec![name(cell, number, repetition, None, base(repetition))]);
                }
            }
            return units;
        };
        // One claim per combination of the other factors; its members differ in `factor` alone.
        let mut claims: Vec<Vec<Planned>> = Vec::new();
        for level in 0..grid.levels_of(factor) {
            for (claim, cell) in self.cross(&only(grid, factor, level)).into_iter().enumerate() {
                if claim == claims.len() {
                    claims.push(Vec::new());
                }
                claims[claim].push(cell);
            }
        }
        for members in &claims {
            for first in (0..pairs).step_by(2) {
                let mut unit = Vec::new();
                for block in first..pairs.min(first + 2) {
                    for member in block_order(members.len(), block) {
                        let refs = pair_refs(factor, members, member, block);
                        let mut cell = members[member].clone();
                        cell.cell.pairs = refs;
                        unit.push(name(cell, number, block, Some(member), base(block)));
                    }
                }
                units.push(unit);
            }
        }
        units
    }

    /// Every combination of a grid's levels.
    fn cross(&self, grid: &Grid) -> Vec<Planned> {
        let mut cells = Vec::new();
        for &arm in &grid.arm {
            for edge in edges(grid) {
                for (&pods, &posts) in grid.pods.iter().flat_map(|p| grid.posts.iter().map(move |q| (p, q))) {
                    for (&viewers, &rate) in grid.viewers.iter().flat_map(|v| grid.rate.iter().map(move |r| (v, r))) {
                        for (&max_age, &accel) in
                            grid.max_age.iter().flat_map(|m| grid.accel.iter().map(move |a| (m, a)))
                        {
                            for &broken in &grid.broken {
                                for variant in variants(grid, arm) {
                                    let edge = edge.clone();
                                    let make = Making {
                                        arm,
                                        edge,
                                        pods,
                                        posts,
                                        viewers,
                                        rate,
                                        max_age,
                                        accel,
                                        broken,
                                        variant,
                                    };
                                    cells.push(self.planned(grid, make));
                                }
                            }
                        }
                    }
                }
            }
        }
        cells
    }

    fn planned(&self, grid: &Grid, m: Making) -> Planned {
        let mut levels = BTreeMap::from([
            ("arm".to_owned(), m.arm.name().to_owned()),
            ("edge".into(), m.edge.edge.name().into()),
            ("pods".into(), m.pods.to_string()),
            ("posts".into(), m.posts.to_string()),
            ("viewers".into(), m.viewers.to_string()),
            ("rate".into(), m.rate.to_string()),
        ]);
        if m.edge.edge.buffers() {
            levels.insert("buffering".into(), if m.edge.buffering { "on" } else { "off" }.into());
        }
        let mut special = |key: &str, value: String, usual: bool| {
            if !usual {
                levels.insert(key.into(), value);
            }
        };
        special("max_age", humantime::format_duration(m.max_age).to_string(), m.max_age.is_zero());
        special("accel", "unset".into(), m.accel == Accel::No);
        special("broken", m.broken.name().into(), m.broken == Broken::None);
        special("retry503", "off".into(), m.edge.retry503);
        let Variant { fault, anti_entropy, sse_client, slow_readers, pod_flags } = m.variant;
        special("fault", fault.map_or("", FaultKind::name).into(), fault.is_none());
        let switch = if anti_entropy == Switch::On { "on" } else { "off" };
        special("anti_entropy", switch.into(), fault.is_none() && anti_entropy == Switch::On);
        special("sse_client", sse_client.name().into(), sse_client == SseClient::Fetch);
        special("pod_flags", pod_flags.clone(), pod_flags.is_empty());
        special("add_pods", grid.add_pods.to_string(), grid.add_pods == 1);
        special("slow_readers", slow_readers.to_string(), grid.scenario != Scenario::SlowConsumer);
        let beat = humantime::format_duration(grid.heartbeat).to_string();
        special("heartbeat", beat, grid.heartbeat == Duration::from_secs(10));
        let silence = grid.silence.map(|silence| humantime::format_duration(silence).to_string());
        special("silence", silence.clone().unwrap_or_default(), silence.is_none());
        let usual = fault.map_or(Duration::ZERO, FaultKind::usual_hold);
        let hold = if usual.is_zero() { usual } else { grid.hold.unwrap_or(usual) };
        special("hold", humantime::format_duration(hold).to_string(), hold.is_zero());
        special("max_temp_file", m.edge.max_temp_file.clone().unwrap_or_default(), m.edge.max_temp_file.is_none());
        let likers = grid.likers.unwrap_or(m.rate.ceil().clamp(1.0, 1_000.0) as u32);
        let mut phases = grid.phases.unwrap_or(self.phases);
        if let (Scenario::Balance, Some(mean)) = (grid.scenario, grid.population_mean) {
            phases.measure = mean.mul_f64(2.0 * grid.lifetimes);
        }
        let metric = self.primary.get(&grid.question).map_or(default_metric(&grid.question), String::as_str);
        let cell = result::Cell {
            question: grid.question.clone(),
            levels,
            primary_metric: metric.into(),
            ..result::Cell::default()
        };
        Planned {
            cell,
            scenario: grid.scenario,
            arm: m.arm,
            edge: m.edge,
            pods: m.pods,
            posts: m.posts,
            viewers: m.viewers,
            likers,
            rate: m.rate,
            schedule: grid.schedule,
            phases,
            max_age: m.max_age,
            accel: m.accel,
            broken: m.broken,
            fault,
            hold,
            anti_entropy,
            sse_client,
            slow_readers,
            pod_flags,
            heartbeat: grid.heartbeat,
            add_pods: grid.add_pods,
            population: grid.population_mean.map(|mean| (mean, grid.population_sigma)),
            seed: 0,
        }
    }
}

struct Making {
    arm: Arm,
    edge: EdgeConfig,
    pods: u32,
    posts: u32,
    viewers: u32,
    rate: f64,
    max_age: Duration,
    accel: Accel,
    broken: Broken,
    variant: Variant,
}

/// What a cell does beside its load.
#[derive(Clone)]
struct Variant {
    fault: Option<FaultKind>,
    anti_entropy: Switch,
    sse_client: SseClient,
    slow_readers: u32,
    pod_flags: String,
}

/// Every combination of those; SSE clients only where SSE is delivered.
fn variants(grid: &Grid, arm: Arm) -> Vec<Variant> {
    let faults: Vec<_> =
        if grid.fault.is_empty() { vec![None] } else { grid.fault.iter().copied().map(Some).collect() };
    let clients: &[SseClient] =
        if arm.transport() == Transport::Sse { &grid.sse_client[..] } else { &[SseClient::Fetch] };
    let mut all = Vec::new();
    for &fault in &faults {
        for (&anti_entropy, &sse_client) in grid.anti_entropy.iter().flat_map(|a| clients.iter().map(move |c| (a, c))) {
            for (&slow_readers, flags) in
                grid.slow_readers.iter().flat_map(|s| grid.pod_flags.iter().map(move |f| (s, f)))
            {
                all.push(Variant { fault, anti_entropy, sse_client, slow_readers, pod_flags: flags.clone() });
            }
        }
    }
    all
}

/// Edges with their switches; an edge that has no such switch is there once.
fn edges(grid: &Grid) -> Vec<EdgeConfig> {
    let mut edges = Vec::new();
    for &edge in &grid.edge {
        let at = edges.len();
        for &buffering in &grid.buffering {
            for &retry in &grid.retry503 {
                for temp in &grid.max_temp_file {
                    let config = EdgeConfig {
                        edge,
                        buffering: edge.buffers() && buffering == Switch::On,
                        retry503: edge == Edge::Direct || retry == Switch::On,
                        silence_s: grid.silence.map_or_else(|| silence_s(grid.heartbeat), |s| s.as_secs() as u32),
                        max_temp_file: Some(temp.clone()).filter(|temp| edge.buffers() && temp != "default"),
                    };
                    // The same level twice is an A/A; the same edge by having no switch is not. And without buffering
                    // there is no temporary file.
                    let idle = config.max_temp_file.is_some() && !config.buffering;
                    let twice = grid.compare == Some(Factor::Buffering);
                    if !idle && (twice || !edges[at..].contains(&config)) {
                        edges.push(config);
                    }
                }
            }
        }
    }
    edges
}

/// The grid with one level of one factor.
fn only(grid: &Grid, factor: Factor, level: usize) -> Grid {
    let mut one = grid.clone();
    match factor {
        Factor::Arm => one.arm = vec![grid.arm[level]],
        Factor::Edge => one.edge = vec![grid.edge[level]],
        Factor::Buffering => one.buffering = vec![grid.buffering[level]],
        Factor::Pods => one.pods = vec![grid.pods[level]],
        Factor::Posts => one.posts = vec![grid.posts[level]],
        Factor::Viewers => one.viewers = vec![grid.viewers[level]],
        Factor::Rate => one.rate = vec![grid.rate[level]],
        Factor::MaxAge => one.max_age = vec![grid.max_age[level]],
        Factor::SlowReaders => one.slow_readers = vec![grid.slow_readers[level]],
        Factor::PodFlags => one.pod_flags = vec![grid.pod_flags[level].clone()],
    }
    one
}

/// Order of the members within block number `block`: mirrored every other time (A B, B A), rotated every two blocks
/// when there are three or more, so that each member is first, in the middle and last equally often.
fn block_order(members: usize, block: u32) -> Vec<usize> {
    let turn = if members > 2 { block as usize / 2 } else { 0 };
    let mut order: Vec<_> = (0..members).map(|place| (place + turn) % members).collect();
    if block % 2 == 1 {
        order.reverse();
    }
    order
}

/// The pairs a member belongs to: one with each other member of its block.
fn pair_refs(factor: Factor, members: &[Planned], member: usize, block: u32) -> Vec<PairRef> {
    let level = |cell: &Planned| cell.cell.levels.get(factor.name()).cloned().unwrap_or_else(|| "0s".into());
    let others = (0..members.len()).filter(|other| *other != member);
    others
        .map(|other| {
            let (a, b) = (member.min(other), member.max(other));
            let (one, two) = (level(&members[a]), level(&members[b]));
            let constant = members[a].cell.levels.iter().filter(|(key, _)| *key != factor.name());
            let at: Vec<_> = constant.map(|(key, value)| format!("{key}={value}")).collect();
            let factor = if one == two { "A/A" } else { factor.name() };
            PairRef {
                claim: format!("{factor}: {one} / {two} @ {}", at.join(", ")),
                number: block + 1,
                side: if member == a { 'a' } else { 'b' },
            }
        })
        .collect()
}

/// Gives the cell its stable name and its seed.
fn name(mut cell: Planned, grid: usize, repetition: u32, member: Option<usize>, seed: u64) -> Planned {
    let mut parts = vec![cell.cell.question.to_lowercase(), cell.scenario.name().into()];
    for (key, short) in [("arm", ""), ("edge", ""), ("rate", "r"), ("viewers", "v"), ("posts", "p"), ("pods", "n")] {
        parts.push(format!("{short}{}", cell.cell.levels[key]));
    }
    for (key, value) in &cell.cell.levels {
        if !["arm", "edge", "rate", "viewers", "posts", "pods"].contains(&key.as_str()) {
            parts.push(format!("{key}-{value}"));
        }
    }
    // The grid's and the member's letters keep an A/A apart from its twin and two grids from each other.
    let letter = |at: usize| char::from(b'a' + u8::try_from(at % 26).unwrap_or_default());
    let place =
        format!("g{}{}{}", grid + 1, member.map_or_else(String::new, |m| letter(m).to_string()), repetition + 1);
    parts.push(place);
    cell.cell.id = parts.join("-").replace([' ', '_'], "-");
    cell.seed = seed;
    cell
}

/// How long the cells take, stack and calibration included.
#[must_use]
pub fn estimate(cells: &[Planned]) -> Duration {
    let fixed = Duration::from_secs(6); // services, calibration, report
    fixed + cells.iter().map(Planned::duration).sum::<Duration>()
}

impl Planned {
    /// How long it takes: its phases, and what it takes to start pods and edge, to connect and to settle.
    #[must_use]
    pub fn duration(&self) -> Duration {
        let people = f64::from(self.viewers + self.likers);
        let around = Duration::from_secs_f64(2.0 + people / 1_000.0);
        let phases = match self.scenario {
            Scenario::Buffering => Duration::from_secs(5),
            // Viewers that are attracted by the broken pod do not join: the generator waits for them in vain, twice.
            Scenario::BrokenPod => {
                Duration::from_secs(25) + self.phases.warmup + self.phases.measure + self.phases.cooldown
            }
            Scenario::SlowReader => Duration::from_secs(8),
            _ => self.phases.warmup + self.phases.measure + self.phases.cooldown,
        };
        around + phases
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;

    fn preset(name: &str) -> Vec<Planned> {
        Plan::load(name).unwrap().0.expand(None)
    }

    #[test]
    fn the_presets_take_as_long_as_they_promise() {
        assert!(estimate(&preset("quick")) <= Duration::from_secs(60), "{:?}", estimate(&preset("quick")));
        assert!(estimate(&preset("full")) <= Duration::from_secs(150 * 60), "{:?}", estimate(&preset("full")));
    }

    #[test]
    fn the_faults_plan_has_every_fault_on_both_transports_with_anti_entropy_on_and_off() {
        let cells = preset("faults");
        assert!(estimate(&cells) <= Duration::from_secs(25 * 60), "{:?}", estimate(&cells));
        let rows: BTreeSet<_> = cells
            .iter()
            .filter(|cell| cell.sse_client == SseClient::Fetch)
            .map(|c| (c.fault.unwrap().name(), c.arm.transport(), c.anti_entropy == Switch::On))
            .collect();
        assert_eq!(rows.len(), 9 * 2 * 2);
        for client in [SseClient::Native, SseClient::Watchdog, SseClient::NamedHeartbeat] {
            assert!(cells.iter().any(|cell| cell.sse_client == client && cell.fault == Some(FaultKind::PodHang)));
        }
        for cell in &cells {
            let end = Duration::from_secs(2) + cell.hold + Duration::from_secs(2);
            assert!(cell.hold.is_zero() || cell.phases.measure >= end, "{}", cell.cell.id);
        }
    }

    #[test]
    fn the_seed_plan_is_the_notes_matrix_and_one_cell_more_per_arm() {
        let cells = preset("seed");
        let of_the_notes: Vec<_> = cells.iter().filter(|cell| cell.posts == 1).collect();
        assert_eq!(of_the_notes.len(), 18);
        let points: BTreeSet<_> = of_the_notes.iter().map(|c| (c.arm, c.rate as u64, c.viewers)).collect();
        assert_eq!(points.len(), 18);
        for cell in &cells {
            let Phases { warmup, measure, cooldown } = cell.phases;
            assert_eq!([warmup, measure, cooldown].map(|phase| phase.as_secs()), [30, 60, 15]);
        }
        assert!(cells.iter().any(|cell| (cell.posts, cell.viewers, cell.rate) == (100, 1_000, 1_000.0)));
    }

    #[test]
    fn the_full_plan_has_eight_pairs_per_claim_and_controls() {
        let mut claims: HashMap<String, Vec<(u32, char, u32)>> = HashMap::new();
        for cell in preset("full") {
            for pair in &cell.cell.pairs {
                claims.entry(pair.claim.clone()).or_default().push((pair.number, pair.side, cell.cell.index));
            }
        }
        assert!(claims.keys().any(|claim| claim.starts_with("A/A: ")));
        for (claim, members) in claims {
            let numbers: BTreeSet<_> = members.iter().map(|(number, ..)| *number).collect();
            assert!(numbers.len() >= 8, "{claim}");
            let first_a = numbers.iter().filter(|number| {
                let at = |side| members.iter().find(|m| m.0 == **number && m.1 == side).unwrap().2;
                at('a') < at('b')
            });
            assert_eq!(2 * first_a.count(), numbers.len(), "{claim}: A comes first in half of the pairs");
        }
    }

    #[test]
    fn names_are_unique_and_the_order_is_the_seed() {
        for plan in ["quick", "seed", "full", "faults", "writes"] {
            let cells = preset(plan);
            let names: BTreeSet<_> = cells.iter().map(|cell| &cell.cell.id).collect();
            assert_eq!(names.len(), cells.len(), "{plan}");
            assert_eq!(cells, preset(plan), "{plan}");
        }
    }

    #[test]
    fn pairs_are_mirrored() {
        assert_eq!([0, 1, 2, 3].map(|block| block_order(2, block)), [[0, 1], [1, 0], [0, 1], [1, 0]]);
        assert_eq!([0, 1, 2, 3].map(|block| block_order(3, block)), [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]]);
    }
}
