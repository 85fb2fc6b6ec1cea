//! Histograms that are counted elsewhere, without the registry's locks, and copied at each scrape.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::Opts;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, LabelPair, Metric, MetricFamily, MetricType};

use super::{Label, Make, SECONDS, names};

/// A histogram that is counted elsewhere (by the engines, without atomics) and copied here at each scrape. It has one
/// label, or none.
#[derive(Debug, Clone)]
pub struct CopiedHistogram {
    desc: Desc,
    values: Arc<Mutex<BTreeMap<String, CopiedBuckets>>>,
}

/// One series of a [`CopiedHistogram`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CopiedBuckets {
    /// Upper bound in seconds and how many samples fell below it and above the bound before.
    pub buckets: Vec<(f64, u64)>,
    /// Samples above the last bound.
    pub above: u64,
    /// Sum of all samples in seconds.
    pub sum: f64,
}

impl CopiedHistogram {
    /// Replaces the series of this label value (nothing to name when there is no label).
    pub fn set(&self, label: &str, series: CopiedBuckets) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).insert(label.into(), series);
    }
}

impl Make for CopiedHistogram {
    const KIND: &'static str = "histogram";

    fn make(opts: Opts, labels: &[Label]) -> prometheus::Result<Self> {
        let name = format!("{}_{}", opts.namespace, opts.name);
        let labels = names(labels).into_iter().map(Into::into).collect();
        let desc = Desc::new(name, opts.help, labels, opts.const_labels)?;
        Ok(Self { desc, values: Arc::default() })
    }
}

impl Collector for CopiedHistogram {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.is_empty() {
            return Vec::new();
        }
        let series = values.iter().map(|(value, series)| {
            let mut seen = 0;
            let buckets = series.buckets.iter().map(|&(bound, count)| {
                seen += count;
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound);
                bucket.set_cumulative_count(seen);
                bucket
            });
            let mut histogram = prometheus::proto::Histogram::default();
            histogram.set_bucket(buckets.collect());
            histogram.set_sample_count(seen + series.above);
            histogram.set_sample_sum(series.sum);
            let labels = self.desc.variable_labels.iter().map(|name| {
                let mut pair = LabelPair::default();
                pair.set_name(name.clone());
                pair.set_value(value.clone());
                pair
            });
            let mut metric = Metric::from_label(labels.collect());
            metric.set_histogram(histogram);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(series.collect());
        vec![family]
    }
}

/// Durations counted where no registry is at hand, in the buckets of [`SECONDS`].
#[derive(Debug, Default)]
pub struct Timings {
    counts: [AtomicU64; SECONDS.len() + 1],
    sum_us: AtomicU64,
}

impl Timings {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let bucket = SECONDS.partition_point(|bound| *bound < took.as_secs_f64());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// What was counted so far, for [`CopiedHistogram::set`].
    #[must_use]
    pub fn copied(&self) -> CopiedBuckets {
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        CopiedBuckets {
            buckets: SECONDS.into_iter().zip(counts).collect(),
            above: counts[SECONDS.len()],
            sum: Duration::from_micros(self.sum_us.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_bucket_whose_bound_holds_it() {
        let timings = Timings::default();
        for micros in [0, 100, 101, 10_000_000, 10_000_001] {
            timings.observe(Duration::from_micros(micros));
        }
        let copied = timings.copied();
        assert_eq!((copied.buckets[0], copied.buckets[1], copied.above), ((0.0001, 2), (0.0002, 1), 1));
        assert!((copied.sum - 20.000_202).abs() < 1e-9, "{}", copied.sum);
    }
}
