//! What the templates print: every sentence and table of the page, made from the results alone.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::cells::{self, Group, Row};
use super::chart::{self, Chart};
use super::model::{Results, Run};
use super::verdict::{Outcome, Verdict};
use super::{faults, findings, k6, metric, prometheus, questions, waterfall, wording};
use crate::result::Environment;
use crate::result::summary::{Account, Validity};

/// Everything the templates print.
#[derive(Debug, Serialize)]
pub struct Page {
    embedded: bool,
    environment: Environment,
    began: String,
    facts: Vec<(String, String)>,
    tiles: Vec<Tile>,
    violations: Vec<String>,
    unreadable: Vec<String>,
    answers: Vec<Answer>,
    cells: Vec<Section>,
    charts: Vec<(String, Vec<Chart>)>,
    ledger: Vec<LedgerRow>,
    ledger_total: LedgerRow,
    scenarios: Vec<Scenario>,
    waterfalls: Vec<waterfall::Waterfall>,
    prometheus: Option<prometheus::Section>,
    generator: Vec<GeneratorRow>,
    k6: Option<k6::Beside>,
    k6_columns: [&'static str; k6::COLUMNS.len()],
    processes: Vec<ProcessRow>,
    limits: Vec<String>,
    missing: Vec<(String, String)>,
}

/// A figure at the top of the page.
#[derive(Debug, Serialize)]
struct Tile {
    value: String,
    label: String,
    class: &'static str,
}

/// A question and what the pairs say.
#[derive(Debug, Serialize)]
struct Answer {
    question: String,
    text: String,
    verdicts: Vec<Verdict>,
    intervals: Option<Chart>,
    /// Said when there is no pair, or beside the verdicts.
    remarks: Vec<String>,
    command: String,
}

/// The cells of a question.
#[derive(Debug, Serialize)]
struct Section {
    question: String,
    text: String,
    cells: Vec<CellTable>,
}

#[derive(Debug, Serialize)]
struct CellTable {
    title: String,
    arms: Vec<String>,
    rows: Vec<Row>,
    notes: Vec<String>,
    charts: Vec<Chart>,
}

/// The ledger's account of a run, or of all.
#[derive(Debug, Serialize)]
struct LedgerRow {
    name: String,
    closes: bool,
    figures: Vec<String>,
    agree: &'static str,
    violations: Vec<String>,
}

/// A scenario's own figures: one row per figure, one column per level, or the other way round.
#[derive(Debug, Serialize)]
struct Scenario {
    question: String,
    text: String,
    corner: &'static str,
    head: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
    /// One sentence per figure: its least and its greatest value, and where.
    extremes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct GeneratorRow {
    name: String,
    figures: Vec<String>,
    stamps: &'static str,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ProcessRow {
    name: String,
    figures: Vec<String>,
}

/// The page of these results.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn page(results: &Results, verdicts: &[Verdict]) -> anyhow::Result<Page> {
    let groups = cells::groups(&results.runs);
    let environment = results.environment.clone();
    let total = total(results);
    Ok(Page {
        embedded: results.embedded(),
        began: date(environment.started),
        facts: facts(&environment),
        tiles: tiles(results, &total),
        violations: results.violations(),
        unreadable: results.unreadable.clone(),
        answers: answers(results, verdicts, &scenarios(&groups), &groups)?,
        cells: sections(&cells::beside(&groups), results.embedded())?,
        charts: charts(&groups, results.embedded())?,
        ledger: results.runs.iter().map(|run| ledger_row(name(run), &run.summary.account)).collect(),
        ledger_total: total,
        scenarios: scenarios(&groups),
        waterfalls: waterfall::waterfalls(&groups),
        prometheus: prometheus::section(results)?,
        generator: results.runs.iter().map(generator_row).collect(),
        k6: k6::beside(results),
        k6_columns: k6::COLUMNS,
        processes: processes(&results.runs),
        limits: limits(results),
        missing: missing(results),
        environment,
    })
}

fn name(run: &Run) -> String {
    let file = run.summary.file.strip_prefix("cells/").unwrap_or(&run.summary.file);
    file.strip_suffix(".run.gz").unwrap_or(file).to_owned()
}

fn date(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string().replace('T', " ").replace('Z', " UTC")
}

fn facts(environment: &Environment) -> Vec<(String, String)> {
    let calibration = environment.calibration.iter().map(|(name, value)| (name.clone(), metric::number(*value)));
    environment.facts.clone().into_iter().chain(calibration).collect()
}

fn tiles(results: &Results, total: &LedgerRow) -> Vec<Tile> {
    let of = |validity| results.runs.iter().filter(|run| run.summary.validity == validity).count();
    let mut tiles = vec![Tile { value: results.runs.len().to_string(), label: "runs".into(), class: "" }];
    for validity in [Validity::Valid, Validity::Saturated, Validity::WriteBound, Validity::Invalid] {
        let class = if validity == Validity::Invalid { "bad" } else { "" };
        match of(validity) {
            0 => {}
            n => tiles.push(Tile { value: n.to_string(), label: wording::validity(validity).into(), class }),
        }
    }
    let received: u64 = results.runs.iter().map(|run| run.summary.account.received).sum();
    tiles.push(Tile { value: metric::grouped(received as f64), label: "versions received".into(), class: "" });
    let lost: u64 = results.runs.iter().map(|run| run.summary.account.lost).sum();
    tiles.push(Tile { value: lost.to_string(), label: "lost".into(), class: if lost == 0 { "good" } else { "bad" } });
    let (value, class) = if total.closes { ("closes", "good") } else { ("BROKEN", "bad") };
    tiles.push(Tile { value: value.into(), label: "ledger".into(), class });
    tiles
}

fn answers(
    results: &Results,
    verdicts: &[Verdict],
    scenarios: &[Scenario],
    groups: &[Group<'_>],
) -> anyhow::Result<Vec<Answer>> {
    let asked: BTreeSet<_> =
        results.runs.iter().map(|run| (wording::natural(run.question()), run.question())).collect();
    let mut answers = Vec::new();
    for (_, question) in asked.into_iter().filter(|(_, question)| !question.is_empty()) {
        let own: Vec<&Verdict> = verdicts.iter().filter(|v| v.question == question).collect();
        answers.push(Answer {
            question: question.to_owned(),
            text: questions::text(question).to_owned(),
            intervals: chart::intervals(&own)?,
            remarks: remarks(question, &own, scenarios, groups),
            verdicts: own.into_iter().cloned().collect(),
            command: results.command_for(question),
        });
    }
    answers.extend(findings::no_stickiness(results).map(|remark| Answer {
        question: "Q8".into(),
        text: questions::text("Q8").to_owned(),
        verdicts: Vec::new(),
        intervals: None,
        remarks: vec![remark],
        command: results.environment.command.clone(),
    }));
    Ok(answers)
}

fn remarks(question: &str, verdicts: &[&Verdict], scenarios: &[Scenario], groups: &[Group<'_>]) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(shared) = verdicts.first().map(|v| &v.shared).filter(|shared| !shared.is_empty()) {
        remarks.push(format!("All of it at {shared}."));
    }
    if verdicts.iter().any(|v| v.outcome == Outcome::NoVerdict) {
        remarks.push("Too few pairs for a verdict; the plan \"full\" runs at least eight per claim.".into());
    }
    remarks.extend(findings::of(question, groups));
    let figures = scenarios.iter().filter(|scenario| scenario.question == question).flat_map(|s| &s.extremes);
    remarks.extend(figures.cloned());
    if verdicts.is_empty() {
        remarks.extend(findings::side_by_side(question, groups));
        let remark = "No verdict: the plan pairs no runs here. These are medians of single runs, side by side below.";
        remarks.push(remark.into());
    }
    remarks
}

fn sections(groups: &[Group<'_>], apart: bool) -> anyhow::Result<Vec<Section>> {
    let mut sections: Vec<Section> = Vec::new();
    for group in groups {
        if sections.last().is_none_or(|section| section.question != group.question) {
            let text = questions::text(group.question).to_owned();
            sections.push(Section { question: group.question.to_owned(), text, cells: Vec::new() });
        }
        let mut own = chart::percentiles(group, apart)?;
        own.extend(chart::connections(group)?);
        own.extend(chart::timelines(group, apart)?);
        let table = CellTable {
            title: group.title.clone(),
            arms: group.columns.iter().map(|column| column.label.clone()).collect(),
            rows: group.rows(),
            notes: group.notes(),
            charts: own,
        };
        sections.last_mut().expect("pushed above").cells.push(table);
    }
    Ok(sections)
}

/// What is drawn over several cells; what belongs to one cell stands beside its table.
fn charts(groups: &[Group<'_>], apart: bool) -> anyhow::Result<Vec<(String, Vec<Chart>)>> {
    let all = [
        ("Latency against load", chart::over_load(groups, apart)?),
        ("CPU per delivery, whole system by process", chart::cpu(groups)?),
    ];
    Ok(all
        .into_iter()
        .filter(|(_, charts)| !charts.is_empty())
        .map(|(name, charts)| (name.to_owned(), charts))
        .collect())
}

fn ledger_row(name: String, account: &Account) -> LedgerRow {
    let versions = [
        account.expected,
        account.received,
        account.conflated,
        account.superseded,
        account.dropped,
        account.snapshot,
        account.lost,
        account.missing,
        account.pods_missing,
    ];
    let mut figures: Vec<String> = versions.iter().map(|n| metric::grouped(*n as f64)).collect();
    figures.push(format!("{} / {}", account.on_final, account.live_viewers));
    figures.push(format!("{} ≤ {} ≤ {}", account.ok, account.version_delta, account.ok + account.unknown));
    let agree = match account.counters_agree {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "not had",
    };
    LedgerRow { name, closes: account.closes(), figures, agree, violations: account.violations.clone() }
}

fn total(results: &Results) -> LedgerRow {
    let mut sum = Account { counters_agree: Some(true), ..Account::default() };
    for account in results.runs.iter().map(|run| &run.summary.account) {
        for (sum, own) in counts(&mut sum).into_iter().zip(counts(&mut account.clone())) {
            *sum += *own;
        }
        sum.counters_agree = match (sum.counters_agree, account.counters_agree) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (None, _) | (_, None) => None,
            _ => Some(true),
        };
        sum.violations.extend(account.violations.iter().cloned());
    }
    ledger_row(format!("all {} runs", results.runs.len()), &sum)
}

/// The countable fields of an account.
fn counts(account: &mut Account) -> [&mut u64; 14] {
    let Account { expected, received, conflated, superseded, dropped, snapshot, lost, missing, .. } = account;
    let Account { pods_missing, live_viewers, on_final, ok, unknown, version_delta, .. } = account;
    [
        expected,
        received,
        conflated,
        superseded,
        dropped,
        snapshot,
        lost,
        missing,
        pods_missing,
        live_viewers,
        on_final,
        ok,
        unknown,
        version_delta,
    ]
}

/// A cell's title and its scenario's figures.
type Figures = (String, BTreeMap<String, f64>);

fn scenarios(groups: &[Group<'_>]) -> Vec<Scenario> {
    let mut by_question: BTreeMap<(wording::Natural, &str), Vec<Figures>> = BTreeMap::new();
    for group in groups.iter().filter(|group| !faults::is_one(group)) {
        for column in group.columns.iter().filter(|column| column.validity != Validity::Invalid) {
            // Where sessions were is what Q8 is answered from, not a figure of the scenario.
            let names: BTreeSet<&String> = column.shown.iter().flat_map(|run| run.summary.figures.keys()).collect();
            let names = names.into_iter().filter(|name| !name.starts_with("pods_with_"));
            let median = |name: &String| Some((name.clone(), column.figure(|s| s.figures.get(name).copied())?[0]));
            let figures: BTreeMap<String, f64> = names.filter_map(median).collect();
            if !figures.is_empty() {
                let title = format!("{} · {}", column.arm.title(), group.title);
                let key = (wording::natural(group.question), group.question);
                by_question.entry(key).or_default().push((title, figures));
            }
        }
    }
    let all = by_question.into_iter().map(|((_, question), cells)| {
        let cells = shorten(cells);
        let names: BTreeSet<&String> = cells.iter().flat_map(|(_, figures)| figures.keys()).collect();
        let value = |figures: &BTreeMap<String, f64>, name: &str| {
            figures.get(name).map_or_else(|| "–".to_owned(), |value| metric::show(name, *value))
        };
        let prose = |name: &String| metric::title(name);
        let extremes = names.iter().filter_map(|name| extremes(name, &cells)).collect();
        let (corner, head, rows) = if names.len() > cells.len() {
            let head = cells.iter().map(|(title, _)| title.clone()).collect();
            let row = |name: &String| (prose(name), cells.iter().map(|(_, figures)| value(figures, name)).collect());
            ("figure", head, names.iter().map(|name| row(name)).collect())
        } else {
            let row = |(title, figures): &(String, BTreeMap<String, f64>)| {
                (title.clone(), names.iter().map(|name| value(figures, name)).collect())
            };
            ("cell", names.iter().map(|name| prose(name)).collect(), cells.iter().map(row).collect())
        };
        let text = questions::text(question).to_owned();
        Scenario { question: question.to_owned(), text, corner, head, rows, extremes }
    });
    let failed = faults::table(groups).map(|(head, rows)| Scenario {
        question: "Q12".into(),
        text: questions::text("Q12").to_owned(),
        corner: "fault",
        head,
        rows,
        extremes: Vec::new(),
    });
    all.chain(failed).collect()
}

/// `max over mean: 1.04 (edge least-conn) to 1.92 (edge round-robin)`; none where all cells agree.
fn extremes(name: &str, cells: &[Figures]) -> Option<String> {
    let mut found: Vec<(f64, &String)> =
        cells.iter().filter_map(|(title, figures)| Some((*figures.get(name)?, title))).collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (least, most) = (found.first()?, found.last()?);
    let prose = wording::upper_first(&metric::title(name));
    let (low, high) = (metric::show(name, least.0), metric::show(name, most.0));
    (low != high).then(|| format!("{prose}: {low} ({}) to {high} ({}).", least.1, most.1))
}

/// Leaves out of the titles what all of them share.
fn shorten(mut cells: Vec<Figures>) -> Vec<Figures> {
    let parts: Vec<Vec<String>> =
        cells.iter().map(|(title, _)| title.split(" · ").map(ToOwned::to_owned).collect()).collect();
    for (cell, own) in cells.iter_mut().zip(&parts) {
        let telling = own.iter().filter(|part| !parts.iter().all(|other| other.contains(part)));
        let short = telling.cloned().collect::<Vec<_>>().join(" · ");
        if !short.is_empty() {
            cell.0 = short;
        }
    }
    cells
}

fn generator_row(run: &Run) -> GeneratorRow {
    let health = &run.generator;
    let share = health.cpu_s / (health.window_s * health.cores.max(1.0)).max(f64::MIN_POSITIVE);
    let mut figures: Vec<String> = health.schedule_lag_us.iter().map(|us| metric::micros(*us)).collect();
    figures.extend(health.stamp_to_read_us.iter().map(|us| metric::micros(*us)));
    figures.push(metric::percent(share));
    figures.extend([health.viewer_connections, health.liker_connections, health.fds].map(|n| n.to_string()));
    GeneratorRow {
        name: name(run),
        figures,
        stamps: if health.kernel_stamps { "kernel" } else { "user space" },
        problems: health.problems.clone(),
    }
}

fn processes(runs: &[Run]) -> Vec<ProcessRow> {
    let mut most: BTreeMap<&str, [f64; 4]> = BTreeMap::new();
    for process in runs.iter().filter_map(|run| run.observed.as_ref()).flat_map(|observed| &observed.processes) {
        let own = most.entry(&process.name).or_default();
        let new = [process.user_s, process.system_s, process.rss_bytes as f64 / 1_048_576.0, f64::from(process.fds)];
        for (most, new) in own.iter_mut().zip(new) {
            *most = most.max(new);
        }
    }
    let row = |(name, [user, system, mib, fds]): (&str, [f64; 4])| ProcessRow {
        name: name.to_owned(),
        figures: vec![
            format!("{} s", metric::number(user)),
            format!("{} s", metric::number(system)),
            format!("{} MiB", metric::number(mib)),
            metric::number(fds),
        ],
    };
    most.into_iter().map(row).collect()
}

fn limits(results: &Results) -> Vec<String> {
    let mut limits: Vec<String> =
        questions::limits(&results.environment.stack).into_iter().map(ToOwned::to_owned).collect();
    if results.runs.iter().any(|run| !run.generator.kernel_stamps) {
        limits.push(
            "Kernel receive stamps were not had in every run: there, arrivals include the generator's own delay."
                .into(),
        );
    }
    limits
}

fn missing(results: &Results) -> Vec<(String, String)> {
    let asked: BTreeSet<&str> = results.runs.iter().map(Run::question).collect();
    let missing = questions::QUESTIONS.iter().filter(|(number, _)| !asked.contains(number) && *number != "Q8");
    missing.map(|(number, text)| ((*number).to_owned(), (*text).to_owned())).collect()
}
