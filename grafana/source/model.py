"""What all dashboards have in common: selectors, panels, variables, annotations, links. Standard library only."""

import json
from urllib.parse import quote

# Okabe and Ito's palette: told apart with every common form of colour blindness. A transport is never told by colour
# alone: STOMP's lines are dashed.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#999999",
)
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RATE = "$__rate_interval"

# Matchers that every selector of ours carries. `pod` is not among those of other jobs: their pods are not pods of ours.
JOB = 'job=~"$job", instance=~"$instance"'
NAMESPACE = f'{JOB}, namespace=~"$namespace"'
POD = f'{NAMESPACE}, pod=~"$pod"'
TRANSPORT = f'{POD}, transport=~"$transport"'
LOAD = f'{NAMESPACE}, transport=~"$transport"'


def of(metric, matchers=POD, extra=""):
    """A selector: the metric with the dashboard's matchers."""
    return f"{metric}{{{', '.join(part for part in (matchers, extra) if part)}}}"


def rate(metric, matchers=POD, extra=""):
    """Per second, over the window Grafana finds right for the zoom and the scrape interval."""
    return f"rate({of(metric, matchers, extra)}[{RATE}])"


def total(by, inner):
    """The sum by these labels."""
    return f"sum by ({by}) ({inner})"


def quantile(q, metric, by="", matchers=POD, extra=""):
    """A quantile of a classic histogram."""
    labels = ", ".join(part for part in ("le", by) if part)
    return f"histogram_quantile({q}, {total(labels, rate(metric + '_bucket', matchers, extra))})"


def share_below(bound, metric, by, matchers=POD):
    """The share of a classic histogram's samples up to a bound that is one of its buckets."""
    below = total(by, rate(f"{metric}_bucket", matchers, f'le="{bound}"'))
    return f"{below} / {total(by, rate(f'{metric}_count', matchers))}"


def line(expr, legend, **more):
    """A query of a panel."""
    return {"expr": expr, "legendFormat": legend, **more}


def targets(queries):
    return [
        {"datasource": SOURCE, "editorMode": "code", "range": True, "refId": chr(ord("A") + at), **query}
        for at, query in enumerate(queries)
    ]


def styled(name, properties):
    return {
        "matcher": {"id": "byRegexp", "options": name},
        "properties": [{"id": key, "value": value} for key, value in properties.items()],
    }


def coloured(name, colour, **more):
    return styled(name, {"color": {"mode": "fixed", "fixedColor": colour}, **more})


# Grafana's own names of its palette follow the theme; these two lines do not.
DASHED = {"custom.lineStyle": {"fill": "dash", "dash": [10, 6]}}
TRANSPORTS = [coloured("/^sse/", BLUE), coloured("/^stomp/", ORANGE, **DASHED), styled("/canary/", {"custom.lineWidth": 1})]


def series(title, description, unit, *queries, width=12, overrides=(), custom=None, links=(), data_links=(), limit=None):
    """Lines over time. `limit` draws a line where things begin to be wrong."""
    steps = [{"color": "transparent", "value": None}]
    if limit is not None:
        steps.append({"color": VERMILION, "value": limit})
    defaults = {
        "unit": unit,
        "min": 0,
        "color": {"mode": "palette-classic-by-name"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "links": list(data_links),
        "custom": {
            "drawStyle": "line",
            "lineInterpolation": "linear",
            "lineWidth": 2,
            "fillOpacity": 0,
            "showPoints": "auto",
            "pointSize": 4,
            "spanNulls": False,
            "axisSoftMin": 0,
            "thresholdsStyle": {"mode": "off" if limit is None else "dashed"},
            **(custom or {}),
        },
    }
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "targets": targets(queries),
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "links": list(links),
        "size": (width, 8),
    }


def stat(title, description, unit, *queries, overrides=(), limits=(), links=(), decimals=None):
    """The newest value in large letters. `limits`: (value, colour) from which on the value has that colour."""
    defaults = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"color": "text", "value": None}, *({"color": colour, "value": value} for value, colour in limits)],
        },
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return {
        "type": "stat",
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "targets": targets(queries),
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "showPercentChange": False,
            "textMode": "value_and_name",
            "wideLayout": True,
        },
        "links": list(links),
        "size": (12, 5),
    }


def heatmap(title, description, query, native=False):
    """A histogram over time, on a scale that does not rely on hue (Cividis)."""
    return {
        "type": "heatmap",
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "targets": targets([line(query, "" if native else "{{le}}", format="heatmap")]),
        "fieldConfig": {
            "defaults": {"unit": "short", "custom": {"scaleDistribution": {"type": "linear"}, "hideFrom": {"legend": False, "tooltip": False, "viz": False}}},
            "overrides": [],
        },
        "options": {
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": "short"},
            "color": {"mode": "scheme", "scheme": "Cividis", "reverse": True, "scale": "exponential", "exponent": 0.5, "steps": 64, "fill": BLUE},
            "exemplars": {"color": VERMILION},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": True},
            "yAxis": {"axisPlacement": "left", "unit": "s", "reverse": False},
        },
        "links": [],
        "size": (12, 9),
    }


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "size": (24, 1)}


def text(title, markdown, height=4):
    return {
        "type": "text",
        "title": title,
        "description": "What this dashboard is for, and where to go from here.",
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"mode": "markdown", "content": markdown, "code": {"language": "plaintext", "showLineNumbers": False, "showMiniMap": False}},
        "links": [],
        "size": (24, height),
    }


def placed(panels):
    """Left to right, top to bottom, in a grid 24 wide. On a phone Grafana puts one below the other, in this order."""
    x = y = tallest = 0
    done = []
    for number, panel in enumerate(panels, 1):
        panel = dict(panel)
        width, height = panel.pop("size")
        if x + width > 24:
            x, y, tallest = 0, y + tallest, 0
        done.append({"id": number, "gridPos": {"x": x, "y": y, "w": width, "h": height}, **panel})
        x, tallest = x + width, max(tallest, height)
    return done


def variable(name, label, query):
    """A variable that reads its values from Prometheus; All is every one."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": SOURCE,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "options": [],
        "regex": "",
        "skipUrlSync": False,
    }


DATASOURCE = {
    "type": "datasource",
    "name": "datasource",
    "label": "Data source",
    "query": "prometheus",
    "current": {"selected": True, "text": "Prometheus", "value": "prometheus"},
    "hide": 0,
    "includeAll": False,
    "multi": False,
    "options": [],
    "refresh": 1,
    "regex": "",
    "skipUrlSync": False,
}
VARIABLES = [
    variable("namespace", "Namespace", "label_values(up, namespace)"),
    variable("job", "Job", 'label_values(up{namespace=~"$namespace"}, job)'),
    variable("instance", "Instance", 'label_values(up{namespace=~"$namespace", job=~"$job"}, instance)'),
    variable("pod", "Pod", 'label_values(pushlab_connections{namespace=~"$namespace", job=~"$job"}, pod)'),
    variable("transport", "Transport", 'label_values(pushlab_connections{namespace=~"$namespace", job=~"$job"}, transport)'),
]


def annotation(name, colour, expr, title, **more):
    return {
        "name": name,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "datasource": SOURCE,
        "target": {"expr": expr, "interval": "10s", "refId": "Anno"},
        "titleFormat": title,
        "textFormat": "{{namespace}} {{pod}}",
        **more,
    }


def annotations():
    """Roll-outs and faults, on every panel."""
    return [
        {
            "name": "Annotations & Alerts",
            "builtIn": 1,
            "type": "dashboard",
            "enable": True,
            "hide": True,
            "iconColor": SKY,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        },
        # The value is the time: one mark where each process of each pod began, which is what a roll-out looks like.
        annotation("Roll-outs and restarts", BLUE, f"max by (namespace, pod) ({of('process_start_time_seconds')} * on (namespace, pod) group_left () {of('pushlab_build_info')}) * 1000", "A pod started", useValueForTime=True),
        annotation("Drains", PURPLE, f"max by (namespace, pod) ({of('pushlab_draining')}) == 1", "A pod drains"),
        # Of an Ingress controller by reason; of plain nginx its new workers are seen, of HAProxy its new process.
        annotation("Roll-outs: reloads of the edge", SKY, " or ".join(f"{call} > 0" for call in (
            f"sum by (namespace, reason) (increase({of('nginx_ingress_controller_nginx_reloads_total', NAMESPACE)}[1m]))",
            "sum by (namespace, groupname) (changes({}[1m]))".format(of("namedprocess_namegroup_oldest_start_time_seconds", NAMESPACE, 'groupname="nginx-worker"')),
            f"sum by (namespace, job) (changes({of('haproxy_process_start_time_seconds', NAMESPACE)}[1m]))",
        )), "The edge was reloaded {{reason}}"),
        annotation("Faults: a target does not answer", VERMILION, f"min by (namespace, pod, job) ({of('up', NAMESPACE)}) == 0", "{{job}} does not answer"),
        annotation("Faults: alerts", ORANGE, 'max by (alertname, namespace, pod) (ALERTS{alertstate="firing", alertname=~"Pushlab.+", namespace=~"$namespace|"})', "{{alertname}}"),
        {
            "name": "Faults: told by hand or by a script",
            "enable": True,
            "hide": False,
            "iconColor": GREY,
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "target": {"type": "tags", "tags": ["pushlab-fault"], "limit": 100, "matchAny": True},
        },
    ]


def explore(source, kind, query):
    """A link to Explore with the dashboard's time range. `${…}` stays readable for Grafana, the rest is escaped."""
    pane = {"datasource": source, "queries": [{"refId": "A", "datasource": {"type": kind, "uid": source}, **query}], "range": {"from": "${__from}", "to": "${__to}"}}
    return "/explore?schemaVersion=1&orgId=1&panes=" + quote(json.dumps({"a": pane}, separators=(",", ":")), safe="${}_:,")


TRACES = explore("tempo", "tempo", {"queryType": "traceql", "query": '{resource.service.name="pushlab"}'})
LOGS = explore("loki", "loki", {"expr": '{namespace=~"${namespace:regex}", pod=~"${pod:regex}"}'})
SLOW_TRACES = explore("tempo", "tempo", {"queryType": "traceql", "query": '{resource.service.name="pushlab" && trace:duration > 200ms}'})
K6_LOGS = explore("loki", "loki", {"expr": '{pod=~".*k6.*"}'})
POD_LOGS = explore("loki", "loki", {"expr": '{namespace="${__field.labels.namespace}", pod="${__field.labels.pod}"}'})


def link(title, url):
    """A data link: offered when a line is clicked, and knows that line's labels."""
    return {"title": title, "url": url, "targetBlank": False}


LINK = {"asDropdown": False, "icon": "external link", "includeVars": False, "keepTime": True, "tags": [], "targetBlank": False, "tooltip": "", "type": "link"}


def panel_link(title, url):
    return {**LINK, "title": title, "url": url}


def to(uid, title):
    """A panel's link to another of our dashboards, with the time range and all variables."""
    return panel_link(title, f"/d/{uid}?${{__url_time_range}}&${{__all_variables}}")


THIS_POD = [
    link("This pod alone", "/d/pushlab-pods?${__url_time_range}&${datasource:queryparam}&${namespace:queryparam}&var-pod=${__field.labels.pod}"),
    link("This pod's log", POD_LOGS),
]
THIS_TRANSPORT = [link("The pods, this transport alone", "/d/pushlab-pods?${__url_time_range}&${datasource:queryparam}&${namespace:queryparam}&var-transport=${__field.labels.transport}")]
TRACED = [link("Traces slower than 200 ms", SLOW_TRACES)]


def dashboard(uid, title, description, panels, variables=VARIABLES, marks=None, logs=LOGS):
    return {
        "id": None,
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["pushlab"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "10s",
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "weekStart": "",
        "time": {"from": "now-30m", "to": "now"},
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m"]},
        "annotations": {"list": annotations() if marks is None else marks},
        "links": [
            {**LINK, "type": "dashboards", "title": "Pushlab", "url": "", "tags": ["pushlab"], "asDropdown": True, "includeVars": True, "icon": "dashboard"},
            {**LINK, "title": "Traces", "url": TRACES, "tooltip": "Explore, in Tempo"},
            {**LINK, "title": "Logs", "url": logs, "tooltip": "Explore, in Loki; a line's trace id leads to its trace"},
        ],
        "templating": {"list": [DATASOURCE, *variables]},
        "panels": placed(panels),
    }
