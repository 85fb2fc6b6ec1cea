//! `docs/metrics.md`, written from the declarations themselves.

use std::fmt::Write as _;

use prometheus::core::Collector;

use super::process::Process;
use super::{Label, LoadMetrics, Metrics};

/// A metric as it was declared.
#[derive(Debug, Clone, Copy)]
pub struct Described {
    /// Its full name.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Labels, and those of their values that are known before anything happens.
    pub labels: &'static [Label],
    /// The help text, as written: with a blank in front.
    pub help: &'static str,
}

const HEAD: &str = "\
# Metrics

Written by `pushlab serve --describe-metrics` from the declarations in `src/telemetry/metrics.rs`; a test compares. Base units, no label names a post, a user or
a connection. Histograms are classic ones with bounds from 100 µs to 10 s. Counters whose label values are listed are there from the start, at zero.
";

/// The whole document.
#[must_use]
pub fn document() -> String {
    let mut text = HEAD.to_owned();
    table(&mut text, "A pod: `/metrics` on the admin port, job `pushlab`", Metrics::DESCRIBED);
    table(&mut text, "The generator: `pushlab load --metrics-listen`, job `pushlab-load`", LoadMetrics::DESCRIBED);
    let _ = writeln!(text, "\n## The process, in both\n\n| name | type | meaning |\n|---|---|---|");
    let process = Process::new();
    for desc in process.desc() {
        let kind = if desc.fq_name.ends_with("_total") { "counter" } else { "gauge" };
        let _ = writeln!(text, "| `{}` | {kind} | {} |", desc.fq_name, desc.help);
    }
    text
}

fn table(text: &mut String, title: &str, metrics: &[Described]) {
    let _ = writeln!(text, "\n## {title}\n\n| name | type | labels | meaning |\n|---|---|---|---|");
    for Described { name, kind, labels, help } in metrics {
        let labels: Vec<_> = labels.iter().map(label).collect();
        let _ = writeln!(text, "| `{name}` | {kind} | {} | {} |", labels.join("<br>"), help.trim());
    }
}

fn label((name, values): &Label) -> String {
    let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
    if values.is_empty() { format!("`{name}`") } else { format!("`{name}`: {}", values.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_code_declares() {
        let kept = include_str!("../../../docs/metrics.md");
        assert!(document() == kept, "bring it up to date: cargo run -q -- serve --describe-metrics > docs/metrics.md");
    }

    #[test]
    fn names_are_unique_and_a_total_is_a_counter() {
        let all = || Metrics::DESCRIBED.iter().chain(LoadMetrics::DESCRIBED);
        let names: std::collections::BTreeSet<_> = all().map(|described| described.name).collect();
        assert_eq!(names.len(), all().count());
        for Described { name, kind, help, .. } in all() {
            assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
            assert!(help.trim_end().ends_with('.') && !help.contains('|'), "{name}: {help}");
        }
    }
}
