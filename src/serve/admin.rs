//! The admin port: liveness (slow to fail), readiness (fast), metrics, and what is connected.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{StatusCode, header};
use serde_json::json;

use super::app::App;
use super::error::ApiError;
use crate::domain::Transport;
use crate::hub::{CloseReason, LATENCY_BUCKETS_US, TransportCounters};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{CopiedBuckets, raise, raise_seconds};

/// One scrape copies at a time, so that a total is never copied twice.
type Copying = Arc<Mutex<()>>;

/// The admin port's routes.
pub(super) fn router(app: &Arc<App>) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/connections", get(connections))
        .fallback(async || ApiError::NoRoute)
        .with_state((Arc::clone(app), Copying::default()))
}

/// Fails only when the pod can do nothing but be restarted.
async fn live(State((app, _)): State<(Arc<App>, Copying)>) -> Response {
    let alive = app.hub.is_alive();
    let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "engines": alive }))).into_response()
}

/// Whether the edge should choose this pod. A lost broker is told, but is no reason: it is lost to all pods at once, and
/// without it likes are still counted and viewers still served, at the pace of anti-entropy. (A pod that never had one
/// does not start.)
async fn ready(State((app, _)): State<(Arc<App>, Copying)>) -> Response {
    let draining = app.draining.load(Ordering::Acquire);
    let database = app.database_up.load(Ordering::Acquire);
    let broker = app.broker.state().borrow().connected;
    let engines = app.hub.is_alive();
    let status = if !draining && database && engines { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let roles: Vec<_> = app.config.roles.iter().map(|role| role.name()).collect();
    let body = json!({
        "draining": draining, "database": database, "engines": engines,
        "broker": broker, "degraded": !broker, "roles": roles,
    });
    (status, Json(body)).into_response()
}

async fn metrics(State((app, copying)): State<(Arc<App>, Copying)>) -> Response {
    {
        let _alone = copying.lock().unwrap_or_else(PoisonError::into_inner);
        copy(&app);
    }
    match app.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics");
            ApiError::Internal.into_response()
        }
    }
}

/// Copies what engines, broker and watch count for themselves.
fn copy(app: &App) {
    let metrics = &app.metrics;
    let counters = app.hub.counters();
    let mut fallbacks = 0;
    for transport in Transport::ALL {
        let label = transport.label();
        let counts = counters.of(transport);
        metrics.connections.with_label_values(&[label]).set(count(app.hub.connections(transport)));
        raise(&metrics.accepted_total.with_label_values(&[label]), counts.accepted);
        for (reason, closed) in CloseReason::ALL.into_iter().zip(counts.closed) {
            raise(&metrics.closed_total.with_label_values(&[label, reason.label()]), closed);
        }
        raise(&metrics.deliveries_total.with_label_values(&[label]), counts.deliveries);
        let skipped = [("conflated", counts.conflated), ("superseded", counts.superseded), ("dropped", counts.dropped)];
        for (reason, versions) in skipped {
            raise(&metrics.skipped_versions_total.with_label_values(&[label, reason]), versions);
        }
        raise(&metrics.socket_writes_total.with_label_values(&[label]), counts.socket_writes);
        raise(&metrics.written_bytes_total.with_label_values(&[label]), counts.written_bytes);
        fallbacks += counts.fallback;
        metrics.delivery_latency_seconds.set(label, buckets(&counts.latency_counts, counts.latency_sum_us));
        metrics.fanout_seconds.set(label, buckets(&counts.fanout_counts, counts.fanout_sum_us));
        let mailbox = [
            ("sent", counts.deliveries),
            ("conflated", counts.conflated),
            ("dropped", counts.dropped),
            ("disconnected", counts.closed[CloseReason::MailboxFull as usize]),
        ];
        for (outcome, number) in mailbox {
            raise(&metrics.mailbox_total.with_label_values(&[label, outcome]), number);
        }
    }
    raise(&metrics.fallback_streams_total, fallbacks);
    let all = |of: fn(&TransportCounters) -> u64| counters.transports.iter().map(of).sum::<u64>();
    timed_out(metrics, "write", all(|counts| counts.closed[CloseReason::WriteTimeout as usize]));
    timed_out(metrics, "idle_cut", all(|counts| counts.idle_cuts));
    raise_seconds(&metrics.engine_busy_seconds_total, Duration::from_micros(counters.busy_us));

    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let broker = app.broker.counters();
    raise(&metrics.broker_published_total, of(&broker.published));
    raise(&metrics.broker_received_total, of(&broker.received));
    raise(&metrics.broker_dropped_total, of(&broker.dropped));
    raise(&metrics.broker_merged_total, of(&broker.merged));
    raise(&metrics.broker_reconnects_total, of(&broker.reconnects));
    metrics.broker_connected.set(i64::from(app.broker.state().borrow().connected));
    let events = [
        ("connected", &broker.connected),
        ("disconnected", &broker.disconnected),
        ("slow_consumer", &broker.slow),
        ("lame_duck", &broker.lame_ducks),
        ("error", &broker.errors),
    ];
    for (event, number) in events {
        raise(&metrics.broker_events_total.with_label_values(&[event]), of(number));
    }
    metrics.subscriptions.set(count(app.broker.subscriptions()));
    timed_out(metrics, "broker", of(&broker.timeouts));

    let watch = app.watch.counters();
    raise(&metrics.superseded_events_total, of(&watch.superseded_events));
    raise(&metrics.duplicate_events_total, of(&watch.duplicate_events));
    raise(&metrics.gaps_total, of(&watch.gaps));
    raise(&metrics.rereads_healed_total, of(&watch.reread_healed));
    raise(&metrics.anti_entropy_rows_total, of(&watch.anti_entropy_rows));
    raise(&metrics.anti_entropy_healed_total, of(&watch.anti_entropy_healed));
    raise(&metrics.epochs_total, of(&watch.epochs));
    raise(&metrics.backward_rows_total, of(&watch.backward_rows));
    raise(&metrics.late_subscriptions_total, of(&watch.late_subscriptions));
    metrics.broker_lag_seconds.set("", watch.lag.copied());
    metrics.watched_posts.set(count(app.watch.watched()));
    metrics.replay_events.set(count(app.watch.kept_events()));

    if let Some(relay) = &app.relay {
        let relay = relay.counters();
        metrics.relay_connections.set(count(relay.connections.load(Ordering::Relaxed)));
        raise(&metrics.relay_failures_total, of(&relay.failed));
        raise(&metrics.relay_healed_total, of(&relay.healed));
        raise(&metrics.superseded_events_total, of(&watch.superseded_events) + of(&relay.superseded));
    }

    let store = app.store.counters();
    raise(&metrics.transaction_retries_total, of(&store.retries));
    raise(&metrics.like_commits_total, of(&store.commits));
    raise(&metrics.database_timeouts_total, of(&store.timeouts));
    timed_out(metrics, "statement", of(&store.timeouts));
    timed_out(metrics, "lock_wait", of(&store.lock_timeouts));
    timed_out(metrics, "pool", of(&store.pool_timeouts));
    let pooled = app.store.pooled();
    metrics.pool_connections.with_label_values(&["idle"]).set(count(pooled.idle));
    metrics.pool_connections.with_label_values(&["used"]).set(count(pooled.used));
    metrics.pool_acquire_seconds.set("", store.acquire.copied());
    raise(&metrics.http_connections_total, of(&app.stats.accepted));
    raise(&metrics.http_connections_refused_total, of(&app.stats.refused));
    let spans = [("exported", &app.spans.exported), ("failed", &app.spans.failed), ("dropped", &app.spans.dropped)];
    for (result, spans) in spans {
        raise(&metrics.trace_spans_total.with_label_values(&[result]), of(spans));
    }
    raise(&metrics.slow_heads_total, of(&app.stats.slow_heads));
    timed_out(metrics, "head", of(&app.stats.slow_heads));

    let runtime = app.runtime.metrics();
    metrics.runtime_tasks.set(count(runtime.num_alive_tasks()));
    metrics.runtime_workers.set(count(runtime.num_workers()));
    metrics.runtime_queue_depth.set(count(runtime.global_queue_depth()));
    let busy = (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker)).sum();
    raise_seconds(&metrics.runtime_busy_seconds_total, busy);

    let draining = app.draining.load(Ordering::Acquire);
    metrics.draining.set(i64::from(draining));
    let open = Transport::ALL.into_iter().map(|transport| app.hub.connections(transport)).sum();
    metrics.drain_remaining.set(if draining { count(open) } else { 0 });
    metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
}

fn timed_out(metrics: &Metrics, kind: &str, total: u64) {
    raise(&metrics.timeouts_total.with_label_values(&[kind]), total);
}

fn buckets(counts: &[u64; LATENCY_BUCKETS_US.len() + 1], sum_us: u64) -> CopiedBuckets {
    let buckets = LATENCY_BUCKETS_US.into_iter().map(seconds).zip(*counts).collect();
    CopiedBuckets { buckets, above: counts[LATENCY_BUCKETS_US.len()], sum: seconds(sum_us) }
}

/// For people: what is connected, and why what was has ended.
async fn connections(State((app, _)): State<(Arc<App>, Copying)>) -> Response {
    let counters = app.hub.counters();
    let of = |transport: Transport| {
        let counts = counters.of(transport);
        let ended = CloseReason::ALL.into_iter().zip(counts.closed).filter(|(_, n)| *n > 0);
        json!({
            "open": app.hub.connections(transport),
            "accepted": counts.accepted,
            "fallback": counts.fallback,
            "ended": ended.map(|(reason, n)| (reason.label(), n)).collect::<std::collections::BTreeMap<_, _>>(),
            "deliveries": counts.deliveries,
            "writes": counts.socket_writes,
        })
    };
    let body = json!({
        "pod": app.pod.to_str().unwrap_or_default(),
        "draining": app.draining.load(Ordering::Acquire),
        "seatsTaken": app.seats.taken(),
        "watchedPosts": app.watch.watched(),
        "sse": of(Transport::Sse),
        "stomp": of(Transport::Stomp),
        "http": {
            "accepted": app.stats.accepted.load(Ordering::Relaxed),
            "refused": app.stats.refused.load(Ordering::Relaxed),
            "takenOver": app.stats.taken_over.load(Ordering::Relaxed),
        },
    });
    Json(body).into_response()
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a duration")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
