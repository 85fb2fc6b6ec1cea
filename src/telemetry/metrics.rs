//! Every metric of a pod, and of the generator, in one struct each; a field's doc comment is its help text. No label names
//! a post, user or connection.

/// Histograms that are counted elsewhere.
mod copied;
/// `docs/metrics.md`.
mod describe;
/// The process itself.
mod process;

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

pub use copied::{CopiedBuckets, CopiedHistogram, Timings};
pub use describe::{Described, document};

/// Classic bucket bounds in seconds, 100 µs to 10 s.
pub const SECONDS: [f64; 21] = [
    0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1,
    0.2, 0.5, 1.0, 2.5, 10.0,
];

/// A label's name and, where they are few and known, its values: these series are there from the start, at zero.
pub(crate) type Label = (&'static str, &'static [&'static str]);

/// How a field's type is made from its options.
trait Make: Sized + Clone + Collector + 'static {
    /// As Prometheus calls it.
    const KIND: &'static str;
    fn make(opts: Opts, labels: &[Label]) -> prometheus::Result<Self>;
}

/// Names of labels.
fn names(labels: &[Label]) -> Vec<&'static str> {
    labels.iter().map(|(name, _)| *name).collect()
}

/// Every combination of the known values; none when a label has none.
fn combinations(labels: &[Label]) -> Vec<Vec<&'static str>> {
    labels.iter().fold(vec![Vec::new()], |done, (_, values)| {
        let with =
            |before: &Vec<&'static str>| values.iter().map(|v| [&before[..], &[*v]].concat()).collect::<Vec<_>>();
        done.iter().flat_map(with).collect()
    })
}

macro_rules! made {
    ($($kind:ident $name:literal;)+) => { $(
        impl Make for $kind {
            const KIND: &'static str = $name;
            fn make(opts: Opts, _: &[Label]) -> prometheus::Result<Self> {
                Self::with_opts(opts.into())
            }
        }
    )+ };
}

macro_rules! made_with_labels {
    ($($kind:ident $name:literal;)+) => { $(
        impl Make for $kind {
            const KIND: &'static str = $name;
            fn make(opts: Opts, labels: &[Label]) -> prometheus::Result<Self> {
                let made = Self::new(opts.into(), &names(labels))?;
                for values in combinations(labels) {
                    drop(made.with_label_values(&values));
                }
                Ok(made)
            }
        }
    )+ };
}

made! { IntCounter "counter"; Counter "counter"; IntGauge "gauge"; Gauge "gauge"; }
made_with_labels! { IntCounterVec "counter"; IntGaugeVec "gauge"; }

impl Make for Histogram {
    const KIND: &'static str = "histogram";
    fn make(opts: Opts, _: &[Label]) -> prometheus::Result<Self> {
        Self::with_opts(HistogramOpts::from(opts).buckets(SECONDS.to_vec()))
    }
}

impl Make for HistogramVec {
    const KIND: &'static str = "histogram";
    fn make(opts: Opts, labels: &[Label]) -> prometheus::Result<Self> {
        let made = Self::new(HistogramOpts::from(opts).buckets(SECONDS.to_vec()), &names(labels))?;
        for values in combinations(labels) {
            drop(made.with_label_values(&values));
        }
        Ok(made)
    }
}

macro_rules! metrics {
    (
        #[doc = $doc:literal] $name:ident $namespace:literal
        $( #[doc = $help:literal] $field:ident: $kind:ident $([$($label:ident $($value:ident)|*),+])?; )+
    ) => {
        #[doc = $doc]
        #[derive(Debug, Clone)]
        pub struct $name {
            registry: Registry,
            $( #[doc = $help] pub $field: $kind, )+
        }

        impl $name {
            /// As they were declared, in this order.
            pub const DESCRIBED: &'static [Described] = &[
                $( Described {
                    name: concat!($namespace, "_", stringify!($field)),
                    kind: <$kind as Make>::KIND,
                    labels: &[$($((stringify!($label), &[$(stringify!($value)),*])),+)?],
                    help: $help,
                }, )+
            ];

            /// A registry with every metric at zero.
            ///
            /// # Panics
            /// When two fields have one name, which a test excludes.
            #[must_use]
            pub fn new() -> Self {
                let registry = Registry::new();
                let mut described = Self::DESCRIBED.iter();
                $( let $field = {
                    let opts = Opts::new(stringify!($field), $help.trim()).namespace($namespace);
                    let labels = described.next().expect("one for each field").labels;
                    let metric = <$kind as Make>::make(opts, labels).expect("well-formed name");
                    registry.register(Box::new(metric.clone())).expect("a name of its own");
                    metric
                }; )+
                registry.register(Box::new(process::Process::new())).expect("other names");
                Self { registry, $( $field, )+ }
            }

            /// The text exposition format 0.0.4.
            ///
            /// # Errors
            /// When a metric cannot be written, which would be a defect.
            pub fn text(&self) -> prometheus::Result<String> {
                TextEncoder::new().encode_to_string(&self.registry.gather())
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::new()
            }
        }
    };
}

metrics! {
    /// All metrics of one pod, named `pushlab_<field>`.
    Metrics "pushlab"

    /// Streams that are open now.
    connections: IntGaugeVec [transport sse|stomp];
    /// Streams accepted.
    accepted_total: IntCounterVec [transport sse|stomp];
    /// Streams ended, by who or what ended them.
    closed_total: IntCounterVec [transport sse|stomp, reason];
    /// Updates written to viewers' sockets.
    deliveries_total: IntCounterVec [transport sse|stomp];
    /// Versions a viewer was not sent one by one: conflated into a newer state, superseded before they came, or dropped.
    skipped_versions_total: IntCounterVec [transport sse|stomp, reason];
    /// Events that arrived after a newer one and went to nobody.
    superseded_events_total: IntCounter;
    /// Calls of send(2) to viewers; deliveries divided by this is events per write.
    socket_writes_total: IntCounterVec [transport sse|stomp];
    /// Bytes written to viewers' sockets.
    written_bytes_total: IntCounterVec [transport sse|stomp];
    /// From the like's COMMIT (stamped by the liking pod) to the write to the viewer's socket.
    delivery_latency_seconds: CopiedHistogram [transport sse|stomp];
    /// Streams turned away: full, draining, broken (laboratory), or the post could not be read.
    streams_refused_total: IntCounterVec [reason];
    /// Streams that the engine writes through a socket pair (HTTP/2, HTTP/1.0, TLS) and not to their TCP socket.
    fallback_streams_total: IntCounter;
    /// Likes and take-backs by outcome: changed, unchanged, pending (--write event), replayed, refused (the caller's fault), failed (ours).
    likes_total: IntCounterVec [result changed|unchanged|pending|replayed|refused|failed];
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
    resumes_total: IntCounterVec [transport sse|stomp, result];
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
    auth_total: IntCounterVec [result accepted|missing|malformed|key|signature|time|claims|used];
    /// Readings of the JWKS after the first: done, failed (the old keys stay).
    jwks_refreshes_total: IntCounterVec [result done|failed];
    /// Connections closed because a request's head, or a TLS or HTTP/2 handshake, did not come in time.
    slow_heads_total: IntCounter;
    /// Rows read again by anti-entropy.
    anti_entropy_rows_total: IntCounter;
    /// Rows read again by anti-entropy that were newer than what the pod knew.
    anti_entropy_healed_total: IntCounter;
    /// Ordinary requests by route template and status.
    http_requests_total: IntCounterVec [route, status];
    /// Tasks of the asynchronous runtime that are alive.
    runtime_tasks: IntGauge;
    /// 1 while the pod drains.
    draining: IntGauge;
    /// Time-outs by kind: write (a viewer's socket took nothing for --write-timeout), heartbeat (a STOMP client's heart-beat was missed), idle_cut (peer or proxy ended a stream without a word that had been silent for --idle-cut), lock_wait (a post's row), pool (acquire of a database connection), statement (database operation), broker (round trip, request or acknowledgement), head (slow request head or TLS handshake), connect (no CONNECT within 10 s).
    timeouts_total: IntCounterVec [kind write|heartbeat|idle_cut|lock_wait|pool|statement|broker|head|connect];
    /// From the arrival of an event in this pod until the last local socket of its post was tried; per post that has viewers of the transport. A flush window counts.
    fanout_seconds: CopiedHistogram [transport sse|stomp];
    /// From COMMIT until this pod received the event from the broker. Two pods' clocks: as exact as they agree.
    broker_lag_seconds: CopiedHistogram;
    /// Versions × viewers by what their mailbox did: sent, conflated (into a newer state), dropped (the queue was full), disconnected (viewers closed for a full queue).
    mailbox_total: IntCounterVec [transport sse|stomp, outcome sent|conflated|dropped|disconnected];
    /// Database connections that are open, all pools of the process together.
    pool_connections: IntGaugeVec [state idle|used];
    /// Wait for a database connection, opening one included.
    pool_acquire_seconds: CopiedHistogram;
    /// Spans of sampled likes by what became of them: exported, failed (the collector did not take them), dropped (the queue was full); all pods of the process together.
    trace_spans_total: IntCounterVec [result exported|failed|dropped];
    /// Time the asynchronous runtime's workers were busy, summed over them; all pods of the process together.
    runtime_busy_seconds_total: Counter;
    /// Worker threads of the asynchronous runtime.
    runtime_workers: IntGauge;
    /// Tasks that wait in the asynchronous runtime's global queue.
    runtime_queue_depth: IntGauge;
    /// Time the engines' threads were not waiting for sockets (being off the processor counts), summed over them.
    engine_busy_seconds_total: Counter;
    /// Always 1; the label says which build runs.
    build_info: IntGaugeVec [version];
    /// While the pod drains: viewers that are still to be ended. Else 0.
    drain_remaining: IntGauge;
    /// What happened to the broker's connection: connected, disconnected, slow_consumer (65,536 messages of a subject waited for this pod and more were lost; it reads its posts again), lame_duck (the server is about to leave), error (reported by server or client).
    broker_events_total: IntCounterVec [event connected|disconnected|slow_consumer|lame_duck|error];
    /// Posts' subjects subscribed to at the broker.
    subscriptions: IntGauge;
    /// With --canary: from the like's request until a canary viewer got the update through the public URL.
    canary_like_to_view_seconds: HistogramVec [transport];
    /// With --canary: likes of the canary, by what its viewer saw of them: seen, late (after more than a tenth of the period), lost (not within the period), unreachable (the like or the stream failed).
    canary_total: IntCounterVec [transport, result];
}

metrics! {
    /// What the generator tells while it runs (`load --metrics-listen`), named `pushlab_load_<field>`.
    LoadMetrics "pushlab_load"

    /// From a like's due time to its arrival at a viewer (the kernel's stamp): what a user waits. One sample per like and viewer, within the measured window, as in the ledger.
    due_to_view_seconds: CopiedHistogram [transport];
    /// From the like's COMMIT (the pod's clock) to its arrival at a viewer (the kernel's stamp), as in the ledger.
    commit_to_view_seconds: CopiedHistogram [transport];
    /// Likes by outcome: ok, failed (refused by the service), unknown (time-out or reset), unsent (no user was free in time).
    likes_total: IntCounterVec [result ok|failed|unknown|unsent];
    /// Viewers that are connected now.
    viewers: IntGaugeVec [transport];
    /// Connections of viewers that ended without being asked to, and attempts that failed.
    reconnects_total: IntCounterVec [transport];
    /// From a like's due time until the generator sent it: its own delay.
    schedule_lag_seconds: CopiedHistogram;
}

/// Brings a counter up to a total that is counted elsewhere. Call it from one place at a time.
pub fn raise(counter: &IntCounter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

/// The same for a total of time.
pub fn raise_seconds(counter: &Counter, total: Duration) {
    counter.inc_by((total.as_secs_f64() - counter.get()).max(0.0));
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
