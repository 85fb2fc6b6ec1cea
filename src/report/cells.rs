//! Cells side by side: runs that differ only in arm and repetition share a table, the three arms beside each other.
//!
//! Invariant: a figure that may not be compared is not in the table. INVALID columns hold no figure at all, SATURATED and
//! WRITE-BOUND ones no latency.

use std::collections::BTreeMap;

use serde::Serialize;

use super::model::Run;
use super::stats::median;
use super::{metric, wording};
use crate::domain::Arm;
use crate::result::Cell;
use crate::result::summary::{RunSummary, Validity};

/// One cell of the plan over its arms and repetitions.
#[derive(Debug, Clone)]
pub struct Group<'a> {
    /// The question it serves; empty for a bare `load`.
    pub question: &'a str,
    /// What was set: `10 likes/s · 1000 viewers · edge direct`.
    pub title: String,
    /// The levels beside arm, load and repetition, as prose: what a curve over load is drawn for.
    pub context: String,
    /// The arms that were run, in report order.
    pub columns: Vec<Column<'a>>,
}

/// One arm of a cell.
#[derive(Debug, Clone)]
pub struct Column<'a> {
    /// The arm.
    pub arm: Arm,
    /// What stands over it: the arm, or what tells it from its neighbours where all have the same arm.
    pub label: String,
    /// Its colour and dash pattern in charts.
    pub series: u8,
    /// Every run of it.
    pub all: Vec<&'a Run>,
    /// The runs whose figures are shown: the best class of validity among them.
    pub shown: Vec<&'a Run>,
    /// That class.
    pub validity: Validity,
}

impl Column<'_> {
    /// The median of a figure over the shown runs, and its range when there are several.
    #[must_use]
    pub fn figure(&self, of: impl Fn(&RunSummary) -> Option<f64>) -> Option<[f64; 3]> {
        let values: Vec<f64> = self.shown.iter().filter_map(|run| of(&run.summary)).collect();
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
        median(values).map(|middle| [middle, low, high])
    }

    /// The run that stands for the others in a chart: the one with the median commit → arrival p50.
    #[must_use]
    pub fn typical(&self) -> Option<&Run> {
        let mut runs = self.shown.clone();
        let key = |run: &Run| run.summary.commit_to_arrival.p50.unwrap_or(f64::MAX);
        runs.sort_by(|a, b| key(a).total_cmp(&key(b)));
        runs.get(runs.len().saturating_sub(1) / 2).copied()
    }
}

/// A row of the side-by-side table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What is shown.
    pub label: &'static str,
    /// One entry per column.
    pub values: Vec<Value>,
}

/// One figure of the side-by-side table.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Value {
    /// The median with its unit; `–` where there is none, or none may be shown.
    pub text: String,
    /// Range over the runs, when there are several.
    pub range: String,
    /// `valid`, `invalid`, `saturated`, `write-bound` in the first row, else empty.
    pub class: &'static str,
}

/// Runs grouped into cells, by question, load and levels.
#[must_use]
pub fn groups(runs: &[Run]) -> Vec<Group<'_>> {
    let mut groups: BTreeMap<wording::Natural, Group<'_>> = BTreeMap::new();
    for run in runs {
        let (title, context) = titles(run);
        let key = wording::natural(&format!("{}|{context}|{title}", run.question()));
        let group = groups.entry(key).or_insert_with(|| Group {
            question: run.question(),
            title,
            context,
            columns: Vec::new(),
        });
        let arm = run.summary.config.arm;
        match group.columns.iter_mut().find(|column| column.arm == arm) {
            Some(column) => column.all.push(run),
            None => {
                group.columns.push(Column {
                    arm,
                    label: arm.title().to_owned(),
                    series: arm as u8,
                    all: vec![run],
                    shown: Vec::new(),
                    validity: Validity::Invalid,
                });
            }
        }
    }
    let mut groups: Vec<Group<'_>> = groups.into_values().collect();
    for column in groups.iter_mut().flat_map(|group| &mut group.columns) {
        let order = [Validity::Valid, Validity::Saturated, Validity::WriteBound, Validity::Invalid];
        let has = |validity: &Validity| column.all.iter().any(|run| run.summary.validity == *validity);
        column.validity = order.into_iter().find(has).unwrap_or(Validity::Invalid);
        column.shown = column.all.iter().copied().filter(|run| run.summary.validity == column.validity).collect();
    }
    for group in &mut groups {
        group.columns.sort_by_key(|column| column.arm);
    }
    groups
}

/// Cells of one arm only are put beside each other, at most four, so that a question about edges reads across edges.
#[must_use]
pub fn beside<'a>(groups: &[Group<'a>]) -> Vec<Group<'a>> {
    let alone = |group: &Group<'_>| match group.columns.as_slice() {
        [only] if !group.question.is_empty() => Some((group.question.to_owned(), only.arm)),
        _ => None,
    };
    let mut merged = Vec::new();
    for chunk in groups.chunk_by(|a, b| alone(a).is_some() && alone(a) == alone(b)) {
        for set in chunk.chunks(if chunk.len() > 1 { 4 } else { 1 }) {
            merged.push(if set.len() > 1 { join(set) } else { set[0].clone() });
        }
    }
    merged
}

fn join<'a>(set: &[Group<'a>]) -> Group<'a> {
    let parts: Vec<Vec<&str>> = set.iter().map(|group| group.title.split(" · ").collect()).collect();
    let (shared, _) = wording::telling(&parts, 0);
    let columns = (0_u8..).zip(set).map(|(series, group)| {
        let (_, own) = wording::telling(&parts, usize::from(series));
        Column { label: own.join(" · "), series, ..group.columns[0].clone() }
    });
    let arm = set[0].columns[0].arm.title();
    Group {
        question: set[0].question,
        title: std::iter::once(arm).chain(shared).collect::<Vec<_>>().join(" · "),
        context: String::new(),
        columns: columns.collect(),
    }
}

/// A cell's title and its context without the load.
fn titles(run: &Run) -> (String, String) {
    let config = &run.summary.config;
    let mut load = vec![
        wording::level("rate", &metric::number(config.rate)),
        wording::level("viewers", &config.viewers.to_string()),
    ];
    if config.posts != 1 {
        load.push(wording::level("posts", &config.posts.to_string()));
    }
    let Some(cell) = &run.summary.cell else {
        return (format!("{} · {}", load.join(" · "), run.summary.file), String::new());
    };
    let known = ["arm", "rate", "viewers", "posts", "likers"];
    let others = cell.levels.iter().filter(|(factor, _)| !known.contains(&factor.as_str()));
    let others = others.filter(|(factor, _)| !wording::is_repetition(factor));
    let mut context: Vec<String> = others.map(|(factor, value)| wording::level(factor, value)).collect();
    context.extend(scenario(cell, config.arm).filter(|name| name != "latency").map(|name| format!("scenario {name}")));
    load.extend(context.iter().cloned());
    (load.join(" · "), context.join(" · "))
}

/// The scenario's name, which stands in a cell's id between question and arm.
fn scenario(cell: &Cell, arm: Arm) -> Option<String> {
    let rest = cell.id.strip_prefix(&cell.question.to_lowercase())?.strip_prefix('-')?;
    let (name, _) = rest.split_once(&format!("-{}", arm.name()))?;
    Some(name.to_owned())
}

impl Group<'_> {
    /// The side-by-side table. A row without any figure is left out.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = vec![Row { label: "validity", values: self.columns.iter().map(validity).collect() }];
        let us = |label, of: fn(&RunSummary) -> Option<f64>| self.row(label, true, metric::micros, of);
        let plain = |label, of: fn(&RunSummary) -> Option<f64>| self.row(label, false, metric::number, of);
        let share = |label, of: fn(&RunSummary) -> Option<f64>| self.row(label, false, metric::percent, of);
        rows.extend([
            share("offered ÷ capacity", |s| s.cell.as_ref()?.offered_over_capacity),
            us("commit → arrival p50", |s| s.commit_to_arrival.p50),
            us("commit → arrival p99", |s| s.commit_to_arrival.p99),
            us("due → arrival p50", |s| s.due_to_arrival.p50),
            us("due → arrival p99", |s| s.due_to_arrival.p99),
            us("commit → last viewer p50", |s| s.commit_to_last.p50),
            us("commit → last viewer p99", |s| s.commit_to_last.p99),
            us("due → answer p99", |s| s.due_to_answer.p99),
            plain("accepted likes/s", |s| Some(s.accepted_rate)),
            plain("deliveries/s", |s| Some(s.deliveries_per_s)),
            plain("events per write", |s| s.events_per_write),
            plain("bytes per delivery", |s| s.bytes_per_delivery),
            self.row("CPU per delivery", false, metric::micros, |s| s.cpu_us_per_delivery),
            share("delivered", |s| Some(s.delivered_share)),
            share("conflated", |s| Some(s.conflated_share)),
            share("superseded", |s| Some(s.superseded_share).filter(|share| *share > 0.0)),
            self.row("staleness p50", false, metric::micros, |s| s.staleness_us.map(|age| age[0])),
            self.row("staleness p99", false, metric::micros, |s| s.staleness_us.map(|age| age[1])),
        ]);
        let ms =
            |label, of: fn(&RunSummary) -> Option<f64>| self.row(label, false, |ms| metric::micros(ms * 1000.0), of);
        rows.extend([
            ms("loss noticed p50", |s| s.noticed_ms.map(|ms| ms[0])),
            ms("loss noticed, longest", |s| s.noticed_ms.map(|ms| ms[1])),
            ms("healed p50", |s| s.healed_ms.map(|ms| ms[0])),
            ms("healed, longest", |s| s.healed_ms.map(|ms| ms[1])),
        ]);
        rows.retain(|row| row.values.iter().any(|value| value.text != NONE));
        rows
    }

    fn row(
        &self,
        label: &'static str,
        latency: bool,
        show: fn(f64) -> String,
        of: fn(&RunSummary) -> Option<f64>,
    ) -> Row {
        let value = |column: &Column<'_>| {
            let hidden = column.validity == Validity::Invalid || (latency && column.validity != Validity::Valid);
            match column.figure(of).filter(|_| !hidden) {
                None => Value { text: NONE.into(), ..Value::default() },
                Some([middle, low, high]) => {
                    Value { text: show(middle), range: wording::range(&show(low), &show(high)), class: "" }
                }
            }
        };
        Row { label, values: self.columns.iter().map(value).collect() }
    }

    /// Why columns are not VALID, and what may not be ranked, as sentences.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for column in &self.columns {
            let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
            for reason in column.all.iter().flat_map(|run| &run.summary.reasons) {
                *counted.entry(reason).or_default() += 1;
            }
            let title = &column.label;
            notes.extend(counted.into_iter().map(|(reason, runs)| match runs {
                1 => format!("{title}: {reason}"),
                runs => format!("{title} ({runs} runs): {reason}"),
            }));
            let before =
                column.all.iter().filter_map(|run| run.summary.cell.as_ref()).flat_map(|cell| &cell.invalid_before);
            notes.extend(
                before.map(|reason| format!("{title}: an earlier attempt was INVALID and was run again: {reason}")),
            );
            let load = column.figure(|s| s.cell.as_ref()?.offered_over_capacity);
            if let Some([load, ..]) = load.filter(|load| load[0] > 0.5 && column.validity == Validity::Valid) {
                notes.push(format!(
                    "{title} ran at {} of its capacity: its latency is shown and not ranked (that is done up to half).",
                    metric::percent(load)
                ));
            }
        }
        notes
    }
}

const NONE: &str = "–";

fn validity(column: &Column<'_>) -> Value {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for run in &column.all {
        *counts.entry(wording::validity(run.summary.validity)).or_default() += 1;
    }
    let own = wording::validity(column.validity);
    let others: Vec<String> =
        counts.iter().filter(|(name, _)| **name != own).map(|(name, n)| format!("{n} {name}")).collect();
    let range = match (column.shown.len(), column.all.len()) {
        (_, 1) => String::new(),
        (shown, all) if shown == all => wording::count(all, "run"),
        (shown, _) => format!("{}, {}", wording::count(shown, "run"), others.join(", ")),
    };
    let class = match column.validity {
        Validity::Valid => "valid",
        Validity::Invalid => "invalid",
        Validity::Saturated => "saturated",
        Validity::WriteBound => "write-bound",
    };
    Value { text: own.to_owned(), range, class }
}
