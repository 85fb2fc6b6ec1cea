//! The charts of a report: percentile curves, time lines, connections per pod, latency over load, CPU per delivery, intervals.

/// Axes, lines, bars and labels.
pub mod draw;

use std::collections::BTreeMap;

use plotters::prelude::{Circle, PathElement};
use plotters::style::text_anchor::{HPos, VPos};
use serde::Serialize;

use self::draw::{Axis, Ink, Line, WIDTH};
use super::cells::{Column, Group};
use super::metric;
use super::model::Run;
use super::verdict::Verdict;
use crate::result::summary::Validity;

/// A finished chart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chart {
    /// What it shows, as a heading.
    pub title: String,
    /// Under what conditions.
    pub subtitle: String,
    /// Series number and name, for the legend.
    pub legend: Vec<(u8, String)>,
    /// Whether series are filled areas, which have no dash pattern.
    pub filled: bool,
    /// The drawing.
    pub svg: String,
}

impl Chart {
    pub(super) fn new(title: &str, subtitle: &str, legend: Vec<(u8, String)>, svg: String) -> Self {
        Self { title: title.to_owned(), subtitle: subtitle.to_owned(), legend, filled: false, svg }
    }
}

/// Columns whose latency may be shown.
fn valid<'a, 'b>(group: &'b Group<'a>) -> impl Iterator<Item = &'b Column<'a>> {
    group.columns.iter().filter(|column| column.validity == Validity::Valid)
}

/// Do the columns differ in arm? (Else they are edges, methods, … of one arm, which may be overlaid on any stack.)
fn arms_differ(group: &Group<'_>) -> bool {
    group.columns.iter().any(|column| column.arm != group.columns[0].arm)
}

fn legend(columns: &[&Column<'_>]) -> Vec<(u8, String)> {
    columns.iter().map(|column| (column.series, column.label.clone())).collect()
}

/// Percentiles of commit → arrival, the arms overlaid, over log 1/(1 − p). With `apart` each arm has a chart of its own.
///
/// # Errors
/// When plotters fails.
pub fn percentiles(group: &Group<'_>, apart: bool) -> anyhow::Result<Vec<Chart>> {
    let with_curve = |column: &&Column<'_>| column.typical().is_some_and(|run| run.summary.curve.len() > 1);
    let columns: Vec<&Column<'_>> = valid(group).filter(with_curve).collect();
    let sets: Vec<&[&Column<'_>]> =
        if apart && arms_differ(group) { columns.chunks(1).collect() } else { vec![&columns] };
    let mut charts = Vec::new();
    for set in sets.into_iter().filter(|set| !set.is_empty()) {
        let points = |column: &Column<'_>| -> Vec<(f64, f64)> {
            let curve = column.typical().map(|run| run.summary.curve.as_slice()).unwrap_or_default();
            let usable = curve.iter().filter(|(q, us)| (0.0..1.0).contains(q) && *us > 0.0);
            usable.map(|(q, us)| (-(1.0 - q).log10(), us.log10())).collect()
        };
        let curves: Vec<Line> = set
            .iter()
            .map(|column| Line { series: column.series, width: 2, dots: false, points: points(column) })
            .collect();
        let all = || curves.iter().flat_map(|line| &line.points);
        let end = all().map(|p| p.0).fold(1.0, f64::max);
        let named = [(0.0, "0"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];
        let ticks = named.iter().map(|(q, text)| (-(1.0_f64 - q).log10(), (*text).to_owned()));
        let ticks = ticks.filter(|(at, _)| *at <= end + 1e-9).collect();
        let x = Axis { range: (0.0, end), ticks, title: "share of deliveries within".into() };
        let y = Axis::log("commit → arrival", all().map(|p| 10_f64.powf(p.1)), metric::micros);
        let label = format!("Percentile curves of commit to arrival, {}", group.title);
        let svg = draw::lines(&label, &x, &y, &curves, &[])?;
        charts.push(Chart::new("Percentiles, commit → arrival", &group.title, legend(set), svg));
    }
    Ok(charts)
}

/// commit → arrival p99 (thick) and p50 (thin) per second of the run, with what was done to the stack.
///
/// # Errors
/// When plotters fails.
pub fn timelines(group: &Group<'_>, apart: bool) -> anyhow::Result<Vec<Chart>> {
    let with_line = |column: &&Column<'_>| column.typical().is_some_and(|run| run.summary.timeline.len() > 2);
    let columns: Vec<&Column<'_>> = valid(group).filter(with_line).collect();
    let marked = columns.iter().any(|column| column.typical().is_some_and(|run| !marks(run).is_empty()));
    let sets: Vec<&[&Column<'_>]> =
        if marked || (apart && arms_differ(group)) { columns.chunks(1).collect() } else { vec![&columns] };
    let mut charts = Vec::new();
    for set in sets.into_iter().filter(|set| !set.is_empty()) {
        let mut all = Vec::new();
        for column in set {
            let line = column.typical().map(|run| run.summary.timeline.as_slice()).unwrap_or_default();
            let of = |us: fn(&(f64, f64, f64)) -> f64| -> Vec<(f64, f64)> {
                line.iter().filter(|p| us(p) > 0.0).map(|p| (p.0, us(p).log10())).collect()
            };
            all.push(Line { series: column.series, width: 2, dots: false, points: of(|p| p.2) });
            all.push(Line { series: column.series, width: 1, dots: false, points: of(|p| p.1) });
        }
        let points = || all.iter().flat_map(|line| &line.points);
        let run = set[0].typical();
        let end = points().map(|p| p.0).fold(run.map_or(1.0, |run| run.phases_s[2]), f64::max);
        let x = Axis::linear("seconds", 0.0, end, metric::number);
        let y = Axis::log("commit → arrival: p99, p50 thin", points().map(|p| 10_f64.powf(p.1)), metric::micros);
        let mut marks = run.map(marks).unwrap_or_default();
        if let Some(run) = run.filter(|_| !marked) {
            marks.push((run.phases_s[0], "measured from".into()));
            marks.push((run.phases_s[1], "to".into()));
        }
        let svg = draw::lines(&format!("Latency over time, {}", group.title), &x, &y, &all, &marks)?;
        let subtitle = match set {
            [only] => format!("{} · {}", only.label, group.title),
            _ => group.title.clone(),
        };
        charts.push(Chart::new("Time line, commit → arrival", &subtitle, legend(set), svg));
    }
    Ok(charts)
}

/// What was done to the stack: seconds after the origin, and what.
#[must_use]
pub fn marks(run: &Run) -> Vec<(f64, String)> {
    let markers = run.observed.iter().flat_map(|observed| &observed.markers);
    markers.map(|marker| (marker.at_us as f64 / 1e6, marker.label.clone())).collect()
}

/// Viewer connections of each pod over time, one chart per arm; only where something changed.
///
/// # Errors
/// When plotters fails.
pub fn connections(group: &Group<'_>) -> anyhow::Result<Vec<Chart>> {
    let mut charts = Vec::new();
    for column in &group.columns {
        let Some(run) = column.typical() else { continue };
        let pods = run.observed.as_ref().map(|observed| observed.connections.as_slice()).unwrap_or_default();
        if pods.len() < 2 || (marks(run).is_empty() && run.question() != "Q4") {
            continue;
        }
        let lines: Vec<Line> = (0..8)
            .zip(pods)
            .map(|(series, pod)| {
                let points = pod.samples.iter().map(|(us, n)| (*us as f64 / 1e6, f64::from(*n))).collect();
                Line { series, width: 2, dots: false, points }
            })
            .collect();
        let points = || lines.iter().flat_map(|line| &line.points);
        let x = Axis::linear("seconds", 0.0, points().map(|p| p.0).fold(1.0, f64::max), metric::number);
        let y = Axis::linear("viewers", 0.0, points().map(|p| p.1).fold(1.0, f64::max) * 1.08, metric::number);
        let legend = (0..8).zip(pods).map(|(series, pod)| (series, pod.pod.clone())).collect();
        let subtitle = format!("{} · {}", column.label, group.title);
        let svg = draw::lines(&format!("Viewers per pod over time, {subtitle}"), &x, &y, &lines, &marks(run))?;
        charts.push(Chart::new("Viewers per pod", &subtitle, legend, svg));
    }
    Ok(charts)
}

/// Series number → name and points.
type ByArm = BTreeMap<u8, (String, Vec<(f64, f64)>)>;

/// commit → arrival p99 over offered deliveries per second, per context with at least two loads.
///
/// # Errors
/// When plotters fails.
pub fn over_load(groups: &[Group<'_>], apart: bool) -> anyhow::Result<Vec<Chart>> {
    let mut contexts: BTreeMap<(&str, &str), ByArm> = BTreeMap::new();
    for group in groups {
        let lines = contexts.entry((group.question, &group.context)).or_default();
        for column in valid(group) {
            let config = &column.shown[0].summary.config;
            let load = config.rate * f64::from(config.viewers) / f64::from(config.posts.max(1));
            let p99 = column.figure(|s| s.commit_to_arrival.p99);
            if let Some([p99, ..]) = p99.filter(|p99| p99[0] > 0.0 && load > 0.0) {
                let line = lines.entry(column.series).or_insert_with(|| (column.arm.title().to_owned(), Vec::new()));
                line.1.push((load.log10(), p99.log10()));
            }
        }
    }
    let mut charts = Vec::new();
    for ((question, context), mut by_arm) in contexts {
        by_arm.retain(|_, (_, points)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
            points.first().zip(points.last()).is_some_and(|(first, last)| last.0 > first.0)
        });
        let arms: Vec<_> = by_arm.into_iter().collect();
        let sets: Vec<&[_]> = if apart { arms.chunks(1).collect() } else { vec![&arms] };
        for set in sets.into_iter().filter(|set| !set.is_empty()) {
            let lines: Vec<Line> = set
                .iter()
                .map(|(series, (_, points))| Line { series: *series, width: 2, dots: true, points: points.clone() })
                .collect();
            let points = || lines.iter().flat_map(|line| &line.points);
            let x = Axis::log("deliveries/s offered", points().map(|p| 10_f64.powf(p.0)), metric::number);
            let y = Axis::log("commit → arrival p99", points().map(|p| 10_f64.powf(p.1)), metric::micros);
            let legend = set.iter().map(|(series, (name, _))| (*series, name.clone())).collect();
            let subtitle = format!("{question} · {context}");
            let svg = draw::lines(&format!("Latency over offered load, {subtitle}"), &x, &y, &lines, &[])?;
            charts.push(Chart::new("Latency over load", subtitle.trim_end_matches(" · "), legend, svg));
        }
    }
    Ok(charts)
}

/// CPU per delivery of the whole system, stacked by process, at most six cells to a chart.
///
/// # Errors
/// When plotters fails.
pub fn cpu(groups: &[Group<'_>]) -> anyhow::Result<Vec<Chart>> {
    let mut charts = Vec::new();
    for own in groups.chunk_by(|a, b| a.question == b.question) {
        let mut rows: Vec<(&Group<'_>, Bars<'_>)> = Vec::new();
        for group in own {
            let shown = group.columns.iter().filter(|column| column.validity != Validity::Invalid);
            let bars: Bars<'_> =
                shown.map(|column| (column, parts(column))).filter(|(_, parts)| !parts.is_empty()).collect();
            if !bars.is_empty() {
                rows.push((group, bars));
            }
        }
        for rows in rows.chunks(6) {
            charts.push(cpu_bars(own[0].question, rows)?);
        }
    }
    Ok(charts)
}

fn cpu_bars(question: &str, rows: &[(&Group<'_>, Bars<'_>)]) -> anyhow::Result<Chart> {
    let all = || rows.iter().flat_map(|(_, bars)| bars);
    let total = |parts: &Parts| parts.iter().map(|part| part.1).sum::<f64>();
    let most = all().map(|(_, parts)| total(parts)).fold(f64::MIN_POSITIVE, f64::max);
    let mut legend: Vec<(u8, String)> =
        all().flat_map(|(_, parts)| parts).map(|(name, _)| (role(name), name.clone())).collect();
    legend.sort();
    legend.dedup();
    let height: usize = rows.iter().map(|(_, bars)| 28 + 20 * bars.len()).sum();
    let label = format!("CPU per delivery by process, {question}");
    let svg = draw::svg(height as u32 + 4, &label, |root| {
        let mut y = 2;
        for (group, bars) in rows {
            draw::write(root, &group.title, (0, y + 6), HPos::Left, VPos::Top)?;
            y += 26;
            for (column, parts) in bars {
                draw::write(root, &column.label, (0, y + 8), HPos::Left, VPos::Center)?;
                let mut x = 96.0;
                for (name, us) in parts {
                    let to = x + us / most * 258.0;
                    draw::bar(root, Ink::Series(role(name)), (x as i32, y + 1), (to as i32, y + 15))?;
                    x = to;
                }
                let text = metric::micros(total(parts));
                draw::write(root, &text, (x as i32 + 6, y + 8), HPos::Left, VPos::Center)?;
                y += 20;
            }
            y += 2;
        }
        Ok(())
    })?;
    Ok(Chart { filled: true, ..Chart::new("CPU per delivery", question, legend, svg) })
}

/// Process → CPU µs per delivery; the pods are added up.
type Parts = Vec<(String, f64)>;
/// One bar per arm.
type Bars<'a> = Vec<(&'a Column<'a>, Parts)>;

fn parts(column: &Column<'_>) -> Parts {
    let mut sums: BTreeMap<(u8, String), f64> = BTreeMap::new();
    let Some(run) = column.typical() else { return Vec::new() };
    for (name, us) in &run.summary.cpu_us_by_process {
        let name = if name.starts_with("pod") { "pods" } else { name };
        *sums.entry((role(name), name.to_owned())).or_default() += us;
    }
    sums.into_iter().map(|((_, name), us)| (name, us)).filter(|(_, us)| *us > 0.0).collect()
}

fn role(process: &str) -> u8 {
    let roles = ["pod", "nginx", "haproxy", "mariadb", "mysql", "nats"];
    let series = [0, 1, 5, 2, 2, 3];
    roles.iter().position(|role| process.starts_with(role)).map_or(4, |at| series[at])
}

/// The interval of each verdict on one axis of ratios: what crosses 1 shows no difference.
///
/// # Errors
/// When plotters fails.
pub fn intervals(verdicts: &[&Verdict]) -> anyhow::Result<Option<Chart>> {
    let rows: Vec<(&Verdict, f64, [f64; 2])> =
        verdicts.iter().filter_map(|v| Some((*v, v.ratio?, v.interval?))).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let reach = rows.iter().flat_map(|row| row.2).map(|end| end.ln().abs()).fold(0.05, f64::max) * 1.1;
    let ticks: [f64; 15] = [0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.25, 2.0, 5.0, 10.0];
    let at = |ratio: f64| (WIDTH as f64 * (0.5 + ratio.ln() / reach * 0.48)) as i32;
    let height = 38 * rows.len() as u32 + 26;
    let svg = draw::svg(height, "Ratios A over B with their 95 % intervals", |root| {
        let bottom = height as i32 - 18;
        // The middle is always named; the others where there is room.
        let mut named = vec![at(1.0)];
        for tick in ticks.into_iter().filter(|tick| tick.ln().abs() <= reach) {
            let ink = if tick == 1.0 { Ink::Mark } else { Ink::Grid };
            root.draw(&PathElement::new([(at(tick), 0), (at(tick), bottom)], draw::stroke(ink, 1)))?;
            if tick == 1.0 || named.iter().all(|taken| (taken - at(tick)).abs() > 34) {
                draw::write(root, &metric::number(tick), (at(tick), bottom + 4), HPos::Center, VPos::Top)?;
                named.push(at(tick));
            }
        }
        for (row, (verdict, ratio, [low, high])) in (0..).zip(&rows) {
            let y = 38 * row + 27;
            let name =
                if verdict.same { format!("A/A {}", verdict.a) } else { format!("{} ÷ {}", verdict.a, verdict.b) };
            let place = if verdict.place.is_empty() { String::new() } else { format!(", {}", verdict.place) };
            draw::write(root, &format!("{name}{place}"), (2, y - 23), HPos::Left, VPos::Top)?;
            let ink = Ink::Series(if verdict.same { 4 } else { 0 });
            root.draw(&PathElement::new([(at(*low), y), (at(*high), y)], draw::stroke(ink, 2)))?;
            root.draw(&Circle::new((at(*ratio), y), 4, draw::fill(ink)))?;
        }
        Ok(())
    })?;
    let title = format!("Ratios of {}", metric::title(&rows[0].0.metric));
    Ok(Some(Chart::new(&title, "95 % intervals; left of 1, A is lower", Vec::new(), svg)))
}
