"""*Broker and edge*: NATS between the pods; nginx, HAProxy or an Ingress controller in front of them."""

from model import (
    NAMESPACE, THIS_POD, TRANSPORT, VERMILION,
    dashboard, line, of, quantile, rate, row, series, stat, text, to, total,
)


def nats(name):
    return f"sum({of(name, NAMESPACE)})"


def nats_rate(name):
    return f"sum(rate({of(name, NAMESPACE)}[$__rate_interval]))"


def edge(plain, controller):
    """The exporter of plain nginx, or the same of F5's Ingress controller."""
    return f"{of(plain, NAMESPACE)} or {of(controller, NAMESPACE)}"


ACCEPTED = f"(rate({of('nginx_connections_accepted', NAMESPACE)}[$__rate_interval]) or rate({of('nginx_ingress_nginx_connections_accepted', NAMESPACE)}[$__rate_interval]))"
HANDLED = f"(rate({of('nginx_connections_handled', NAMESPACE)}[$__rate_interval]) or rate({of('nginx_ingress_nginx_connections_handled', NAMESPACE)}[$__rate_interval]))"
# Of the Debian package prometheus-process-exporter; it knows a group only once it has seen a process of it.
OLD, CURRENT = (of("namedprocess_namegroup_num_procs", NAMESPACE, f'groupname="{name}"') for name in ("nginx-old", "nginx-worker"))
SESSIONS = total("proxy, server", of("haproxy_server_current_sessions", NAMESPACE))

DASHBOARD = dashboard(
    "pushlab-broker-edge",
    "Pushlab: Broker and edge",
    "NATS: messages, slow consumers, lag. Edge: nginx, HAProxy, Ingress controller: connections, reloads, old workers, retries.",
    [
        text("Between the pods, and before them", "**Is the broker late or does it drop? Does the edge cut, queue or shift streams?** Both transports late and the write path well → broker. "
             "Waves of closes with no reason of ours → edge: look for a reload or an idle time-out in the same second.", 3),
        stat("Pods with a broker", "Is every pod connected? Share of pods whose broker connection is up. Below 1 those pods' viewers live on anti-entropy.",
             "percentunit", line(f"avg({of('pushlab_broker_connected')})", "connected")),
        stat("Slow consumers", "Did NATS cut a pod that did not read fast enough? Counted since the server's start. Each one cost events, which gaps and anti-entropy heal: see the runbook for PushlabSlowConsumer.",
             "short", line(nats("gnatsd_varz_slow_consumers"), "slow consumers"), limits=((1, VERMILION),)),
        row("Broker, as pods see it"),
        series("Broker lag, p99", "How long from COMMIT on one pod until another has the event? Clocks of two pods are in it. If this is most of commit → write, it is NATS or the network; else the fan-out.",
               "s", line(quantile(0.99, "pushlab_broker_lag_seconds", "namespace, pod"), "{{pod}}"), data_links=THIS_POD, links=[to("pushlab-comparison", "Comparison")]),
        series("Events handed over and received", "Does what goes in come out? Received is published × pods that have a viewer of the post.",
               "ops", line(total("namespace, pod", rate("pushlab_broker_published_total")), "{{pod}} published"), line(total("namespace, pod", rate("pushlab_broker_received_total")), "{{pod}} received"), data_links=THIS_POD),
        series("Connection events", "Is the connection steady? *slow_consumer*: the pod did not read in time; *lame_duck*: the server is about to go; *disconnected* without it: network or crash.",
               "ops", line(total("event", rate("pushlab_broker_events_total")), "{{event}}"), custom={"showPoints": "always"}),
        series("Events lost and healed", "Does anything get lost on the way, and is it repaired? *dropped*: our bounded queue was full; *merged*: replaced by a newer one while the broker was away; *gaps* were noticed by version; *healed* found by reading again.",
               "ops", line(f"sum({rate('pushlab_broker_dropped_total')})", "dropped"), line(f"sum({rate('pushlab_broker_merged_total')})", "merged"), line(f"sum({rate('pushlab_gaps_total')})", "gaps"),
               line(f"sum({rate('pushlab_rereads_healed_total')}) + sum({rate('pushlab_anti_entropy_healed_total')})", "healed"), line(f"sum({rate('pushlab_duplicate_events_total')})", "twice")),
        series("Subscriptions of pods", "How many subjects does each pod hold? One for each post with a viewer there. Without viewers and not falling: a leak.",
               "short", line(total("namespace, pod", of("pushlab_subscriptions")), "{{pod}}"), data_links=THIS_POD),
        series("Fan-out, p99", "Or is it the pod itself? From the event's arrival to the last local socket.",
               "s", line(quantile(0.99, "pushlab_fanout_seconds", "namespace, pod, transport", TRANSPORT), "{{pod}} {{transport}}"), data_links=THIS_POD, links=[to("pushlab-pods", "Pods")]),
        row("NATS"),
        series("Messages", "How much goes through the broker? *out* over *in* is the number of pods each event goes to.",
               "mps", line(nats_rate("gnatsd_varz_in_msgs"), "in"), line(nats_rate("gnatsd_varz_out_msgs"), "out")),
        series("Traffic", "How many bytes is that?",
               "Bps", line(nats_rate("gnatsd_varz_in_bytes"), "in"), line(nats_rate("gnatsd_varz_out_bytes"), "out")),
        series("Bytes that wait for pods", "Does a pod read too slowly? Pending bytes over all connections. Rising for seconds: a slow consumer is about to be cut; look for a pod without CPU.",
               "bytes", line(nats("gnatsd_connz_pending_bytes"), "pending"), links=[to("pushlab-pods", "Pods")]),
        series("Slow consumers and stale connections", "When were pods cut off? *slow* did not read, *stale* did not answer pings (a stalled pod, a broken path).",
               "short", line(nats("gnatsd_varz_slow_consumers"), "slow"), line(nats("gnatsd_varz_stale_connections"), "stale")),
        series("Connections and subscriptions", "Are all pods there? One connection for each pod, and one for each session with `--fanout relay`.",
               "short", line(nats("gnatsd_varz_connections"), "connections"), line(nats("gnatsd_varz_subscriptions"), "subscriptions")),
        series("JetStream", "Does the stream of the outbox grow without bound? Messages kept, by all streams. Always 0 without `--publish outbox`.",
               "short", line(nats("jetstream_server_total_messages"), "messages")),
        series("Memory of the server", "Does the broker grow? With pending bytes: slow pods; alone: subscriptions or streams.",
               "bytes", line(nats("gnatsd_varz_mem"), "resident")),
        row("Edge: nginx or its Ingress controller"),
        series("Connections of nginx", "Is the edge full? Client connections; each stream takes one more towards its pod, so that `worker_connections` must be twice this.",
               "short", line(edge("nginx_connections_active", "nginx_ingress_nginx_connections_active"), "active"), line(edge("nginx_connections_writing", "nginx_ingress_nginx_connections_writing"), "writing"), line(edge("nginx_connections_waiting", "nginx_ingress_nginx_connections_waiting"), "idle")),
        series("Connections nginx could not handle", "Does nginx drop connections? Accepted but not handled: `worker_connections` or descriptors are used up. Must be 0.",
               "cps", line(f"sum({ACCEPTED} - {HANDLED})", "dropped")),
        series("Reloads", "Was the edge reloaded? Each reload zeroes nginx' least-connections counts and leaves old workers behind. The controller counts by reason; of plain nginx the new workers are seen.",
               "short", line(f"sum by (reason) (increase({of('nginx_ingress_controller_nginx_reloads_total', NAMESPACE)}[$__rate_interval])) or "
                             f"sum by (groupname) (changes({of('namedprocess_namegroup_oldest_start_time_seconds', NAMESPACE, 'groupname=' + chr(34) + 'nginx-worker' + chr(34))}[$__rate_interval]))", "{{reason}}{{groupname}}"),
               line(f"sum(changes({of('haproxy_process_start_time_seconds', NAMESPACE)}[$__rate_interval]))", "haproxy"), custom={"drawStyle": "bars", "fillOpacity": 60}),
        series("Old workers", "How many workers of former configurations still hold streams? They live until their last stream ends. If `worker_shutdown_timeout` is set, they end all their streams at once: compare with closes in *Comparison*.",
               "short", line(f"sum({of('nginx_ingress_controller_nginx_worker_processes_total', NAMESPACE, 'generation=' + chr(34) + 'old' + chr(34))}) or "
                             f"sum({OLD}) or 0 * sum({CURRENT})", "old workers"), custom={"lineInterpolation": "stepAfter", "fillOpacity": 10}),
        row("Edge: HAProxy"),
        series("Sessions by server", "Does HAProxy spread streams evenly? By backend and pod. It keeps its counts when servers are added at run time.",
               "short", line(SESSIONS, "{{proxy}} {{server}}")),
        series("Skew as HAProxy sees it", "Is one server fuller than the others? Fullest over average of each backend.",
               "none", line(f"max by (proxy) ({SESSIONS}) / avg by (proxy) ({SESSIONS})", "{{proxy}}"), limit=1.5),
        series("Queue and retries", "Does the edge wait for pods? *queued* for a connection, *retried* and *redispatched* because a pod did not take one.",
               "short", line(f"sum({of('haproxy_backend_current_queue', NAMESPACE)})", "queued"), line(f"sum({rate('haproxy_backend_retry_warnings_total', NAMESPACE)})", "retried/s"), line(f"sum({rate('haproxy_backend_redispatch_warnings_total', NAMESPACE)})", "redispatched/s")),
        series("Who ended it", "Do clients or pods end what goes through the edge? *server* aborts are pods that went away, *errors* connections that failed.",
               "ops", line(f"sum({rate('haproxy_backend_client_aborts_total', NAMESPACE)})", "client"), line(f"sum({rate('haproxy_backend_server_aborts_total', NAMESPACE)})", "server"), line(f"sum({rate('haproxy_backend_connection_errors_total', NAMESPACE)})", "errors")),
    ],
)
