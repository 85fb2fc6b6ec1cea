//! What Prometheus saw: key panels of the dashboards drawn by our own charts, and three histograms beside each other.

use anyhow::bail;
use serde::Serialize;

use super::chart::draw::{self, Axis, Line};
use super::chart::{self, Chart};
use super::model::{Results, Run};
use super::picture::picture;
use super::{metric, wording};
use crate::result::snapshot::{Latency, Measured, Panel, Series, Snapshot};
use crate::result::summary::{Quantiles, Validity};

/// Lines a chart can tell apart.
const INKS: usize = 8;

/// The section of a report; none where nothing was observed.
#[derive(Debug, Serialize)]
pub struct Section {
    version: String,
    scrape_s: f64,
    /// What was not to be had, in any run.
    missing: Vec<String>,
    runs: Vec<Observed>,
}

/// One run as Prometheus saw it.
#[derive(Debug, Serialize)]
struct Observed {
    name: String,
    /// Whose latency, and its p50, p90, p99 and mean.
    rows: Vec<(&'static str, Vec<String>)>,
    /// What the rows come to.
    remarks: Vec<String>,
    charts: Vec<Chart>,
}

/// The section of these results.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn section(results: &Results) -> anyhow::Result<Option<Section>> {
    let Some(first) = results.snapshots.first() else { return Ok(None) };
    let mut missing: Vec<String> = results.snapshots.iter().flat_map(|snapshot| snapshot.missing.clone()).collect();
    missing.sort();
    missing.dedup();
    let mut runs = Vec::new();
    for snapshot in &results.snapshots {
        let file = format!("cells/{}", snapshot.run);
        let run = results.runs.iter().find(|run| run.summary.file == file);
        let (rows, remarks) = run.map(|run| latencies(run, snapshot)).unwrap_or_default();
        let charts = snapshot.panels.iter().filter(|panel| !panel.series.is_empty());
        let charts = charts.map(|panel| draw_panel(panel, run)).collect::<Result<_, _>>()?;
        let name = snapshot.run.strip_suffix(".run.gz").unwrap_or(&snapshot.run).to_owned();
        runs.push(Observed { name, rows, remarks, charts });
    }
    Ok(Some(Section { version: first.prometheus.clone(), scrape_s: first.scrape_s, missing, runs }))
}

/// The named panels of each observed run as a picture of their own, in the order of the names: run → SVG.
///
/// # Errors
/// When nothing was observed, no panel has such a title, or a chart cannot be drawn.
pub fn pictures(results: &Results, titles: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let mut pictures = Vec::new();
    for snapshot in &results.snapshots {
        let run = results.runs.iter().find(|run| run.summary.file == format!("cells/{}", snapshot.run));
        let mut charts = Vec::new();
        for title in titles {
            let Some(panel) = snapshot.panels.iter().find(|panel| panel.title == *title) else {
                let known: Vec<_> = snapshot.panels.iter().map(|panel| panel.title.as_str()).collect();
                bail!("no panel {title:?} was kept; there are: {}", known.join("; "));
            };
            if !panel.series.is_empty() {
                charts.push(draw_panel(panel, run)?);
            }
        }
        let name = snapshot.run.strip_suffix(".run.gz").unwrap_or(&snapshot.run).to_owned();
        let levels = run.and_then(|run| run.summary.cell.as_ref()).map(|cell| &cell.levels);
        let named = |factors: &[&str]| {
            let of = |name: &&str| Some(wording::level(name, levels?.get(*name)?));
            factors.iter().filter_map(of).collect::<Vec<_>>().join(" · ")
        };
        let heading = named(&["fault", "hold", "silence", "heartbeat"]);
        let circumstances = named(&["arm", "edge", "rate", "viewers", "posts", "pods"]);
        pictures.push((name, picture(&heading, &circumstances, &charts)));
    }
    if pictures.is_empty() {
        bail!("no Prometheus watched these runs; do: pushlab compare --observe");
    }
    Ok(pictures)
}

/// The ledger beside the generator's histogram and the pods': rows and remarks.
fn latencies(run: &Run, snapshot: &Snapshot) -> (Vec<(&'static str, Vec<String>)>, Vec<String>) {
    let summary = &run.summary;
    if summary.validity != Validity::Valid {
        return (Vec::new(), vec!["No latencies: this run's may not be compared.".into()]);
    }
    let of = |measured| snapshot.latencies.iter().find(|latency| latency.of == measured);
    let (generator, pods) = (of(Measured::Generator), of(Measured::Pods));
    let Quantiles { p50, p90, p99, .. } = &summary.commit_to_arrival;
    let ledger = [(0.5, "p50", *p50), (0.9, "p90", *p90), (0.99, "p99", *p99)];
    let show = |us: Option<f64>| us.map_or_else(|| "–".to_owned(), metric::micros);
    let told = |latency: Option<&Latency>, q: f64| latency?.quantile(q).map(|seconds| seconds * 1e6);
    let mean = |latency: Option<&Latency>| latency.map(|latency| latency.mean * 1e6);
    let row = |own: [Option<f64>; 3], mean: Option<f64>| own.into_iter().chain([mean]).map(show).collect();
    let mut rows = vec![("ledger, commit → arrival", row(ledger.map(|(_, _, us)| us), None))];
    if generator.is_some() {
        let own = ledger.map(|(q, ..)| told(generator, q));
        rows.push(("generator's histogram, the same stamps", row(own, mean(generator))));
    }
    if pods.is_some() {
        rows.push(("pods' histogram, commit → socket write", row(ledger.map(|(q, ..)| told(pods, q)), mean(pods))));
        let between = ledger.map(|(q, _, us)| us.zip(told(pods, q)).map(|(arrival, write)| arrival - write));
        let between = row(between, mean(generator).zip(mean(pods)).map(|(arrival, write)| arrival - write));
        rows.push(("difference: edge and kernel", between));
    }
    let mut remarks = Vec::new();
    if p99.is_none() {
        let likes = summary.commit_to_arrival.likes;
        remarks.push(format!(
            "The ledger has no p99 of {likes} likes where they are fewer than 1,000 or the generator was late."
        ));
    }
    if let Some(generator) = generator {
        let (mut agree, mut apart) = (Vec::new(), Vec::new());
        for (q, name, us) in ledger {
            let Some((ledger, own)) = us.zip(generator.quantile(q)) else { continue };
            let distance = generator.bucket_of(ledger / 1e6).abs_diff(generator.bucket_of(own));
            match distance {
                0 | 1 => agree.push(name),
                _ => apart.push(format!("{name} by {distance} buckets")),
            }
        }
        if !agree.is_empty() {
            let all = agree.join(", ");
            remarks.push(format!("Ledger and generator's histogram agree within one bucket at {all}."));
        }
        if !apart.is_empty() {
            remarks.push(format!("Ledger and generator's histogram differ at {}.", apart.join(", ")));
        }
    }
    if let Some(pods) = pods {
        let same = |(q, _, us): &(f64, &str, Option<f64>)| {
            us.zip(pods.quantile(*q)).is_some_and(|(us, own)| pods.bucket_of(us / 1e6) == pods.bucket_of(own))
        };
        let within: Vec<_> = ledger.iter().filter(|quantile| same(quantile)).map(|(_, name, _)| *name).collect();
        if !within.is_empty() {
            let all = within.join(", ");
            remarks.push(format!(
                "At {all} ledger and pods lie in one bucket: there only the means tell their difference."
            ));
        }
    }
    (rows, remarks)
}

/// A panel as a chart of ours, with what was done to the stack marked.
fn draw_panel(panel: &Panel, run: Option<&Run>) -> anyhow::Result<Chart> {
    let most = |series: &Series| series.points.iter().map(|point| point.1.abs()).fold(0.0, f64::max);
    let mut kept: Vec<&Series> = panel.series.iter().collect();
    kept.sort_by(|a, b| most(b).total_cmp(&most(a)));
    if kept.len() > 4 && most(kept[0]) > 0.0 {
        kept.retain(|series| most(series) > 0.0); // a list of reasons that did not happen hides the one that did
    }
    let happened = kept.len();
    kept.truncate(INKS);
    kept.sort_by(|a, b| a.name.cmp(&b.name));
    let values = || kept.iter().flat_map(|series| series.points.iter().map(|point| point.1));
    let logarithmic = panel.logarithmic && values().any(|value| value > 0.0);
    let (unit, label) = unit(&panel.unit);
    let y = if logarithmic {
        Axis::log(unit, values().filter(|value| *value > 0.0), label)
    } else {
        let low = values().fold(0.0, f64::min);
        Axis::linear(unit, low, values().fold(low, f64::max) * 1.08, label)
    };
    let mut lines = Vec::new();
    for (ink, series) in (0..).zip(&kept) {
        let own = series.points.iter().filter(|point| !logarithmic || point.1 > 0.0);
        let own: Vec<(f64, f64)> = own.map(|p| if logarithmic { (p.0, p.1.log10()) } else { *p }).collect();
        // A line is broken where Prometheus had no number.
        for part in own.chunk_by(|a, b| b.0 - a.0 < 1.5) {
            lines.push(Line { series: ink, width: 2, dots: part.len() == 1, points: part.to_vec() });
        }
    }
    let end = lines.iter().flat_map(|line| &line.points).map(|p| p.0).fold(1.0, f64::max);
    let x = Axis::linear("seconds", 0.0, run.map_or(end, |run| run.phases_s[2].max(end)), metric::number);
    let marks = run.map(chart::marks).unwrap_or_default();
    let svg = draw::lines(&format!("{}: {}", panel.dashboard, panel.title), &x, &y, &lines, &marks)?;
    let legend = (0..).zip(&kept).map(|(ink, series)| (ink, series.name.clone())).collect();
    let more = match (panel.series.len() - happened, happened - kept.len()) {
        (0, 0) => String::new(),
        (zero, 0) => format!(" · {zero} at 0"),
        (zero, smaller) => format!(" · {} left out", zero + smaller),
    };
    Ok(Chart::new(&panel.title, &format!("{}{more}", panel.dashboard), legend, svg))
}

/// Grafana's unit as a title of an axis, and its labels.
fn unit(name: &str) -> (&'static str, fn(f64) -> String) {
    match name {
        "s" => ("", |seconds| metric::micros(seconds * 1e6)),
        "ms" => ("", |millis| metric::micros(millis * 1e3)),
        "µs" => ("", metric::micros),
        "percentunit" => ("", metric::percent),
        "percent" => ("", |percent| metric::percent(percent / 100.0)),
        "bytes" | "decbytes" => ("", bytes),
        "Bps" | "binBps" => ("per second", bytes),
        "ops" | "reqps" | "cps" | "wps" | "rps" | "eps" => ("per second", metric::number),
        _ => ("", metric::number),
    }
}

fn bytes(value: f64) -> String {
    match value.abs() {
        size if size < 1_024.0 => format!("{} B", metric::number(value)),
        size if size < 1_048_576.0 => format!("{} KiB", metric::number(value / 1_024.0)),
        size if size < 1_073_741_824.0 => format!("{} MiB", metric::number(value / 1_048_576.0)),
        _ => format!("{} GiB", metric::number(value / 1_073_741_824.0)),
    }
}
