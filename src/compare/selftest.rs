//! The instrument held against a known difference: does it stay silent on A/A, and find 20 % on A/B?
//!
//! One pod, one proxy of ours before its stream, one viewer. B's events are held by the proxy for a share of the A/A
//! median. What a repetition comes to is said by the report's own code: [`verdict::verdicts`] over one A/A claim and
//! one A/B claim.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::delay_proxy::DelayProxy;
use super::environment::cores;
use super::plan::{CpuSets, Plan, Planned};
use super::runner::people;
use super::scenario::latency::load_args;
use super::stack::guardian::Spawn;
use super::stack::{Cpus, Deployment, Kind, Stack, remote};
use crate::report::model::{Results, Run};
use crate::report::stats::{MIN_PAIRS, median};
use crate::report::verdict::{Outcome, Verdict, verdicts};
use crate::report::{metric, wording};
use crate::result::summary::{RunSummary, Validity, summarize};
use crate::result::{GeneratorHealth, PairRef, file};

/// What is run over and over.
const PLAN: &str = include_str!("plans/selftest.toml");
/// Undelayed runs whose median the delay is a share of.
const FIRST_RUNS: u32 = 8;
/// What a run takes beside its phases: a process, a post, connections, the end.
const AROUND: Duration = Duration::from_millis(250);

/// Options.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = ABOUT)]
pub struct Config {
    /// How often both questions are asked
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,
    /// Pairs per claim; the report gives no verdict for fewer than 8
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(MIN_PAIRS as i64..=40))]
    pub pairs: u32,
    /// How long B's events are held, in percent of the A/A median; 0 shows that the test can fail
    #[arg(long, value_name = "PERCENT", default_value_t = 20.0)]
    pub delay_percent: f64,
    /// Seed of the order of runs and of the generator
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// CPU of pod and proxy, CPU of the generator [default: 0,1 where there are two]
    #[arg(long, value_name = "STACK,GENERATOR", value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Apply the report's rules on the generator's own delays to these short runs too
    #[arg(long)]
    pub strict: bool,
}

const ABOUT: &str = "\
What it shows: whether this instrument, on this machine and now, stays silent where nothing differs and finds a \
difference that was put there. A pod (SQLite, broker within the process) is watched by one viewer through a TCP proxy \
of ours; likes go to the pod directly. First the median commit → arrival of undelayed runs is measured. Then, per \
repetition, groups A' A B and B A A' in turn: A and A' are the same thing, B's events are held by the proxy for 20 % of \
that median (spinning; A passes the same code with 0). A'/A and A/B are adjacent pairs and share A. The verdicts are \
made by the report's code: validity of each run, ledger, interval, exact sign-flip test, and nothing is claimed that is \
not larger than what A/A differs by. \
One rule is set aside unless --strict: a report drops runs whose generator was slow to read (p99) or late to send \
(p99.9). A run here has 90 likes, which carry no such quantile: it would be the largest of 45. Neither delay is part of \
commit → arrival, whose end is the kernel's stamp; how many runs broke that rule is printed. A group with a run that is not VALID is run again, at most as often as there are \
pairs, and the count is printed; a repetition left without a verdict counts against the instrument.

It passes (exit 0) when of 20 repetitions A/A shows a difference at most 3 times and A/B the right sign at least 18 \
times (in proportion for another number). How often that sign was also significant is printed: the power of eight such \
pairs here.

What it does not show: that an absolute latency is right, that other causes than a constant delay are found, that \
tails (p99) resolve as well as the median, or that another machine or a loaded one does as well: run it on yours, idle. \
The delay is a share of the median at the start; if the machine gets faster or slower meanwhile, it is another share \
of A.";

/// Runs it until done or `shutdown`. Exit 1 when the instrument failed.
///
/// # Errors
/// A message for the user.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    ensure!((0.0..=1_000.0).contains(&config.delay_percent), "--delay-percent must be from 0 to 1000");
    let cpus = cpus(&config.cpus)?;
    let planned = planned()?;
    let phases = planned.phases.warmup + planned.phases.measure + planned.phases.cooldown;
    let runs = FIRST_RUNS + config.repetitions * config.pairs * 3;
    println!(
        "{} of {} pairs A/A and {} pairs A/B: {runs} runs, about {}",
        wording::count(config.repetitions as usize, "repetition"),
        config.pairs,
        config.pairs,
        people((phases + AROUND) * runs)
    );
    let pinned = |cpus: &[usize]| if cpus.is_empty() { "not pinned".to_owned() } else { format!("on CPU {}", cpus[0]) };
    println!("pod and proxy {}, generator {}", pinned(&cpus.stack), pinned(&cpus.generator));
    let stack = Stack::start(Kind::Embedded, cpus, remote::Urls::default()).await?;
    let done = with_stack(&config, &stack, planned, &shutdown).await;
    stack.guardian.end().await;
    done
}

/// One CPU for the stack and one for the generator, or no pinning where there is only one.
fn cpus(given: &[usize]) -> anyhow::Result<Cpus> {
    let (stack, generator) = match *given {
        [] if cores() < 2 => return Ok(Cpus::default()),
        [] => (0, 1),
        [stack, generator] => (stack, generator),
        _ => bail!("--cpus takes two: that of pod and proxy, and that of the generator, for example 0,1"),
    };
    Cpus::from_plan(&CpuSets { generator: Some(vec![generator]), stack: Some(vec![stack]) })
}

fn planned() -> anyhow::Result<Planned> {
    Plan::parse(PLAN)?.expand(None).pop().context("the self-test's plan has no cell")
}

async fn with_stack(
    config: &Config,
    stack: &Stack,
    planned: Planned,
    shutdown: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let deployment = stack.deploy(&planned).await?;
    let pod = deployment.pods.first().context("no pod")?.listen.parse().context("the pod's address")?;
    let proxy = DelayProxy::start(pod, &stack.cpus.stack)?;
    let mut lab =
        Lab { stack, deployment, proxy, planned, seed: config.seed, strict: config.strict, runs: 0, late: 0, shutdown };
    let done = measure(config, &mut lab).await;
    stack.end(lab.deployment).await;
    done
}

/// What a run needs.
struct Lab<'a> {
    stack: &'a Stack,
    deployment: Deployment,
    proxy: DelayProxy,
    planned: Planned,
    /// The generator's, a new one for each group.
    seed: u64,
    strict: bool,
    /// Runs made, and those of them whose generator was late or slow to read.
    runs: u32,
    late: u32,
    shutdown: &'a CancellationToken,
}

impl Lab<'_> {
    /// One run with its events held for `delay`.
    async fn run(&mut self, name: String, delay: Duration) -> anyhow::Result<Run> {
        self.proxy.set_delay(delay);
        let folder = self.stack.guardian.folder();
        let (out, log) = (folder.join("load.run.gz"), folder.join("load.log"));
        let _ = (std::fs::remove_file(&out), std::fs::remove_file(&log));
        let planned = Planned { seed: self.seed, ..self.planned.clone() };
        let (base, admin) = (self.deployment.base_urls(), self.deployment.admin_urls());
        let mut args = load_args(&base, &[], &admin, &self.stack.cpus, &planned, &out);
        args.extend(["--stream-url".to_owned(), format!("http://{}", self.proxy.address)]);
        let spawn = Spawn { program: self.stack.pushlab.clone(), args, log, ..Spawn::default() };
        let mut load = self.stack.guardian.spawn(spawn).await?;
        let ended = tokio::select! {
            ended = load.wait() => ended,
            () = self.shutdown.cancelled() => {
                let _ = self.stack.guardian.signal(load.pid, Signal::SIGKILL).await;
                bail!("interrupted");
            }
        };
        ensure!(matches!(ended.code, Some(0 | 3)), "the generator ended with {}; {}", ended.how, load.log_tail());
        let mut run = file::read(&out)?;
        run.header.cell = Some(planned.cell);
        let mut summary = summarize(&name, &run);
        self.runs += 1;
        if let Some(without) = without_quantiles(&summary, &run.header.generator) {
            self.late += 1;
            if !self.strict {
                let measured = std::mem::replace(&mut run.header.generator, without);
                summary = summarize(&name, &run);
                run.header.generator = measured;
            }
        }
        if let Some(violation) = summary.account.violations.first() {
            bail!("{name}: LEDGER VIOLATION: {violation}");
        }
        Ok(Run::new(summary, run.header))
    }
}

/// The health of a generator that made a run INVALID, without the two quantiles that 90 likes do not carry. None where
/// the run is not INVALID, or the reader's delay is part of the figure because the kernel gave no stamps.
fn without_quantiles(summary: &RunSummary, health: &GeneratorHealth) -> Option<GeneratorHealth> {
    let judged = summary.validity == Validity::Invalid && health.kernel_stamps;
    judged.then(|| GeneratorHealth { schedule_lag_us: [0.0; 3], stamp_to_read_us: [0.0; 3], ..health.clone() })
}

async fn measure(config: &Config, lab: &mut Lab<'_>) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let (mut medians, mut runs, mut why) = (Vec::new(), 0, "none".to_owned());
    while medians.len() < FIRST_RUNS as usize {
        ensure!(
            runs < 4 * FIRST_RUNS,
            "only {} of {runs} runs were VALID: is the machine busy? The last reason: {why}",
            medians.len()
        );
        runs += 1;
        let run = lab.run(format!("first {runs}"), Duration::ZERO).await?;
        let valid = run.summary.validity == Validity::Valid;
        medians.extend(run.summary.commit_to_arrival.p50.filter(|_| valid));
        why = run.summary.reasons.into_iter().next().unwrap_or(why);
    }
    let each = begun.elapsed() / runs;
    let middle = median(medians.iter().copied()).context("no median")?;
    let delay = Duration::from_nanos((middle * config.delay_percent * 10.0).round() as u64);
    println!(
        "A/A median of {FIRST_RUNS} runs {}; B is delayed by {} % of it: {} µs; a run takes {:.2} s, all about {}",
        metric::micros(middle),
        config.delay_percent,
        delay.as_nanos() as f64 / 1e3,
        each.as_secs_f64(),
        people(each * config.repetitions * config.pairs * 3)
    );
    let mut rng = StdRng::seed_from_u64(config.seed);
    let mut tally = Tally::default();
    let mut ratios = Vec::new();
    for repetition in 1..=config.repetitions {
        let mirrored = rng.random::<bool>();
        let (results, again) = repeat(config, lab, repetition, mirrored, delay).await?;
        let (same, differ) = judge(&results)?;
        tally.add(&same, &differ);
        ratios.extend(differ.ratio.map(f64::ln));
        let again =
            if again == 0 { String::new() } else { format!("; {} run again", wording::count(again as usize, "group")) };
        let width = config.repetitions.to_string().len();
        println!(
            "{repetition:>width$}/{}  {}; {}{again}",
            config.repetitions,
            line("A/A", &same),
            line("A/B", &differ)
        );
    }
    if !ratios.is_empty() {
        let mean = (-ratios.iter().sum::<f64>() / ratios.len() as f64).exp();
        println!(
            "B ÷ A over all repetitions {}; put there: {:.3}",
            wording::ratio(mean),
            1.0 + config.delay_percent / 100.0
        );
    }
    println!(
        "{} of {} runs had a generator that was late or slow to read by a report's rules{}",
        lab.late,
        lab.runs,
        if config.strict { "" } else { ", which are set aside here (see --help)" }
    );
    println!("{} ({})", tally.sentence(), people(begun.elapsed()));
    Ok(if tally.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The runs of a group, in the order in which they are made unless mirrored.
const GROUP: [Role; 3] = [Role::Again, Role::A, Role::B];

/// What a run is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A', side B of the A/A pair.
    Again,
    /// Side A of both pairs.
    A,
    /// Delayed, side B of the A/B pair.
    B,
}

const SAME: &str = "A/A proxy: delay 0";
const DIFFER: &str = "proxy: delay 0 / delayed";

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Again => "A'",
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// Writes its level and its places in the pairs of that number into a run.
    fn mark(self, number: u32, run: &mut Run) {
        let Some(cell) = &mut run.summary.cell else { return };
        let pair = |claim: &str, side| PairRef { claim: claim.into(), number, side };
        cell.levels.insert("proxy".into(), if self == Self::B { "delayed" } else { "delay 0" }.into());
        cell.pairs = match self {
            Self::Again => vec![pair(SAME, 'b')],
            Self::A => vec![pair(SAME, 'a'), pair(DIFFER, 'a')],
            Self::B => vec![pair(DIFFER, 'b')],
        };
    }
}

/// One repetition: A' A B, B A A', … A group with a run that may not be compared is made again in its place. Returns the
/// runs and how many groups were made again.
async fn repeat(
    config: &Config,
    lab: &mut Lab<'_>,
    repetition: u32,
    mirrored: bool,
    delay: Duration,
) -> anyhow::Result<(Results, u32)> {
    let (mut results, mut again) = (Results::default(), 0);
    results.environment.stack = Kind::Embedded.name().into();
    let mut number = 0;
    while number < config.pairs {
        let mut order = GROUP;
        if mirrored ^ (number % 2 == 1) {
            order.reverse();
        }
        lab.seed = lab.seed.wrapping_add(1);
        let mut group = Vec::new();
        for role in order {
            let held = if role == Role::B { delay } else { Duration::ZERO };
            let name = format!("repetition {repetition}, group {}, {}", number + 1, role.name());
            let mut run = lab.run(name, held).await?;
            role.mark(number, &mut run);
            group.push(run);
        }
        if again < config.pairs && group.iter().any(|run| run.summary.validity != Validity::Valid) {
            again += 1;
            continue;
        }
        results.runs.extend(group);
        number += 1;
    }
    Ok((results, again))
}

/// What the report says of A/A and of A/B.
fn judge(results: &Results) -> anyhow::Result<(Verdict, Verdict)> {
    let (mut same, mut differ): (Vec<_>, Vec<_>) = verdicts(results).into_iter().partition(|verdict| verdict.same);
    same.pop().zip(differ.pop()).context("a repetition must have a verdict on A/A and one on A/B")
}

/// A verdict on a line: `A/B 0.832 (0.801 to 0.864) lower`.
fn line(name: &str, verdict: &Verdict) -> String {
    let said = match verdict.outcome {
        Outcome::Lower => "A lower: right",
        Outcome::Higher => "A HIGHER: WRONG SIGN",
        Outcome::NoDifference => "no difference shown",
        Outcome::Resolution => "no difference",
        Outcome::Biased => "A DIFFERENCE",
        Outcome::NoVerdict | Outcome::Withheld => "NO VERDICT",
    };
    let ratio = verdict.ratio.map_or("–".into(), wording::ratio);
    let interval = verdict
        .interval
        .map_or(String::new(), |[low, high]| format!(" ({} to {})", wording::ratio(low), wording::ratio(high)));
    let medians = verdict
        .medians
        .filter(|_| !verdict.same)
        .map_or(String::new(), |[a, b]| format!(", {} against {}", metric::micros(a), metric::micros(b)));
    format!("{name} {ratio}{interval} {said}{medians}")
}

/// How often the instrument was right.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    repetitions: u32,
    /// A/A repetitions that show a difference.
    differences: u32,
    /// A/A repetitions without a verdict.
    undecided: u32,
    /// A/B repetitions whose estimate has the right sign.
    right: u32,
    /// Those of them that the report would claim: the power of eight pairs here.
    claimed: u32,
}

impl Tally {
    fn add(&mut self, same: &Verdict, differ: &Verdict) {
        self.repetitions += 1;
        match same.outcome {
            Outcome::Resolution => {}
            Outcome::NoVerdict | Outcome::Withheld => self.undecided += 1,
            _ => self.differences += 1,
        }
        let decided = !matches!(differ.outcome, Outcome::NoVerdict | Outcome::Withheld);
        self.right += u32::from(decided && differ.ratio.is_some_and(|ratio| ratio < 1.0));
        self.claimed += u32::from(differ.outcome == Outcome::Lower);
    }

    /// 3 of 20.
    const fn allowed(&self) -> u32 {
        self.repetitions * 3 / 20
    }

    /// 18 of 20.
    const fn needed(&self) -> u32 {
        (self.repetitions * 18).div_ceil(20)
    }

    const fn passes(&self) -> bool {
        self.differences + self.undecided <= self.allowed() && self.right >= self.needed()
    }

    fn sentence(&self) -> String {
        let n = self.repetitions;
        let undecided = if self.undecided == 0 { String::new() } else { format!(", {} no verdict", self.undecided) };
        format!(
            "A/A: {} of {n} show a difference{undecided} (allowed {}); A/B: {} of {n} the right sign (needed {}), {} of them significant: {}",
            self.differences,
            self.allowed(),
            self.right,
            self.needed(),
            self.claimed,
            if self.passes() { "passed" } else { "FAILED" }
        )
    }
}

#[cfg(test)]
mod tests {
    use rand_distr::{Distribution, Normal};

    use super::*;

    /// A repetition of eight groups with medians of 400 µs ± 3 %, A' and B multiplied.
    fn repetition(seed: u64, again: f64, b: f64) -> Results {
        let mut rng = StdRng::seed_from_u64(seed);
        let noise = Normal::new(0.0, 0.03).unwrap();
        let mut results = Results::default();
        results.environment.stack = "embedded".into();
        for number in 0..8 {
            for (role, factor) in GROUP.into_iter().zip([again, 1.0, b]) {
                let mut run = Run::default();
                run.summary.cell = Some(planned().unwrap().cell);
                let us = 400.0 * factor * f64::exp(noise.sample(&mut rng));
                run.summary.commit_to_arrival.p50 = Some(us);
                role.mark(number, &mut run);
                results.runs.push(run);
            }
        }
        results
    }

    fn tally(again: f64, b: f64) -> Tally {
        let mut tally = Tally::default();
        for seed in 0..20 {
            let (same, differ) = judge(&repetition(seed, again, b)).unwrap();
            assert_eq!((same.pairs, differ.pairs), (8, 8));
            tally.add(&same, &differ);
        }
        tally
    }

    #[test]
    fn a_sound_instrument_passes_and_blind_biased_or_inverted_ones_fail() {
        assert!(tally(1.0, 1.2).passes());
        assert!(!tally(1.0, 1.0).passes(), "blind: B is not delayed");
        assert!(!tally(1.0, 0.8).passes(), "inverted");
        let biased = tally(1.1, 1.2);
        assert!(biased.differences > 15 && !biased.passes(), "biased: {biased:?}");
    }

    #[test]
    fn the_bounds_are_those_of_the_benchmark() {
        let tally =
            |repetitions, differences, right| Tally { repetitions, differences, undecided: 0, right, claimed: right };
        assert!(tally(20, 3, 18).passes());
        assert!(!tally(20, 4, 20).passes());
        assert!(!tally(20, 0, 17).passes());
        assert!(tally(1, 0, 1).passes() && !tally(1, 1, 1).passes() && !tally(1, 0, 0).passes());
        assert!(!Tally { undecided: 4, ..tally(20, 0, 20) }.passes());
        assert!(tally(20, 2, 19).sentence().starts_with(
            "A/A: 2 of 20 show a difference (allowed 3); A/B: 19 of 20 the right sign (needed 18), 19 of them significant"
        ));
    }

    #[test]
    fn only_the_generators_quantiles_are_set_aside() {
        let mut run = crate::result::synthetic::good();
        let without = |run: &crate::result::RunResult| without_quantiles(&summarize("", run), &run.header.generator);
        assert_eq!(without(&run), None);
        run.header.generator.stamp_to_read_us[1] = 5_000.0;
        run.header.generator.problems.push("a clock step".into());
        let kept = without(&run).unwrap();
        run.header.generator = kept;
        let summary = summarize("", &run);
        assert_eq!((summary.validity, summary.reasons.len()), (Validity::Invalid, 1), "{:?}", summary.reasons);
        run.header.generator.kernel_stamps = false;
        assert_eq!(without(&run), None, "the reader's delay is part of the figure");
    }

    #[test]
    fn the_run_is_long_enough_for_a_median() {
        let planned = planned().unwrap();
        assert!(planned.rate * planned.phases.measure.as_secs_f64() >= 40.0, "a median stands on at least 20 likes");
        assert!(planned.cell.pairs.is_empty());
    }
}
