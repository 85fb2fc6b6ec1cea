//! Claims and what their pairs say: one sentence each, with its interval, its INVALID counts and the command that repeats it.
//!
//! Invariant: a difference is stated only when ≥ 8 whole pairs of comparable runs carry it through Holm's correction and
//! the exact sign-flip test, and it is larger than what A/A runs of the same question differ by.

use std::collections::BTreeMap;

use serde::Serialize;

use super::model::{Results, Run};
use super::stats::{ALPHA, Estimate, MIN_PAIRS, estimate, holm, median};
use super::{metric, wording};
use crate::result::summary::Validity;

/// What a claim's pairs came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// A is lower than B.
    Lower,
    /// A is higher than B.
    Higher,
    /// No difference shown, down to the resolution.
    NoDifference,
    /// A/A: what the same cell differs by from run to run.
    Resolution,
    /// A/A runs differ by their side alone: the other verdicts of this question are in doubt.
    Biased,
    /// Fewer than eight whole pairs.
    NoVerdict,
    /// This stack cannot rank it.
    Withheld,
}

/// One claim: a factor's two levels in one context, compared by the question's primary metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// `Q1`, …
    pub question: String,
    /// As the plan names it.
    pub claim: String,
    /// The primary metric, by its name in the results.
    pub metric: String,
    /// The level on side A, as prose.
    pub a: String,
    /// The level on side B.
    pub b: String,
    /// The levels both sides share, as prose; may be empty.
    pub context: String,
    /// Of these, what tells this claim from the others of its question.
    pub place: String,
    /// Of these, what all claims of the question have in common.
    pub shared: String,
    /// Is this an A/A claim?
    pub same: bool,
    /// What came out.
    pub outcome: Outcome,
    /// The verdict in a sentence.
    pub sentence: String,
    /// What stands behind it in numbers: interval, p values, INVALID counts.
    pub basis: String,
    /// The command that repeats it.
    pub command: String,
    /// Whole pairs used.
    pub pairs: usize,
    /// Pairs planned (with at least one member run).
    pub planned: usize,
    /// INVALID members on side A and on side B.
    pub invalid: [usize; 2],
    /// Geometric mean of A ÷ B.
    pub ratio: Option<f64>,
    /// 95 % Student-t interval of the ratio.
    pub interval: Option<[f64; 2]>,
    /// Two-sided p of the t-test, uncorrected.
    pub p_t: Option<f64>,
    /// The same, Holm-corrected over the report's claims of a difference.
    pub p_holm: Option<f64>,
    /// Two-sided p of the exact sign-flip test.
    pub p_sign_flip: Option<f64>,
    /// The largest difference left possible, as a share of B.
    pub resolution: Option<f64>,
    /// Medians of the metric over the used pairs, A and B.
    pub medians: Option<[f64; 2]>,
    /// Every pair, used or dropped.
    pub members: Vec<Pair>,
}

/// Two adjacent runs that differ in one factor.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Pair {
    /// Number within the claim.
    pub number: u32,
    /// Run file of side A; empty when that run is not there.
    pub a: String,
    /// Run file of side B.
    pub b: String,
    /// A ÷ B; none when the pair was dropped.
    pub ratio: Option<f64>,
    /// Why the pair was dropped whole.
    pub dropped: Option<String>,
}

/// All claims of the results, by question and name, corrected as one family.
#[must_use]
pub fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = claims(results).iter().map(|claim| judge(results, claim)).collect();
    let family: Vec<usize> = (0..verdicts.len())
        .filter(|&i| !verdicts[i].same && verdicts[i].outcome != Outcome::Withheld && verdicts[i].pairs >= MIN_PAIRS)
        .collect();
    let p: Vec<f64> = family.iter().map(|&i| verdicts[i].p_t.unwrap_or(1.0)).collect();
    for (&i, p) in family.iter().zip(holm(&p)) {
        verdicts[i].p_holm = Some(round(p));
    }
    share_contexts(&mut verdicts);
    let floors = resolutions(&verdicts);
    for verdict in &mut verdicts {
        decide(verdict, floors.get(&(verdict.question.clone(), verdict.metric.clone())).copied(), family.len());
    }
    verdicts.sort_by_key(|v| (wording::natural(&v.question), v.same));
    verdicts
}

/// Parts each verdict's context into what it alone says and what all claims of its question share.
fn share_contexts(verdicts: &mut [Verdict]) {
    let parts = |v: &Verdict| -> Vec<String> { v.context.split(", ").map(ToOwned::to_owned).collect() };
    let all: Vec<(String, Vec<String>)> = verdicts.iter().map(|v| (v.question.clone(), parts(v))).collect();
    for verdict in verdicts {
        let shared = |part: &&String| all.iter().all(|(q, own)| *q != verdict.question || own.contains(part));
        let own = parts(verdict);
        let (shared, telling): (Vec<&String>, Vec<&String>) = own.iter().partition(shared);
        let join = |parts: Vec<&String>| parts.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        (verdict.place, verdict.shared) = (join(telling), join(shared));
    }
}

struct Claim<'a> {
    question: &'a str,
    name: &'a str,
    metric: &'a str,
    pairs: BTreeMap<u32, [Option<&'a Run>; 2]>,
}

/// Collects members; a run repeated under the same place replaces the earlier one.
fn claims(results: &Results) -> Vec<Claim<'_>> {
    let mut claims: BTreeMap<(wording::Natural, &str), Claim<'_>> = BTreeMap::new();
    for run in &results.runs {
        let Some(cell) = &run.summary.cell else { continue };
        for pair in &cell.pairs {
            let key = (wording::natural(&cell.question), pair.claim.as_str());
            let claim = claims.entry(key).or_insert_with(|| Claim {
                question: &cell.question,
                name: &pair.claim,
                metric: &cell.primary_metric,
                pairs: BTreeMap::new(),
            });
            let side = usize::from(pair.side.eq_ignore_ascii_case(&'b'));
            claim.pairs.entry(pair.number).or_default()[side] = Some(run);
        }
    }
    claims.into_values().collect()
}

/// Everything about a claim but the decision, which needs the whole family.
fn judge(results: &Results, claim: &Claim<'_>) -> Verdict {
    let names = wording::claim(claim.name);
    let whole = || claim.pairs.values().filter_map(|[a, b]| a.zip(*b));
    let same = names.a == names.b || whole().next().is_some_and(|(a, b)| levels(a) == levels(b) && arm(a) == arm(b));
    let ranks_arms = whole().any(|(a, b)| arm(a) != arm(b));
    let mut invalid = [0, 0];
    let (mut logs, mut sides, mut members) = (Vec::new(), Vec::new(), Vec::new());
    for (&number, pair) in &claim.pairs {
        for (side, run) in pair.iter().enumerate() {
            invalid[side] += usize::from(run.is_some_and(|run| run.summary.validity == Validity::Invalid));
        }
        let file = |run: Option<&Run>| run.map(|run| run.summary.file.clone()).unwrap_or_default();
        let mut member = Pair { number, a: file(pair[0]), b: file(pair[1]), ..Pair::default() };
        match compare(*pair, claim.metric) {
            Ok([a, b]) => {
                member.ratio = Some(round(a / b));
                logs.push((a / b).ln());
                sides.push([a, b]);
            }
            Err(reason) => member.dropped = Some(reason),
        }
        members.push(member);
    }
    let found = estimate(&logs);
    let withheld = results.embedded() && ranks_arms && metric::is_latency(claim.metric);
    let side = |i: usize| median(sides.iter().map(|pair: &[f64; 2]| pair[i])).map(round);
    let shown = |value: fn(&Estimate) -> f64| found.as_ref().filter(|_| !withheld).map(value).map(round);
    Verdict {
        question: claim.question.to_owned(),
        claim: claim.name.to_owned(),
        metric: claim.metric.to_owned(),
        a: names.a,
        b: names.b,
        context: names.context,
        place: String::new(),
        shared: String::new(),
        same,
        outcome: if withheld { Outcome::Withheld } else { Outcome::NoVerdict },
        sentence: String::new(),
        basis: String::new(),
        command: results.command_for(claim.question),
        pairs: logs.len(),
        planned: claim.pairs.len(),
        invalid,
        ratio: match logs.as_slice() {
            [only] if !withheld => Some(round(only.exp())),
            _ => shown(|e| e.ratio),
        },
        interval: shown(|e| e.low).zip(shown(|e| e.high)).map(|(low, high)| [low, high]),
        p_t: shown(|e| e.p_t),
        p_holm: None,
        p_sign_flip: found.filter(|_| !withheld).and_then(|e| e.p_flip).map(round),
        resolution: shown(Estimate::resolution),
        medians: side(0).zip(side(1)).filter(|_| !withheld).map(|(a, b)| [a, b]),
        members: if withheld { Vec::new() } else { members },
    }
}

/// Both values of a pair, or why it is dropped whole.
fn compare(pair: [Option<&Run>; 2], metric: &str) -> Result<[f64; 2], String> {
    let mut values = [0.0; 2];
    for (side, run) in pair.into_iter().enumerate() {
        let name = ["A", "B"][side];
        let run = run.ok_or_else(|| format!("{name} was not run"))?;
        let summary = &run.summary;
        if summary.validity != Validity::Valid {
            return Err(format!("{name} is {}", wording::validity(summary.validity)));
        }
        if !summary.account.closes() {
            return Err(format!("{name}: the ledger does not close"));
        }
        let load = summary.cell.as_ref().and_then(|cell| cell.offered_over_capacity);
        if let Some(load) = load.filter(|load| *load > 0.5 && metric::is_latency(metric)) {
            return Err(format!(
                "{name} ran at {} of its capacity; latency is compared up to half",
                metric::percent(load)
            ));
        }
        let value = metric::value(summary, metric).filter(|value| value.is_finite() && *value > 0.0);
        values[side] = value.ok_or_else(|| format!("{name} has no {}", metric::title(metric)))?;
    }
    Ok(values)
}

/// What A/A runs of a question differ by, per metric.
fn resolutions(verdicts: &[Verdict]) -> BTreeMap<(String, String), f64> {
    let mut floors: BTreeMap<(String, String), f64> = BTreeMap::new();
    for v in verdicts.iter().filter(|v| v.same && v.pairs >= MIN_PAIRS) {
        let floor = floors.entry((v.question.clone(), v.metric.clone())).or_default();
        *floor = floor.max(v.resolution.unwrap_or_default());
    }
    floors
}

/// The decision and its words. `floor` is the A/A resolution of the same question and metric.
fn decide(v: &mut Verdict, floor: Option<f64>, claims: usize) {
    if v.outcome == Outcome::Withheld {
        let place = if v.place.is_empty() { String::new() } else { format!(", {}", v.place) };
        let (a, b) = (&v.a, &v.b);
        v.sentence =
            format!("No latency ranking of {a} and {b}{place}: the embedded stack has no proxy, broker or row lock.");
        v.basis = invalid_counts(v);
        return;
    }
    let flips = v.p_sign_flip.is_none_or(|p| p <= ALPHA);
    let ratio = v.ratio.unwrap_or(1.0);
    let carried = flips && v.p_holm.is_some_and(|p| p <= ALPHA);
    let above_floor = floor.is_none_or(|floor| (ratio - 1.0).abs() > floor);
    v.outcome = match () {
        () if v.pairs < MIN_PAIRS => Outcome::NoVerdict,
        () if v.same && flips && v.p_t.is_some_and(|p| p <= ALPHA) => Outcome::Biased,
        () if v.same => Outcome::Resolution,
        () if carried && above_floor && ratio < 1.0 => Outcome::Lower,
        () if carried && above_floor => Outcome::Higher,
        () => Outcome::NoDifference,
    };
    let resolution = v.resolution.unwrap_or_default().max(floor.filter(|_| !v.same).unwrap_or_default());
    if v.pairs >= 2 {
        v.resolution = Some(round(resolution));
    }
    v.sentence = sentence(v, resolution);
    v.basis = basis(v, claims, carried && !above_floor);
}

fn sentence(v: &Verdict, resolution: f64) -> String {
    let title = metric::title(&v.metric);
    let name = wording::upper_first(&title);
    let (a, b) = (&v.a, &v.b);
    let place = if v.place.is_empty() { String::new() } else { format!(", {}", v.place) };
    let values = v.medians.map_or(String::new(), |[a, b]| {
        format!(": {} against {}", metric::show(&v.metric, a), metric::show(&v.metric, b))
    });
    let difference = || {
        let [low, high] = v.interval.unwrap_or([1.0; 2]);
        format!("{} (95 % interval {})", wording::difference(v.ratio.unwrap_or(1.0)), wording::interval(low, high))
    };
    let resolution = metric::percent(resolution);
    match v.outcome {
        Outcome::Lower | Outcome::Higher => {
            format!("{name} is {} with {a} than with {b}{place}{values}.", difference())
        }
        Outcome::NoDifference => {
            format!("{name}: no difference shown between {a} and {b}{place}{values} (resolution ± {resolution}).")
        }
        Outcome::Resolution => {
            format!(
                "A/A, {a}{place}: runs of the same cell agree in {title} within ± {resolution}; nothing smaller is claimed."
            )
        }
        Outcome::Biased => format!(
            "A/A, {a}{place}: runs of the same cell differ in {title} by their side alone, {}: nothing below ± {resolution} \
             is claimed, and the cause needs looking at.",
            difference()
        ),
        Outcome::NoVerdict if v.pairs == 0 => {
            format!("{name}, {a} against {b}{place}: no verdict, no whole pair is left.")
        }
        Outcome::NoVerdict => format!(
            "{name}, {a} against {b}{place}{values}, ratio {}; no verdict from {} (it takes {MIN_PAIRS}).",
            wording::ratio(v.ratio.unwrap_or(1.0)),
            wording::count(v.pairs, "pair")
        ),
        Outcome::Withheld => String::new(),
    }
}

fn basis(v: &Verdict, claims: usize, below_floor: bool) -> String {
    let mut parts = Vec::new();
    if let (Some(ratio), Some([low, high])) = (v.ratio, v.interval) {
        let [ratio, low, high] = [ratio, low, high].map(wording::ratio);
        parts.push(format!("ratio {ratio}, 95 % interval {low} to {high}, {}", wording::count(v.pairs, "pair")));
    }
    if v.pairs >= MIN_PAIRS {
        if let Some(p) = v.p_sign_flip {
            parts.push(format!("sign-flip p {}", wording::p(p)));
        }
        if let Some(p) = v.p_holm {
            parts.push(format!("Holm p {} over {}", wording::p(p), wording::count(claims, "claim")));
        }
    }
    if below_floor {
        parts.push("significant, but not beyond what A/A runs differ by".to_owned());
    } else if v.outcome == Outcome::NoDifference && v.interval.is_some_and(|[low, high]| low > 1.0 || high < 1.0) {
        parts.push("the interval alone excludes 1; it does not survive the correction".to_owned());
    }
    parts.push(invalid_counts(v));
    parts.join(" · ")
}

fn invalid_counts(v: &Verdict) -> String {
    let counts = format!("INVALID: {} of {} A, {} of {} B", v.invalid[0], v.planned, v.invalid[1], v.planned);
    match v.planned - v.pairs {
        0 => counts,
        dropped => format!("{counts}; {} dropped whole", wording::count(dropped, "pair")),
    }
}

fn levels(run: &Run) -> BTreeMap<&str, &str> {
    let cell = run.summary.cell.as_ref();
    let all = cell.into_iter().flat_map(|cell| &cell.levels).map(|(factor, level)| (factor.as_str(), level.as_str()));
    all.filter(|(factor, _)| !wording::is_repetition(factor)).collect()
}

fn arm(run: &Run) -> crate::domain::Arm {
    run.summary.config.arm
}

/// Six significant digits: enough for anybody, and the same on every platform's `ln` and `exp`.
#[must_use]
pub fn round(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
