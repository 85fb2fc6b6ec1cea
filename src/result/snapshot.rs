//! What Prometheus saw of one run, as `compare --observe` asked for it: kept beside the run files, so that a report is
//! rendered again without a Prometheus.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// The format's number; a reader refuses another.
pub const FORMAT: u32 = 1;

/// One run as its dashboards show it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`FORMAT`].
    pub format: u32,
    /// The run file's name within the result folder.
    pub run: String,
    /// Prometheus' version.
    pub prometheus: String,
    /// Seconds between two scrapes.
    pub scrape_s: f64,
    /// Key panels of the dashboards.
    pub panels: Vec<Panel>,
    /// Latencies as histograms over the measured window.
    pub latencies: Vec<Latency>,
    /// What was not to be had, one sentence each.
    pub missing: Vec<String>,
}

/// A panel: its queries' answers over the run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Panel {
    /// The dashboard's title.
    pub dashboard: String,
    /// The panel's title.
    pub title: String,
    /// The question it answers, and what to do.
    pub description: String,
    /// Grafana's name of the unit: `s`, `bytes`, `percentunit`, …
    pub unit: String,
    /// Whether its axis is logarithmic.
    pub logarithmic: bool,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line of a panel.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (seconds after the run's origin, value); where Prometheus had no number there is no point.
    pub points: Vec<(f64, f64)>,
}

/// A histogram's buckets over the measured window.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Latency {
    /// What it measures.
    pub of: Measured,
    /// (upper bound in seconds, how many were at most that), ascending; counts are cumulative, as Prometheus has them.
    pub buckets: Vec<(f64, f64)>,
    /// All of them, also those above the last bound.
    pub count: f64,
    /// Their mean in seconds, which no bucket blurs.
    pub mean: f64,
}

/// Whose latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measured {
    /// The generator's commit → arrival: the ledger's own stamps.
    #[default]
    Generator,
    /// The pods' commit → socket write.
    Pods,
}

impl Latency {
    /// Index of the bucket a value in seconds falls into; one past the last for what is above all bounds.
    #[must_use]
    pub fn bucket_of(&self, seconds: f64) -> usize {
        self.buckets.partition_point(|(bound, _)| *bound < seconds)
    }

    /// The quantile as Prometheus' `histogram_quantile` has it: linear within its bucket. None of an empty histogram, and
    /// of a quantile that lies above the last bound.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.count;
        let at = self.buckets.partition_point(|(_, count)| *count < rank);
        let (bound, upto) = *self.buckets.get(at)?;
        let (from, before) = at.checked_sub(1).map_or((0.0, 0.0), |before| self.buckets[before]);
        let within = upto - before;
        (self.count > 0.0 && within > 0.0).then(|| from + (bound - from) * (rank - before) / within)
    }
}

impl Snapshot {
    /// Reads one.
    ///
    /// # Errors
    /// When it cannot be read, or is of another format.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).context("cannot be read")?;
        let snapshot: Self = serde_json::from_slice(&bytes).context("is no snapshot")?;
        ensure!(snapshot.format == FORMAT, "has format {}, this program reads {FORMAT}", snapshot.format);
        Ok(snapshot)
    }

    /// Writes it beside its name first, so that a half-written one is never taken for one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let part = path.with_extension("part");
        std::fs::write(&part, serde_json::to_vec(self)?)?;
        Ok(std::fs::rename(part, path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_what_histogram_quantile_says() {
        let buckets = vec![(0.001, 10.0), (0.01, 60.0), (0.1, 99.0)];
        let latency = Latency { of: Measured::Pods, buckets, count: 100.0, mean: 0.02 };
        let near = |q: f64, expected: f64| {
            let got = latency.quantile(q).unwrap();
            assert!((got - expected).abs() < 1e-12, "{q}: {got}");
        };
        near(0.05, 0.0005);
        near(0.1, 0.001);
        near(0.5, 0.001 + 0.009 * 0.8);
        near(0.99, 0.1);
        assert_eq!(latency.quantile(0.995), None, "above all bounds");
        assert_eq!(Latency::default().quantile(0.5), None);
        assert_eq!([0.0, 0.001, 0.0011, 0.2].map(|s| latency.bucket_of(s)), [0, 0, 1, 3]);
    }
}
