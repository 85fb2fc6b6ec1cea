//! Every metric of a pod in one struct; a field's doc comment is its help text. No label names a post, user or connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// Classic bucket bounds in seconds, 100 µs to 10 s.
pub const SECONDS: [f64; 21] = [
    0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1,
    0.2, 0.5, 1.0, 2.5, 10.0,
];

/// How a field's type is made from its options.
trait Make: Sized + Clone + Collector + 'static {
    fn make(opts: Opts, labels: &[&str]) -> prometheus::Result<Self>;
}

impl Make for IntCounter {
    fn make(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Make for IntGauge {
    fn make(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Make for Gauge {
    fn make(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(opts)
    }
}

impl Make for IntCounterVec {
    fn make(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(opts, labels)
    }
}

impl Make for IntGaugeVec {
    fn make(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(opts, labels)
    }
}

impl Make for Histogram {
    fn make(opts: Opts, _: &[&str]) -> prometheus::Result<Self> {
        Self::with_opts(HistogramOpts::from(opts).buckets(SECONDS.to_vec()))
    }
}

impl Make for HistogramVec {
    fn make(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Self::new(HistogramOpts::from(opts).buckets(SECONDS.to_vec()), labels)
    }
}

/// A histogram that is counted elsewhere (by the engines, without atomics) and copied here at each scrape.
#[derive(Debug, Clone)]
pub struct CopiedHistogram {
    desc: Desc,
    label: String,
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
    /// Replaces the series of this label value.
    pub fn set(&self, label: &str, series: CopiedBuckets) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).insert(label.into(), series);
    }
}

impl Make for CopiedHistogram {
    fn make(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        let name = format!("{}_{}", opts.namespace, opts.name);
        let desc = Desc::new(name, opts.help, labels.iter().map(ToString::to_string).collect(), opts.const_labels)?;
        Ok(Self { desc, label: labels.join("_"), values: Arc::default() })
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
            let mut pair = LabelPair::default();
            pair.set_name(self.label.clone());
            pair.set_value(value.clone());
            let mut metric = Metric::from_label(vec![pair]);
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

macro_rules! metrics {
    ($( #[doc = $help:literal] $field:ident: $kind:ident $([$($label:literal),+])?; )+) => {
        /// All metrics of one pod, named `pushlab_<field>`.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            registry: Registry,
            $( #[doc = $help] pub $field: $kind, )+
        }

        impl Metrics {
            /// A registry with every metric at zero.
            ///
            /// # Panics
            /// When two fields have one name, which a test excludes.
            #[must_use]
            pub fn new() -> Self {
                let registry = Registry::new();
                $( let $field = {
                    let opts = Opts::new(stringify!($field), $help.trim()).namespace("pushlab");
                    let metric = <$kind as Make>::make(opts, &[$($($label),+)?]).expect("well-formed name");
                    registry.register(Box::new(metric.clone())).expect("a name of its own");
                    metric
                }; )+
                Self { registry, $( $field, )+ }
            }
        }
    };
}

metrics! {
    /// Streams that are open now.
    connections: IntGaugeVec ["transport"];
    /// Streams accepted.
    accepted_total: IntCounterVec ["transport"];
    /// Streams ended, by who or what ended them.
    closed_total: IntCounterVec ["transport", "reason"];
    /// Updates written to viewers' sockets.
    deliveries_total: IntCounterVec ["transport"];
    /// Versions a viewer was not sent one by one: conflated into a newer state, superseded before they came, or dropped.
    skipped_versions_total: IntCounterVec ["transport", "reason"];
    /// Events that arrived after a newer one and went to nobody.
    superseded_events_total: IntCounter;
    /// Calls of send(2) to viewers; deliveries divided by this is events per write.
    socket_writes_total: IntCounterVec ["transport"];
    /// Bytes written to viewers' sockets.
    written_bytes_total: IntCounterVec ["transport"];
    /// From the like's COMMIT (stamped by the liking pod) to the write to the viewer's socket.
    delivery_latency_seconds: CopiedHistogram ["transport"];
    /// Streams turned away: full, draining, broken (laboratory), or the post could not be read.
    streams_refused_total: IntCounterVec ["reason"];
    /// Streams that the engine writes through a socket pair (HTTP/2, HTTP/1.0, TLS) and not to their TCP socket.
    fallback_streams_total: IntCounter;
    /// Likes and take-backs by outcome: changed, unchanged, pending (--write event), replayed, refused (the caller's fault), failed (ours).
    likes_total: IntCounterVec ["result"];
    /// Wait for the post's row lock.
    lock_wait_seconds: Histogram;
    /// The like's transaction from lock to COMMIT.
    transaction_seconds: Histogram;
    /// From COMMIT until the event was handed to the broker.
    publish_seconds: Histogram;
    /// Transactions of likes that were committed; fewer than likes when several share one.
    like_commits_total: IntCounter;
    /// Likes that were answered and are not counted yet (--write event), in the whole database.
    pending_likes: IntGauge;
    /// From the answer to a like (--write event) until it was counted.
    pending_seconds: Histogram;
    /// Events in the outbox that are not published yet, of all pods.
    outbox_unpublished: IntGauge;
    /// Age of the oldest event in the outbox, 0 when there is none.
    outbox_oldest_seconds: Gauge;
    /// From COMMIT until the stream acknowledged the event (--publish outbox).
    outbox_publish_seconds: Histogram;
    /// Events that were not published right after their commit and left to the sweep.
    outbox_left_total: IntCounter;
    /// Events this pod's sweep found and published.
    outbox_swept_total: IntCounter;
    /// Events handed to the broker.
    broker_published_total: IntCounter;
    /// Events not handed to the broker because the bounded queue was full; anti-entropy heals them.
    broker_dropped_total: IntCounter;
    /// Times the broker's connection came back.
    broker_reconnects_total: IntCounter;
    /// 1 while the broker's connection is up.
    broker_connected: IntGauge;
    /// Posts that have a viewer on this pod.
    watched_posts: IntGauge;
    /// Events that a newer one of the same post replaced while both waited for the broker's connection.
    broker_merged_total: IntCounter;
    /// Events received from the broker.
    broker_received_total: IntCounter;
    /// Events that arrived twice.
    duplicate_events_total: IntCounter;
    /// Events that did not follow the one before.
    gaps_total: IntCounter;
    /// Posts on which a re-read (newly watched, gap, reconnect) found a newer state.
    rereads_healed_total: IntCounter;
    /// Transactions repeated after a lock error.
    transaction_retries_total: IntCounter;
    /// Database operations given up because their time had passed.
    database_timeouts_total: IntCounter;
    /// Streams, or SUBSCRIBEs, by what their client had: fresh, current, replayed (got the events), behind, other_epoch, malformed, ahead (of the database).
    resumes_total: IntCounterVec ["transport", "result"];
    /// TCP connections accepted on the public port.
    http_connections_total: IntCounter;
    /// TCP connections closed at once because too many were open.
    http_connections_refused_total: IntCounter;
    /// STOMP sessions that have a broker connection of their own (--fanout relay).
    relay_connections: IntGauge;
    /// Broker connections and subscriptions of sessions that could not be had (--fanout relay).
    relay_failures_total: IntCounter;
    /// Subscriptions for which a read found a newer state than the session's events had brought (--fanout relay).
    relay_healed_total: IntCounter;
    /// Recent events kept for viewers that come back.
    replay_events: IntGauge;
    /// Epochs of the database that began while the pod ran.
    epochs_total: IntCounter;
    /// Rows older than what was known, in one epoch: the database was restored and no new epoch was begun.
    backward_rows_total: IntCounter;
    /// Posts whose subscription the broker confirmed only after their first viewer was served.
    late_subscriptions_total: IntCounter;
    /// Tokens and tickets by what became of them: accepted, missing, malformed, key, signature, time, claims, used (a ticket, twice).
    auth_total: IntCounterVec ["result"];
    /// Readings of the JWKS after the first: done, failed (the old keys stay).
    jwks_refreshes_total: IntCounterVec ["result"];
    /// Connections closed because a request's head, or a TLS or HTTP/2 handshake, did not come in time.
    slow_heads_total: IntCounter;
    /// Rows read again by anti-entropy.
    anti_entropy_rows_total: IntCounter;
    /// Rows read again by anti-entropy that were newer than what the pod knew.
    anti_entropy_healed_total: IntCounter;
    /// Ordinary requests by route template and status.
    http_requests_total: IntCounterVec ["route", "status"];
    /// Tasks of the asynchronous runtime that are alive.
    runtime_tasks: IntGauge;
    /// 1 while the pod drains.
    draining: IntGauge;
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The text exposition format 0.0.4.
    ///
    /// # Errors
    /// When a metric cannot be written, which would be a defect.
    pub fn text(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Brings a counter up to a total that is counted elsewhere. Call it from one place at a time.
pub fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doc_comment_is_the_help_and_a_copied_histogram_is_cumulative() {
        let metrics = Metrics::new();
        metrics.accepted_total.with_label_values(&["sse"]).inc();
        let series = CopiedBuckets { buckets: vec![(0.001, 2), (0.01, 3)], above: 1, sum: 0.5 };
        metrics.delivery_latency_seconds.set("sse", series);
        let text = metrics.text().unwrap();
        for line in [
            "# HELP pushlab_accepted_total Streams accepted.",
            "pushlab_accepted_total{transport=\"sse\"} 1",
            "pushlab_delivery_latency_seconds_bucket{transport=\"sse\",le=\"0.01\"} 5",
            "pushlab_delivery_latency_seconds_bucket{transport=\"sse\",le=\"+Inf\"} 6",
            "pushlab_delivery_latency_seconds_count{transport=\"sse\"} 6",
            "pushlab_broker_dropped_total 0",
        ] {
            assert!(text.contains(line), "{line}\nnot in\n{text}");
        }
    }

    #[test]
    fn a_copied_total_never_goes_back() {
        let metrics = Metrics::new();
        for total in [5, 3, 9] {
            raise(&metrics.broker_published_total, total);
        }
        assert_eq!(metrics.broker_published_total.get(), 9);
    }
}
