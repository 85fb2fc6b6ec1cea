//! Two result folders side by side: the runs whose cells have equal ids. They are not pairs, so there is no verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use super::model::{Results, Run};
use super::{metric, wording};
use crate::result::summary::{RunSummary, Validity};

/// The comparison as Markdown.
///
/// # Errors
/// When a folder cannot be read.
pub fn side_by_side(a: &Path, b: &Path) -> anyhow::Result<String> {
    Ok(text(&Results::read(a)?, &Results::read(b)?, &a.display().to_string(), &b.display().to_string()))
}

fn text(a: &Results, b: &Results, a_name: &str, b_name: &str) -> String {
    let mut out = format!("A = {a_name}, B = {b_name}. Two sessions, not pairs: ratios without a verdict.\n");
    let facts: BTreeSet<&String> = a.environment.facts.keys().chain(b.environment.facts.keys()).collect();
    for fact in facts {
        let of = |results: &Results| results.environment.facts.get(fact).cloned().unwrap_or_else(|| "–".into());
        if of(a) != of(b) {
            let _ = writeln!(out, "- {fact}: {} | {}", of(a), of(b));
        }
    }
    let (left, right) = (by_id(a), by_id(b));
    let same_stack_ranks = !a.embedded() && !b.embedded();
    let _ = writeln!(out, "\n| cell | validity | figure | A | B | A ÷ B |\n|---|---|---|---:|---:|---:|");
    let mut equal: Vec<&str> = left.keys().filter(|id| right.contains_key(*id)).copied().collect();
    equal.sort_by_key(|id| wording::natural(id));
    for id in &equal {
        rows(&mut out, id, &left[id].summary, &right[id].summary);
    }
    for (name, own, other) in [("A", &left, &right), ("B", &right, &left)] {
        let mut only: Vec<&str> = own.keys().filter(|id| !other.contains_key(*id)).copied().collect();
        only.sort_by_key(|id| wording::natural(id));
        if !only.is_empty() {
            let _ = writeln!(out, "\nOnly in {name}: {}", only.join(", "));
        }
    }
    if equal.is_empty() {
        let _ = writeln!(out, "\nNo cell has the same id in both folders: were they made from the same plan?");
    }
    if !same_stack_ranks {
        let _ = writeln!(out, "\nA folder of the embedded stack ranks no transports by latency.");
    }
    out
}

fn by_id(results: &Results) -> BTreeMap<&str, &Run> {
    let id = |run: &'_ Run| run.summary.cell.is_some();
    let named = results.runs.iter().filter(|run| id(run));
    named.filter_map(|run| Some((run.summary.cell.as_ref()?.id.as_str(), run))).collect()
}

fn rows(out: &mut String, id: &str, a: &RunSummary, b: &RunSummary) {
    let validity = match (wording::validity(a.validity), wording::validity(b.validity)) {
        (a, b) if a == b => a.to_owned(),
        (a, b) => format!("{a} / {b}"),
    };
    let figures = [
        "commit_to_arrival.p50",
        "commit_to_arrival.p99",
        "due_to_arrival.p99",
        "commit_to_last.p99",
        "accepted_rate",
        "deliveries_per_s",
        "events_per_write",
        "cpu_us_per_delivery",
    ];
    let valid = a.validity == Validity::Valid && b.validity == Validity::Valid;
    let usable = a.validity != Validity::Invalid && b.validity != Validity::Invalid;
    let (mut first, mut any) = (id, false);
    for name in figures.into_iter().filter(|name| usable && (valid || !metric::is_latency(name))) {
        if let Some((x, y)) = metric::value(a, name).zip(metric::value(b, name)) {
            let ratio = if y == 0.0 { "–".to_owned() } else { wording::ratio(x / y) };
            let (x, y) = (metric::show(name, x), metric::show(name, y));
            let validity = if any { "" } else { &validity };
            let _ = writeln!(out, "| {first} | {validity} | {} | {x} | {y} | {ratio} |", metric::title(name));
            (first, any) = ("", true);
        }
    }
    if !any {
        let _ = writeln!(out, "| {first} | {validity} | nothing may be compared | – | – | – |");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn equal_ids_stand_side_by_side_and_the_rest_is_named() {
        let a = sample::local();
        let mut b = sample::local();
        b.runs.truncate(30);
        b.environment.facts.insert("kernel".into(), "Linux 6.12".into());
        let text = text(&a, &b, "old", "new");
        assert!(text.contains("- kernel: Linux 6.8.0 | Linux 6.12"), "{text}");
        assert!(text.contains("| 1.000 |"), "{text}");
        assert!(text.contains("| INVALID | nothing may be compared |"), "{text}");
        assert!(text.contains("\nOnly in A: "), "{text}");
        assert!(!text.contains("Only in B"), "{text}");
    }
}
