"""*Comparison*: which transport is late, loses time, or costs more."""

from model import (
    LOAD, POD, SLOW_TRACES, THIS_TRANSPORT, TRACED, TRANSPORT, TRANSPORTS, VERMILION,
    dashboard, heatmap, line, of, panel_link, quantile, rate, row, series, share_below, stat, text, to, total,
)

DUE, CANARY, WRITTEN = "pushlab_load_due_to_view_seconds", "pushlab_canary_like_to_view_seconds", "pushlab_delivery_latency_seconds"
CONNECTIONS = total("transport", of("pushlab_connections", TRANSPORT))
BY_POD = total("namespace, pod, transport", of("pushlab_connections", TRANSPORT))
SHARE = f"({BY_POD} / on (namespace, pod) group_left () {total('namespace, pod', of('pushlab_connections'))})"


def like_to_view(q):
    """Of the generator, and of the canary: the same time, seen from the lab and from production."""
    return [
        line(quantile(q, DUE, "transport", LOAD), "{{transport}} generator"),
        line(quantile(q, CANARY, "transport", TRANSPORT), "{{transport}} canary"),
    ]


def per_thousand(use):
    """What pods use, given to transports by their share of each pod's viewers, per 1,000 viewers."""
    shared = f"{SHARE} * on (namespace, pod) group_left () {total('namespace, pod', use)}"
    return f"1000 * {total('transport', shared)} / {CONNECTIONS}"


def waits(q, percent):
    return series(
        f"Like → view, {percent}",
        f"How long does {percent} of the likes take from when they were due until a viewer holds the new count? All of it: write, broker, fan-out, edge, network. "
        "Generator lines are the lab's load, canary lines a real viewer through the public URL. SSE and STOMP share the axis. "
        "If one transport alone is late, look at its edge and at *Pods* for that transport; if both are, at *Write path* and *Broker and edge*. "
        "If this is late and commit → write below is not, the edge or the network is.",
        "s", *like_to_view(q), overrides=TRANSPORTS, data_links=THIS_TRANSPORT + TRACED,
    )


def heat(transport, name):
    return heatmap(
        f"Commit → write, {name}",
        f"Are all deliveries over {name} a little late, or few of them very late? A dark band that moves up is load; a second band far above is a stall or a queue. "
        "Compare with the neighbour: same buckets, same colours. Then *Pods*, to see whether it is one pod's.",
        total("le", f"increase({of(WRITTEN + '_bucket', POD, f'transport={chr(34)}{transport}{chr(34)}')}[$__rate_interval])"),
    )


DASHBOARD = dashboard(
    "pushlab-comparison",
    "Pushlab: Comparison",
    "SSE beside STOMP on the same axes: latency from like to view, time-outs, deliveries, bytes, cost per 1,000 viewers.",
    [
        text("SSE beside STOMP", "**Which transport is late, loses time, or costs more?** Blue solid lines are SSE, orange dashed ones STOMP. "
             "Is one pod to blame? → *Pods*. Are both transports late? → *Write path*, then *Broker and edge*.", 3),
        stat("Like → view, p99", "Is anybody waiting? The slowest hundredth of likes, generator's where there is one, else the canary's. Above 0.5 s the delivery objective is at risk: look at the lines below for when it began.",
             "s", line(f"{quantile(0.99, DUE, 'transport', LOAD)} or {quantile(0.99, CANARY, 'transport', TRANSPORT)}", "{{transport}}"), limits=((0.5, VERMILION),)),
        stat("Written within 0.5 s of COMMIT", "Do the pods keep the delivery objective of 99.9 %? Share of updates written to a viewer's socket in time. Below it: *Pods* for the pod, the runbook for the alert.",
             "percentunit", line(share_below("0.5", WRITTEN, "transport", TRANSPORT), "{{transport}}"), decimals=3),
        stat("Viewers", "How many streams are open, and did one transport lose its viewers? A fall that is not a roll-out: see the closes by reason below.",
             "short", line(CONNECTIONS, "{{transport}}")),
        stat("Time-outs per minute", "Does anything wait in vain now? The sum of all kinds; the panel below says which.",
             "short", line(f"60 * sum({rate('pushlab_timeouts_total')})", "all kinds"), decimals=1, limits=((1, VERMILION),)),
        row("Latency"),
        waits(0.5, "p50"),
        waits(0.99, "p99"),
        waits(0.999, "p99.9"),
        series("Commit → write, p99", "How much of that is the pods' own? From COMMIT to the write to the viewer's socket. What like → view has more than this is the write before the commit (see *Write path*), and edge and network behind the socket.",
               "s", line(quantile(0.99, WRITTEN, "transport", TRANSPORT), "{{transport}}"), overrides=TRANSPORTS, data_links=THIS_TRANSPORT, links=[to("pushlab-write-path", "Write path")]),
        heat("sse", "SSE"),
        heat("stomp", "STOMP"),
        row("Time-outs and lost streams"),
        series("Time-outs by kind", "What waited in vain? *idle_cut*: an edge cuts quiet streams, so its read time-out is shorter than the heartbeat. *write* and *heartbeat*: viewers that take nothing. *lock_wait*, *pool*, *statement*: the database, see *Write path*. *broker*: NATS. *head*, *connect*: clients that open and say nothing.",
               "ops", line(total("kind", rate("pushlab_timeouts_total")), "{{kind}}"), custom={"showPoints": "always"}, links=[to("pushlab-write-path", "Write path"), to("pushlab-broker-edge", "Broker and edge")]),
        series("Streams closed by reason", "Who ended streams? *peer* and *reset* come from the client or the edge, *drain* from a roll-out, *write_timeout* and *slow_consumer* from viewers that do not read. A wave of one reason in one transport is an edge's time-out or reload.",
               "ops", line(total("transport, reason", rate("pushlab_closed_total", TRANSPORT)), "{{transport}} {{reason}}"), overrides=[TRANSPORTS[1]], links=[to("pushlab-pods", "Pods")]),
        series("Canary's results", "Does a like sent through the public URL come back to a viewer? *seen* is well; *late* came after its time; *lost* never came; *unreachable* means that the URL, the edge or all pods are away: start at the edge.",
               "ops", line(total("transport, result", rate("pushlab_canary_total", TRANSPORT)), "{{transport}} {{result}}"), overrides=[TRANSPORTS[1]], links=[panel_link("Traces slower than 200 ms", SLOW_TRACES)]),
        series("Reconnects of the generator's viewers", "Do viewers lose their streams? Every reconnect costs a resume and, behind an edge, a new choice of pod. A spike at a roll-out is right, and should be spread over the drain window.",
               "ops", line(total("transport", rate("pushlab_load_reconnects_total", LOAD)), "{{transport}}"), overrides=TRANSPORTS),
        row("Throughput"),
        series("Deliveries", "How many updates reach sockets per second? Should be likes × viewers per post. If it is flat while likes rise, updates are conflated: see mailbox outcomes in *Pods*.",
               "ops", line(total("transport", rate("pushlab_deliveries_total", TRANSPORT)), "{{transport}}"), overrides=TRANSPORTS, data_links=THIS_TRANSPORT),
        series("Bytes written", "What does a transport put on the wire? TLS and TCP come on top.",
               "Bps", line(total("transport", rate("pushlab_written_bytes_total", TRANSPORT)), "{{transport}}"), overrides=TRANSPORTS),
        series("Bytes per delivery", "What does one update cost on the wire? Heartbeats are in it, so it grows when little happens.",
               "bytes", line(f"{total('transport', rate('pushlab_written_bytes_total', TRANSPORT))} / {total('transport', rate('pushlab_deliveries_total', TRANSPORT))}", "{{transport}}"), overrides=TRANSPORTS),
        series("Deliveries per write", "Does the engine put several updates into one send? 1 at leisure; more under load, when several posts' updates wait for one viewer. Below 1: heartbeats.",
               "none", line(f"{total('transport', rate('pushlab_deliveries_total', TRANSPORT))} / {total('transport', rate('pushlab_socket_writes_total', TRANSPORT))}", "{{transport}}"), overrides=TRANSPORTS),
        row("Cost"),
        series("CPU per 1,000 viewers", "How many cores do 1,000 viewers take? A pod's CPU time goes to transports by their share of its viewers: where pods serve both, both lines are drawn together by that, so compare only where each pod, or each hour, has one transport.",
               "none", line(per_thousand(rate("process_cpu_seconds_total")), "{{transport}}"), overrides=TRANSPORTS, links=[to("pushlab-pods", "Pods")]),
        series("Memory per 1,000 viewers", "How much memory do 1,000 viewers take? Resident memory, shared out as CPU is. With few viewers it is the pod's fixed part that you see.",
               "bytes", line(per_thousand(of("process_resident_memory_bytes")), "{{transport}}"), overrides=TRANSPORTS, links=[to("pushlab-pods", "Pods")]),
    ],
)
