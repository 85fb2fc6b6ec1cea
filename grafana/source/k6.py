"""*k6*: what k6 wrote, beside what the pods saw. The only dashboard with native histograms."""

from model import (
    GREEN, K6_LOGS, NAMESPACE, TRANSPORT, TRANSPORTS, VERMILION,
    annotation, annotations, dashboard, heatmap, line, of, quantile, rate, row, series, stat, text, to, total,
)

# k6's series come by remote write and have neither job nor instance nor namespace. It writes dropped iterations only once there are any.
K6 = 'transport=~"$transport"'


def so_far(metric):
    """k6 writes a series only when it moved, and of a single sample there is no rate: the newest total instead."""
    return f"last_over_time({of(metric, K6)}[$__range])"


def native(q, metric, by):
    return f"histogram_quantile({q}, {total(by, rate(metric, K6))})"


DASHBOARD = dashboard(
    "pushlab-k6",
    "Pushlab: k6",
    "k6's own figures beside the pods'. Needs Prometheus 3 or newer, with the remote-write receiver: k6's trends are native histograms.",
    [
        text("k6 beside the pods", "**Do k6 and the pods agree?** Needs **Prometheus ≥ 3** (`--web.enable-remote-write-receiver`) and k6 with `K6_FEATURES=native-histograms` (before 2.1 `K6_PROMETHEUS_RW_TREND_AS_NATIVE_HISTOGRAM=true`): with 2.x, or without that, "
             "the trends here stay empty. All other dashboards use classic histograms and work with 2.42. What k6's time has more than the pods' is edge, network and k6 itself.", 4),
        stat("Virtual users", "Is the test running? Virtual users of all runners.",
             "short", line("sum(k6_vus)", "VUs")),
        stat("Iterations k6 dropped", "Was the load sent as planned? An open model drops what it cannot start in time: above 0 raise `preAllocatedVUs` or add runners; the latencies are void.",
             "short", line("sum(increase(k6_dropped_iterations_total[$__range])) or 0 * sum(k6_vus)", "dropped"), limits=((1, VERMILION),)),
        row("Latency"),
        series("Commit → arrival in k6, and commit → write in pods, p99", "Do both sides tell the same story? k6's line lies above the pods'; the distance is edge and kernel. A distance that grows with the load is k6's own CPU.",
               "s", line(native(0.99, "k6_pushlab_commit_to_arrival_seconds", "transport"), "{{transport}} k6"), line(quantile(0.99, "pushlab_delivery_latency_seconds", "transport", TRANSPORT), "{{transport}} pods"), overrides=TRANSPORTS, links=[to("pushlab-comparison", "Comparison")]),
        series("Commit → arrival in k6, p50", "And in the usual case?",
               "s", line(native(0.5, "k6_pushlab_commit_to_arrival_seconds", "transport"), "{{transport}} k6"), line(quantile(0.5, "pushlab_delivery_latency_seconds", "transport", TRANSPORT), "{{transport}} pods"), overrides=TRANSPORTS),
        heatmap("Commit → arrival in k6", "A little late for all, or very late for few? Native histogram: the buckets are as fine as the data.", f"sum(increase({of('k6_pushlab_commit_to_arrival_seconds', K6)}[$__rate_interval]))", native=True),
        series("Time to join so far, p99", "How long does a viewer wait for its first state? Connect, handshake, snapshot, of all streams up to then. Rises in waves of reconnects: drain window and edge.",
               "s", line(f"histogram_quantile(0.99, {total('transport', so_far('k6_pushlab_time_to_join_seconds'))})", "{{transport}}"), overrides=TRANSPORTS),
        row("Streams"),
        series("Gaps, duplicates, snapshots so far", "Was anything skipped or sent twice? *gaps* are versions a stream was never told one by one; the newest state still comes. *duplicates* must be 0.",
               "short", *[line(total("transport", so_far(f"k6_pushlab_{name}_total")), f"{{{{transport}}}} {name}") for name in ("gaps", "duplicates", "snapshots")], overrides=[TRANSPORTS[1]]),
        series("Reconnects, time-outs, lost ends so far", "Do viewers lose their streams? *lost ends* did not reach the last version: that is loss. Compare with closes and time-outs of the pods.",
               "short", *[line(total("transport", so_far(f"k6_pushlab_{name}_total")), f"{{{{transport}}}} {text}") for name, text in (("reconnects", "reconnects"), ("timeouts", "time-outs"), ("lost_finals", "lost ends"))], overrides=[TRANSPORTS[1]], links=[to("pushlab-pods", "Pods")]),
        series("Streams in pods", "Do the pods see as many streams as k6 opened?",
               "short", line(total("transport", of("pushlab_connections", TRANSPORT)), "{{transport}}"), overrides=TRANSPORTS),
        row("Requests"),
        series("Likes: k6 and pods", "Do likes arrive? Requests as k6 counted them beside likes as the pods counted them; a distance is refusals or an edge that answers itself.",
               "reqps", line("sum(rate(k6_http_reqs_total[$__rate_interval]))", "k6 requests"), line(f"sum({rate('pushlab_likes_total', NAMESPACE)})", "pods' likes")),
        series("Requests that failed", "Which share of k6's requests failed?",
               "percentunit", line("avg(k6_http_req_failed_rate)", "failed")),
        series("Duration of requests", "How long does a POST take, as k6 saw it? p50 and p99 of all runners together.",
               "s", line("histogram_quantile(0.5, sum(rate(k6_http_req_duration_seconds[$__rate_interval])))", "p50"), line("histogram_quantile(0.99, sum(rate(k6_http_req_duration_seconds[$__rate_interval])))", "p99"), links=[to("pushlab-write-path", "Write path")]),
        series("Iterations", "Does k6 keep its rate? *dropped* must be 0 in an open model.",
               "ops", line("sum(rate(k6_iterations_total[$__rate_interval]))", "done"), line("sum(rate(k6_dropped_iterations_total[$__rate_interval])) or 0 * sum(k6_vus)", "dropped")),
    ],
    marks=[*annotations(), annotation("k6 runs", GREEN, "sum(k6_vus) > 0", "k6 runs")],
    logs=K6_LOGS,
)
