"""*Pods*: which pod is late, full, stalled, draining, or has more than its share."""

from model import (
    THIS_POD, TRANSPORT, VERMILION,
    dashboard, line, of, quantile, rate, row, series, stat, text, to, total,
)

CONNECTIONS = of("pushlab_connections", TRANSPORT)
BY_POD = total("namespace, pod", CONNECTIONS)
# By component, where the scrape sets it: a Deployment for STOMP alone has no SSE viewers, and that is no skew.
SKEW = f"max by (component, transport) ({CONNECTIONS}) / avg by (component, transport) ({CONNECTIONS})"


def by_pod(title, description, unit, expr, legend="{{pod}}", **more):
    return series(title, description, unit, line(expr, legend), data_links=THIS_POD, **more)


def process(metric):
    """A process metric of pods alone: exporters have the same names."""
    return f"max by (namespace, pod) ({of(metric)} * on (namespace, pod) group_left () {of('pushlab_build_info')})"


DASHBOARD = dashboard(
    "pushlab-pods",
    "Pushlab: Pods",
    "Streams per pod and their skew, opened and closed by reason, drain, mailbox outcomes, resumes, and what each pod uses.",
    [
        text("Pod by pod", "**Which pod is late, full, stalled or draining, and do the pods share the viewers fairly?** A pod that stalls shows three ways: its scrapes fail, its deliveries stop, "
             "and versions are superseded in one go when it goes on (its p99 may hardly move: of all that is late only the newest state is written). Click a line for that pod alone or its log.", 3),
        stat("Pods", "Are all pods there, and of one version? During a roll-out two versions stand here. Fewer than the Deployment wants: see *Answers scrapes* below.",
             "short", line(f"count by (version) ({of('pushlab_build_info')})", "{{version}}")),
        stat("Skew", "Does one pod carry more than its share? The fullest pod's streams over the average. 1 is fair; 1.5 and more after a scale-out stays until streams end: see the runbook for PushlabViewerSkew.",
             "none", line(SKEW, "{{component}} {{transport}}"), decimals=2, limits=((1.5, VERMILION),)),
        row("Streams"),
        by_pod("Streams by pod", "Are viewers spread over the pods? After a roll-out or scale-out the new pods stay cold, because open streams do not move. Equal lines: the edge counts connections well.",
               "short", BY_POD),
        series("Skew over time", "Since when is it unfair? Fullest pod over average, by transport. A jump at a reload of the edge: its least-connections counters began anew.",
               "none", line(SKEW, "{{component}} {{transport}}"), limit=1.5, links=[to("pushlab-broker-edge", "Broker and edge")]),
        by_pod("Opened", "Who takes the new streams? A wave means that viewers come back from somewhere: look for the closes.",
               "ops", total("namespace, pod", rate("pushlab_accepted_total", TRANSPORT))),
        series("Closed by reason", "Why did streams end? *drain* belongs to a roll-out; *peer* and *reset* to clients and edges; *write_timeout*, *slow_consumer* and *mailbox_full* to viewers that do not read.",
               "ops", line(total("reason", rate("pushlab_closed_total", TRANSPORT)), "{{reason}}"), links=[to("pushlab-comparison", "Comparison")]),
        series("Turned away by reason", "Does a pod refuse streams? *full*: more pods or a higher limit; *draining*: the edge still sends viewers to a pod that goes; others are in docs/metrics.md.",
               "ops", line(total("reason", rate("pushlab_streams_refused_total")), "{{reason}}")),
        series("Resumes by result", "What did viewers that came back have? *replayed* and *current* are well; *behind* had to take the newest state; *ahead* and *other_epoch* after a restore of the database.",
               "ops", line(total("transport, result", rate("pushlab_resumes_total", TRANSPORT)), "{{transport}} {{result}}")),
        row("Roll-out"),
        by_pod("Streams left to drain", "Does the drain come to its end before the grace period? The line should fall evenly to 0. If it stands still, viewers are not closed: the log of that pod.",
               "short", f"max by (namespace, pod) ({of('pushlab_drain_remaining')})", custom={"drawStyle": "line", "fillOpacity": 10}),
        by_pod("Answers scrapes", "Is a pod there and alive? 0 means that it did not answer in time: stalled, out of CPU, gone. A pod that stalls for 10 s is 0 for 10 s, and its streams stay open.",
               "none", f"min by (namespace, pod) ({of('up')} and on (namespace, pod, instance) (last_over_time({of('pushlab_build_info')}[1h])))", custom={"lineInterpolation": "stepAfter", "fillOpacity": 10}),
        row("Delivery"),
        by_pod("Deliveries by pod", "Does every pod write? A line that falls to 0 alone is a pod that stalls or lost the broker; all lines together: no likes, or the broker is away.",
               "ops", total("namespace, pod", rate("pushlab_deliveries_total", TRANSPORT)), links=[to("pushlab-broker-edge", "Broker and edge")]),
        by_pod("Commit → write by pod, p99", "Which pod is late? One alone: its node, its CPU, its viewers. All: the broker or the write path. A stall is seen best in *Answers scrapes*: of what came late much is superseded, and only the newest state is written.",
               "s", quantile(0.99, "pushlab_delivery_latency_seconds", "namespace, pod", TRANSPORT), links=[to("pushlab-comparison", "Comparison"), to("pushlab-broker-edge", "Broker and edge")]),
        series("Fan-out, p99", "How long does a pod take from an event's arrival to the last local socket? Grows with viewers of one post. If this is most of commit → write, more pods help; else it is the broker.",
               "s", line(quantile(0.99, "pushlab_fanout_seconds", "namespace, pod, transport", TRANSPORT), "{{pod}} {{transport}}"), data_links=THIS_POD),
        series("Mailbox outcomes", "Do viewers get every update? *sent* is well. *conflated*: slow viewers, or more likes than they can take, got a newer state instead. *dropped* and *disconnected*: their mailbox was full; see the overflow policy.",
               "ops", line(total("transport, outcome", rate("pushlab_mailbox_total", TRANSPORT)), "{{transport}} {{outcome}}")),
        series("Versions not sent one by one", "How many versions did viewers skip, and why? *conflated* by slow sockets, *superseded* by order of arrival, *dropped* by the overflow policy. The newest state always comes.",
               "ops", line(total("transport, reason", rate("pushlab_skipped_versions_total", TRANSPORT)), "{{transport}} {{reason}}")),
        by_pod("Slow viewers cut", "Whose viewers do not read? Streams ended by write time-out, as slow consumers, or for a full mailbox. One pod alone: an edge or network between. Behind a buffering proxy this stays 0, and the proxy's disk fills instead.",
               "ops", total("namespace, pod", rate("pushlab_closed_total", TRANSPORT, 'reason=~"write_timeout|slow_consumer|mailbox_full"'))),
        row("What a pod uses"),
        by_pod("CPU", "Is a pod at its limit? In cores. Against the limit in the chart's values; near it, latency rises before anything fails.",
               "none", f"max by (namespace, pod) ({rate('process_cpu_seconds_total')} * on (namespace, pod) group_left () {of('pushlab_build_info')})"),
        by_pod("Engine threads busy", "Are the fan-out threads at their limit? Busy seconds per second: 1 per engine thread at most. Near it, fan-out is what is late: more engines or more pods.",
               "none", total("namespace, pod", rate("pushlab_engine_busy_seconds_total"))),
        by_pod("Runtime busy", "Is the asynchronous runtime (API, TLS, HTTP/2, broker) at its limit? Share of its workers' time. Above 0.8 requests wait for a worker.",
               "percentunit", f"{total('namespace, pod', rate('pushlab_runtime_busy_seconds_total'))} / {total('namespace, pod', of('pushlab_runtime_workers'))}", limit=0.8),
        by_pod("Runtime queue", "Do tasks wait for a worker? A queue that stays above 0: CPU limit, or something blocks a worker.",
               "short", total("namespace, pod", of("pushlab_runtime_queue_depth"))),
        by_pod("Memory", "Does a pod grow? Resident memory. It should follow the streams; if it grows without them, it leaks: keep the pod and take a look.",
               "bytes", process("process_resident_memory_bytes")),
        by_pod("Memory per stream", "What does one stream hold? Resident memory over streams; with few streams it is the fixed part.",
               "bytes", f"{process('process_resident_memory_bytes')} / on (namespace, pod) {BY_POD}"),
        by_pod("File descriptors in use", "Will a pod run out of descriptors? Share of the limit. Each stream has one, with TLS or HTTP/2 two more. Above 0.8: raise the limit or add pods.",
               "percentunit", f"{process('process_open_fds')} / on (namespace, pod) {process('process_max_fds')}", limit=0.8),
        by_pod("Tasks", "Does work pile up? Tasks of the runtime that are alive. It follows HTTP/2 and TLS connections and running requests.",
               "short", total("namespace, pod", of("pushlab_runtime_tasks"))),
    ],
)
