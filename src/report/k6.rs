//! k6 beside our generator: what each saw of the same likes, and whether they agree.

use std::collections::BTreeMap;

use serde::Serialize;

use super::metric::{grouped, micros, percent};
use super::model::{Results, Run};
use crate::result::k6::{K6Cell, K6Run, K6Trend};
use crate::result::summary::Validity;

/// Runs behind a statement.
const RUNS: usize = 5;
/// The median agrees within this share, or this many µs.
const P50: (f64, f64) = (0.10, 300.0);
/// So does the 99th percentile.
const P99: (f64, f64) = (0.25, 1_000.0);

/// The section.
#[derive(Debug, Serialize)]
pub struct Beside {
    /// One sentence or two per arm that was run beside our generator.
    pub agreement: Vec<String>,
    /// One row per cell of a k6 run.
    pub rows: Vec<Row>,
    /// Thresholds that did not hold, with their run.
    pub broken: Vec<String>,
}

/// One cell of a k6 run.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The file, and the cell's name in it.
    pub name: String,
    /// What stands in the columns of [`COLUMNS`].
    pub figures: Vec<String>,
}

/// The columns of [`Row::figures`].
pub const COLUMNS: [&str; 13] = [
    "arm",
    "viewers",
    "likes/s",
    "stamped by",
    "arrivals",
    "k6 p50",
    "ours p50",
    "k6 p99",
    "ours p99",
    "lost finals",
    "time-outs",
    "gaps",
    "reconnects",
];

/// The section; none where no k6 ran.
#[must_use]
pub fn beside(results: &Results) -> Option<Beside> {
    (!results.k6.is_empty()).then(|| Beside {
        agreement: agreement(results),
        rows: results.k6.iter().flat_map(|run| run.cells.iter().map(|cell| row(results, run, cell))).collect(),
        broken: results.k6.iter().flat_map(broken).collect(),
    })
}

fn broken(run: &K6Run) -> impl Iterator<Item = String> {
    let failed = run.thresholds.iter().filter(|threshold| !threshold.ok);
    failed.map(|threshold| format!("{}: {}: {}", run.file, threshold.metric, threshold.condition))
}

/// Our generator's run that watched the same likes.
fn ours<'a>(results: &'a Results, run: &K6Run) -> Option<&'a Run> {
    let file = run.beside.as_ref()?;
    results.runs.iter().find(|ours| ours.summary.file == *file)
}

fn row(results: &Results, run: &K6Run, cell: &K6Cell) -> Row {
    let dash = || "–".to_owned();
    let shown = |us: Option<f64>| us.map_or_else(dash, micros);
    let ours = ours(results, run).map(|ours| &ours.summary.commit_to_arrival);
    let trend = cell.commit_to_arrival_us;
    Row {
        name: format!("{} {} {}", run.file, run.script, if run.cells.len() > 1 { &cell.name } else { "" })
            .trim_end()
            .into(),
        figures: vec![
            cell.arm.clone().unwrap_or_else(dash),
            cell.viewers.to_string(),
            if cell.rate > 0.0 { cell.rate.to_string() } else { "ours".into() },
            cell.stamped.clone(),
            trend.map_or_else(dash, |trend| grouped(trend.samples as f64)),
            shown(trend.map(|trend| trend.p50)),
            shown(ours.and_then(|ours| ours.p50)),
            shown(trend.map(|trend| trend.p99)),
            shown(ours.and_then(|ours| ours.p99)),
            cell.lost_finals.to_string(),
            cell.timeouts.to_string(),
            grouped(cell.gaps as f64),
            cell.reconnects.to_string(),
        ],
    }
}

/// What one run beside ours says.
struct Pair<'a> {
    k6: K6Trend,
    cell: &'a K6Cell,
    ours: &'a Run,
}

impl Pair<'_> {
    /// k6 and ours, of the two quantiles; none where ours is withheld.
    fn quantiles(&self) -> [Option<(f64, f64)>; 2] {
        let ours = &self.ours.summary.commit_to_arrival;
        [ours.p50.map(|own| (self.k6.p50, own)), ours.p99.map(|own| (self.k6.p99, own))]
    }

    /// Why this pair says nothing.
    fn unfit(&self) -> Option<String> {
        let summary = &self.ours.summary;
        let file = &summary.file;
        match self.cell.stamped.as_str() {
            "kernel" => {}
            "js" => {
                return Some(
                    "k6 stamped arrivals in its JavaScript event loop, so that its own delay is in them".into(),
                );
            }
            other => return Some(format!("arrivals were stamped by {other} in k6, not by the kernel")),
        }
        if !self.ours.generator.kernel_stamps {
            return Some(format!("{file} has no kernel stamps"));
        }
        if summary.validity == Validity::Invalid {
            return Some(format!("{file} is INVALID: {}", summary.reasons.join("; ")));
        }
        if summary.commit_to_arrival.p50.is_none() || summary.commit_to_arrival.p99.is_none() {
            return Some(format!("{file} has too few likes for its p99 to be given"));
        }
        None
    }

    /// Arrivals per viewer in k6 and in ours: unequal, when they did not watch the same likes.
    fn per_viewer(&self) -> (f64, f64) {
        let (k6, own) = (self.cell.viewers.max(1), self.ours.summary.config.viewers.max(1));
        (self.k6.samples as f64 / k6 as f64, self.ours.summary.commit_to_arrival.samples as f64 / f64::from(own))
    }
}

fn within((k6, ours): (f64, f64), (share, us): (f64, f64)) -> bool {
    let apart = (k6 - ours).abs();
    apart <= us || apart <= share * ours
}

/// The largest difference: as a share of ours, and in µs.
fn furthest(pairs: &[(f64, f64)]) -> String {
    let share = pairs.iter().map(|(k6, ours)| (k6 - ours).abs() / ours.max(f64::MIN_POSITIVE)).fold(0.0, f64::max);
    let us = pairs.iter().map(|(k6, ours)| (k6 - ours).abs()).fold(0.0, f64::max);
    format!("{} or {}", percent(share), micros(us))
}

fn agreement(results: &Results) -> Vec<String> {
    let mut by_arm: BTreeMap<&str, Vec<Pair<'_>>> = BTreeMap::new();
    for run in &results.k6 {
        let (Some(ours), [cell]) = (ours(results, run), run.cells.as_slice()) else { continue };
        let (Some(arm), Some(k6)) = (&cell.arm, cell.commit_to_arrival_us) else { continue };
        by_arm.entry(arm).or_default().push(Pair { k6, cell, ours });
    }
    let mut said: Vec<String> = by_arm.iter().map(|(arm, pairs)| judge(arm, pairs)).collect();
    let lonely = results.k6.iter().filter(|run| run.beside.is_some() && ours(results, run).is_none());
    said.extend(lonely.map(|run| {
        let file = run.beside.as_deref().unwrap_or_default();
        format!("{} ran beside {file}, which is not among these run files.", run.file)
    }));
    said
}

fn judge(arm: &str, pairs: &[Pair<'_>]) -> String {
    let unfit: Vec<String> = pairs.iter().filter_map(Pair::unfit).collect();
    let fit: Vec<&Pair<'_>> = pairs.iter().filter(|pair| pair.unfit().is_none()).collect();
    let of = |i: usize| fit.iter().filter_map(|pair| pair.quantiles()[i]).collect::<Vec<_>>();
    let (p50, p99) = (of(0), of(1));
    let figures = format!("the medians are at most {} apart, p99 at most {}", furthest(&p50), furthest(&p99));
    let why =
        if unfit.is_empty() { String::new() } else { format!(" {} left out: {}.", unfit.len(), unfit.join("; ")) };
    if fit.len() < RUNS {
        let shown = if fit.is_empty() { String::new() } else { format!(": {figures}") };
        let runs = if fit.len() == 1 { "run" } else { "runs" };
        return format!("{arm}: no statement from {} {runs} (it takes {RUNS}){shown}.{why}", fit.len());
    }
    let [held50, held99] =
        [(&p50, P50), (&p99, P99)].map(|(all, limit)| all.iter().filter(|one| within(**one, limit)).count());
    let n = fit.len();
    if held50 == n && held99 == n {
        return format!("{arm}: k6 and our generator agree on commit → arrival in {n} of {n} runs: {figures}.{why}");
    }
    let (k6, own): (Vec<f64>, Vec<f64>) = fit.iter().map(|pair| pair.per_viewer()).unzip();
    let unequal = k6.iter().zip(&own).any(|(k6, own)| (k6 - own).abs() > 0.01 * own);
    let reason = if unequal {
        "They did not see the same likes: arrivals per viewer differ by more than 1 %."
    } else {
        "Both saw the same likes with stamps of the same kernel. What is left: a pod writes to one socket after the other, and updates that \
         wait in a socket together share the stamp of the newest, which is oftener so in k6, whose reading has no real-time priority."
    };
    format!(
        "{arm}: k6 and our generator do NOT agree on commit → arrival: p50 within 10 % or 0.3 ms in {held50} of {n} runs, p99 within 25 % or \
         1 ms in {held99} of {n}: {figures}. {reason}{why}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    /// Five k6 runs beside ours of one arm, each `factor` × what ours saw.
    fn five(factor: f64) -> Results {
        let mut results = sample::local();
        results.runs.retain(|run| run.summary.validity == Validity::Valid);
        results.runs.truncate(RUNS);
        for (i, ours) in results.runs.iter_mut().enumerate() {
            ours.generator.kernel_stamps = true;
            let own = &mut ours.summary.commit_to_arrival;
            (own.p50, own.p99) = (Some(4_000.0), Some(9_000.0));
            let samples = own.samples / u64::from(ours.summary.config.viewers) * 10;
            results.k6.push(K6Run {
                file: format!("k6/sse-{i}.json"),
                script: "sse.js".into(),
                beside: Some(ours.summary.file.clone()),
                cells: vec![K6Cell {
                    arm: Some("sse-post".into()),
                    viewers: 10,
                    stamped: "kernel".into(),
                    commit_to_arrival_us: Some(K6Trend { samples, p50: 4_000.0 * factor, p99: 9_000.0 * factor }),
                    ..K6Cell::default()
                }],
                ..K6Run::default()
            });
        }
        results
    }

    fn said(results: &Results) -> String {
        beside(results).unwrap().agreement.join("\n")
    }

    #[test]
    fn agreement_is_said_in_every_run_or_not_at_all() {
        let close = said(&five(1.05));
        assert!(
            close.starts_with("sse-post: k6 and our generator agree on commit → arrival in 5 of 5 runs: "),
            "{close}"
        );
        let mut one_off = five(1.0);
        one_off.k6[2].cells[0].commit_to_arrival_us.as_mut().unwrap().p50 = 4_500.0;
        let off = said(&one_off);
        assert!(
            off.contains("do NOT agree") && off.contains("0.3 ms in 4 of 5 runs") && off.contains("1 ms in 5 of 5"),
            "{off}"
        );
        assert!(off.contains("Both saw the same likes"), "{off}");
        let mut fewer = five(1.3);
        fewer.k6.iter_mut().for_each(|run| run.cells[0].commit_to_arrival_us.as_mut().unwrap().samples /= 2);
        assert!(said(&fewer).contains("did not see the same likes"), "{}", said(&fewer));
    }

    #[test]
    fn what_is_not_comparable_is_left_out_with_its_reason() {
        let mut results = five(1.0);
        results.k6[0].cells[0].stamped = "js".into();
        results.runs[1].summary.validity = Validity::Invalid;
        results.runs[1].summary.reasons = vec!["the generator was busy".into()];
        results.runs[2].summary.commit_to_arrival.p99 = None;
        results.k6[3].beside = Some("cells/gone.run.gz".into());
        let text = said(&results);
        assert!(text.starts_with("sse-post: no statement from 1 run (it takes 5)"), "{text}");
        for why in [
            "JavaScript event loop",
            "is INVALID: the generator was busy",
            "too few likes",
            "not among these run files",
        ] {
            assert!(text.contains(why), "{why}: {text}");
        }
    }

    #[test]
    fn the_scripts_json_is_read_and_shown_and_what_is_not_theirs_is_named() {
        assert_eq!(beside(&sample::local()).map(|_| ()), None);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("k6")).unwrap();
        let kept = r#"{"format":1,"k6":"v2.2.0","script":"sse.js","beside":null,"run":0,"durationS":20.5,"dropped":0,"versions":100,
            "cells":[{"name":"sse","arm":"sse-post","transport":"sse","viewers":10,"rate":20,"posts":1,"stamped":"kernel","commitToArrivalUs":
            {"samples":960,"p50":6644.5,"p90":9000.1,"p99":35234,"max":47571.04},"likeUs":null,"likesOk":100,"likesUnknown":0,"gaps":40,
            "duplicates":0,"reconnects":0,"timeouts":0,"lostFinals":0}],
            "thresholds":[{"metric":"pushlab_commit_to_arrival","condition":"p(99)<10","ok":false}]}"#;
        for (name, text) in [("a.json", kept), ("b.json", "{}"), ("c.json", r#"{"format":7}"#), ("d.txt", "not ours")] {
            std::fs::write(dir.path().join("k6").join(name), text).unwrap();
        }
        let (runs, unreadable) = crate::result::k6::read_folder(dir.path());
        assert_eq!((runs.len(), unreadable.len()), (1, 2), "{unreadable:?}");
        assert!(unreadable[1].contains("format 7"));
        let results = Results { k6: runs, ..sample::local() };
        let (_, page) = crate::report::render::judge_and_render(&results).unwrap();
        for (text, less) in [(&page.html, "&lt;"), (&page.markdown, "<")] {
            let threshold = format!("pushlab_commit_to_arrival: p(99){less}10");
            assert!(text.contains("k6 beside our generator") && text.contains(&threshold));
            assert!(text.contains("6.64") && text.contains("35.2"));
        }
        let json: serde_json::Value = serde_json::from_str(&page.json).unwrap();
        let schema: serde_json::Value = serde_json::from_str(crate::report::render::SCHEMA).unwrap();
        assert!(jsonschema::is_valid(&schema, &json));
    }
}
