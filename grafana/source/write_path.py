"""*Write path*: from the request of a like to its event in the broker."""

from model import (
    NAMESPACE, THIS_POD, TRACED, VERMILION,
    dashboard, line, of, quantile, rate, row, series, stat, text, to, total,
)


def quantiles(metric):
    return [line(quantile(q, metric), name) for q, name in ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))]


def mysql(name):
    return of(f"mysql_global_status_{name}", NAMESPACE)


def mysql_rate(name):
    return f"sum(rate({mysql(name)}[$__rate_interval]))"


DASHBOARD = dashboard(
    "pushlab-write-path",
    "Pushlab: Write path",
    "Likes, the wait for the post's row, the transaction, retries, the outbox, the pool and the database.",
    [
        text("From the click to the broker", "**Why does a like take long?** It waits for a connection of the pool, then for the post's row, then for the COMMIT, then for the broker. "
             "Read the panels in that order: the first that rises is the cause, the ones before it the effect.", 3),
        stat("Likes", "Are likes coming in at all? Changed, unchanged and replayed ones.",
             "ops", line(f"sum({rate('pushlab_likes_total')})", "likes"), decimals=1),
        stat("Likes that failed", "Are likes lost? Share that failed for a reason of ours. Above 0: the log says why; then the panels *Time-outs of the database* and *Retries*.",
             "percentunit", line(f"sum({rate('pushlab_likes_total', extra='result=' + chr(34) + 'failed' + chr(34))}) / sum({rate('pushlab_likes_total')})", "failed"), decimals=2, limits=((0.001, VERMILION),)),
        row("Likes"),
        series("Likes by result", "What becomes of likes? *changed* are counted and told; *unchanged* were there before; *replayed* had their key's answer; *pending* wait to be counted (`--write event`); *refused* is the caller's fault, *failed* ours.",
               "ops", line(total("result", rate("pushlab_likes_total")), "{{result}}")),
        series("Answers by route and status", "What do callers get? 5xx is ours, 429 a limit, 409 and 422 the caller's keys and bodies. One route alone: its handler; all: the database or the pool.",
               "reqps", line(total("route, status", rate("pushlab_http_requests_total")), "{{status}} {{route}}")),
        series("Likes sent by the generator", "Does the load arrive as planned? By result, as the generator saw it; its lateness is beside it.",
               "ops", line(total("result", rate("pushlab_load_likes_total", NAMESPACE)), "{{result}}")),
        series("Lateness of the generator, p99", "Is the measuring instrument sound? How late a like was sent after it was due. If this is in the order of the latencies, the generator is the bottleneck and its figures are void.",
               "s", line(quantile(0.99, "pushlab_load_schedule_lag_seconds", "", NAMESPACE), "p99"), links=[to("pushlab-comparison", "Comparison")]),
        row("Lock and transaction"),
        series("Wait for the post's row", "Do likes of one post queue up? Time in SELECT … FOR UPDATE. High p50: one post is hot, another write strategy helps (`pushlab bench writes`); high p99.9 alone: something holds a lock now and then.",
               "s", *quantiles("pushlab_lock_wait_seconds"), data_links=TRACED),
        series("Transaction", "How long does the database take from lock to COMMIT? Mostly the disk's sync. If it rises with the lock wait, look at the disk; rises alone: replication or a slow statement.",
               "s", *quantiles("pushlab_transaction_seconds"), data_links=TRACED),
        series("Commits per like", "Do likes share transactions? 1: each has its own; below 1 they are combined, which is what a hot post needs; above 1: retries.",
               "none", line(f"sum({rate('pushlab_like_commits_total')}) / sum({rate('pushlab_likes_total', extra='result=~' + chr(34) + 'changed|unchanged' + chr(34))})", "commits per like")),
        series("Retries", "Do transactions collide? Repeated after a deadlock or a lock error. A few are normal on a hot post; a rate near that of the likes: contention, see the runbook for PushlabLockContention.",
               "ops", line(total("namespace, pod", rate("pushlab_transaction_retries_total")), "{{pod}}"), data_links=THIS_POD),
        series("Time-outs of the database", "Does something give up on the database? *pool*: no free connection in time; *lock_wait*: the row was held too long; *statement*: the server did not answer. Panels below say which came first.",
               "ops", line(total("kind", rate("pushlab_timeouts_total", extra='kind=~"lock_wait|pool|statement"')), "{{kind}}"), custom={"showPoints": "always"}),
        series("Hand-over to the broker", "How long from COMMIT until the event is with the broker's client? Milliseconds: the client's queue is full or its connection is away.",
               "s", *quantiles("pushlab_publish_seconds"), links=[to("pushlab-broker-edge", "Broker and edge")]),
        row("Pool"),
        series("Connections of the pool", "Are there enough? *used* at the maximum while the wait beside it rises: the pool is too small, or the database too slow; look at *Transaction* first.",
               "short", line(total("state", of("pushlab_pool_connections")), "{{state}}"), custom={"fillOpacity": 10}),
        series("Wait for a connection", "Do requests wait before they reach the database? Near 0 unless the pool is used up.",
               "s", *quantiles("pushlab_pool_acquire_seconds")),
        row("Outbox and pending likes"),
        series("Outbox: events not published", "Does the outbox empty itself? Rows of all pods (each pod reads the same table, so the largest is shown). Rising: the broker is away or the sweep cannot keep up. Always 0 without `--publish outbox`.",
               "short", line(f"max({of('pushlab_outbox_unpublished')})", "rows")),
        series("Outbox: age of the oldest", "How late are viewers told at worst? Above 10 s an alert fires: see the runbook for PushlabOutboxLag.",
               "s", line(f"max({of('pushlab_outbox_oldest_seconds')})", "oldest"), limit=10),
        series("Outbox: from COMMIT to acknowledgement, p99", "What does safety cost? With `--publish outbox` every event waits for the stream's acknowledgement.",
               "s", line(quantile(0.99, "pushlab_outbox_publish_seconds"), "p99")),
        series("Outbox: left and swept", "Do pods die between COMMIT and publish, or does the broker refuse? *left* to the sweep, and found by it.",
               "ops", line(f"sum({rate('pushlab_outbox_left_total')})", "left"), line(f"sum({rate('pushlab_outbox_swept_total')})", "swept")),
        series("Pending likes", "Are answered likes counted in time (`--write event`)? Rows that wait, of the whole database. Rising: the counter cannot keep up.",
               "short", line(f"max({of('pushlab_pending_likes')})", "pending")),
        series("Pending: from answer to count, p99", "How old is a like when it is counted (`--write event`)?",
               "s", line(quantile(0.99, "pushlab_pending_seconds"), "p99")),
        row("MariaDB or MySQL"),
        series("Row locks waited for", "Does the database itself see contention? Waits that began per second, of all clients, ours and others.",
               "ops", line(mysql_rate("innodb_row_lock_waits"), "waits")),
        series("Mean wait for a row lock", "How long do they last? The server's own clock, in whole milliseconds, so that short waits are 0. If ours are long and these are not, the time is lost in the pool or network.",
               "ms", line(f"{mysql_rate('innodb_row_lock_time')} / {mysql_rate('innodb_row_lock_waits')}", "mean")),
        series("Threads", "How busy is the server? *running* above its cores: it is the bottleneck. *connected* at the server's limit: pods × pool size is too much.",
               "short", line(f"sum({mysql('threads_running')})", "running"), line(f"sum({mysql('threads_connected')})", "connected"), line(f"sum({of('mysql_global_variables_max_connections', NAMESPACE)})", "limit")),
        series("Statements and deadlocks", "Does the server work, and do transactions deadlock? Deadlocks are counted by MariaDB; MySQL tells them in its log.",
               "ops", line(mysql_rate("questions"), "statements"), line(mysql_rate("innodb_deadlocks"), "deadlocks")),
    ],
)
