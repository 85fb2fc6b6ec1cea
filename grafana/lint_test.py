"""Each rule of `grafana/lint` finds what it is for: the committed dashboards are spoilt in one place after the other."""

import copy
import importlib.machinery
import importlib.util
import pathlib
import sys
import unittest

sys.dont_write_bytecode = True
LOADER = importlib.machinery.SourceFileLoader("lint", str(pathlib.Path(__file__).resolve().parent / "lint"))
SPEC = importlib.util.spec_from_loader("lint", LOADER)
LINT = importlib.util.module_from_spec(SPEC)
LOADER.exec_module(LINT)


def board(spoil):
    def on(given):
        spoil(given["boards"]["comparison"])

    return on


def panel(spoil):
    return board(lambda one: spoil(next(panel for panel in one["panels"] if panel["type"] == "timeseries")))


def expr(text):
    return panel(lambda one: one["targets"][0].update(expr=text))


def variable(name, **values):
    return board(lambda one: next(v for v in one["templating"]["list"] if v["name"] == name).update(values))


OURS = 'job=~"$job", instance=~"$instance"'
SPOILT = [
    ("uneditable-dashboard", board(lambda one: one.update(editable=True))),
    ("fixed-uid", board(lambda one: one.update(uid="x"))),
    ("fixed-uid", board(lambda one: one.update(id=7))),
    ("schema", board(lambda one: one.update(schemaVersion=38))),
    ("annotations", board(lambda one: one["annotations"]["list"].clear())),
    ("links", board(lambda one: one["links"].clear())),
    ("links", panel(lambda one: one.update(links=[{"url": "/d/pushlab-none"}]))),
    ("palette", board(lambda one: one["annotations"]["list"][0].update(iconColor="red"))),
    ("layout", panel(lambda one: one["gridPos"].update(w=6))),
    ("layout", panel(lambda one: one["gridPos"].update(y=0))),
    ("template-datasource-rule", variable("datasource", label="x")),
    ("template-job-rule", variable("job", allValue=".*")),
    ("template-instance-rule", variable("instance", multi=False)),
    ("template-ours", variable("transport", label="x")),
    ("template-on-time-change-reload-rule", variable("pod", refresh=1)),
    ("template-label-promql-rule", variable("pod", query={"query": "up"})),
    ("panel-title-description-rule", panel(lambda one: one.update(description=""))),
    ("question", panel(lambda one: one.update(description="A line."))),
    ("panel-datasource-rule", panel(lambda one: one.update(datasource={"uid": "prometheus"}))),
    ("panel-no-targets-rule", panel(lambda one: one.update(targets=[]))),
    ("panel-units-rule", panel(lambda one: one["fieldConfig"]["defaults"].pop("unit"))),
    ("target-promql-rule", expr(" ")),
    ("target-job-rule", expr('up{instance=~"$instance"}')),
    ("target-instance-rule", expr('up{job=~"$job"}')),
    ("target-instance-rule", expr("up")),
    ("target-rate-interval-rule", expr(f"rate(nginx_connections_accepted{{{OURS}}}[5m])")),
    ("target-counter-agg-rule", expr(f"sum by (kind) (pushlab_timeouts_total{{{OURS}}})")),
    ("known-metric", expr(f"pushlab_seats{{{OURS}}}")),
    ("known-metric", expr(f'pushlab_connections{{{OURS}, reason="x"}}')),
    ("known-metric", expr(f'pushlab_connections{{{OURS}, transport="sse|xhr"}}')),
    ("known-metric", board(lambda one: one["annotations"]["list"][1]["target"].update(expr="pushlab_seats"))),
    ("quantile", expr(f"histogram_quantile(0.9, sum by (pod) (rate(pushlab_fanout_seconds_bucket{{{OURS}}}[$__rate_interval])))")),
    ("known-metric", lambda given: given.update(rules=given["rules"].replace("pushlab_broker_connected", "pushlab_broker_up"))),
    ("runbook", lambda given: given.update(runbook=given["runbook"].replace("## PushlabIdleCut", "## PushlabIdleCuts"))),
    ("runbook", lambda given: given.update(rules=given["rules"].replace("runbook.md#pushlabidlecut", "runbook.md#idle"))),
    ("links", lambda given: given.update(rules=given["rules"].replace("/d/pushlab-pods", "/d/pushlab-pod"))),
    ("severity", lambda given: given.update(rules=given["rules"].replace("severity: ticket", "severity: low"))),
    ("exclusions", lambda given: given["exclusions"]["target-job-rule"].pop("reason")),
    ("exclusions", lambda given: given["exclusions"]["target-job-rule"]["entries"].append({"dashboard": "Pushlab: Pods"})),
]


class Lint(unittest.TestCase):
    def given(self):
        return copy.deepcopy(dict(zip(("boards", "exclusions", "rules", "runbook"), LINT.read())))

    def test_what_is_committed_passes_and_each_spoilt_copy_fails_by_its_rule(self):
        known = LINT.known_metrics()
        self.assertEqual(LINT.lint(**self.given(), known=known), [])
        for rule, spoil in SPOILT:
            with self.subTest(rule=rule):
                given = self.given()
                spoil(given)
                found = LINT.lint(**given, known=known)
                self.assertTrue(any(line.startswith(f"{rule}: ") for line in found), found)

    def test_selectors(self):
        expr = 'sum by (le, pod) (rate(a_bucket{x="1}", y=~"$y"}[5m])) / on (pod) group_left () (c > 0) and up == 0 or k6_vus'
        found = [("a_bucket", {"x": "=1}", "y": "=~$y"}, "rate", "5m"), *((name, {}, "", "") for name in ("c", "up", "k6_vus"))]
        self.assertEqual(LINT.selectors(expr), found)


if __name__ == "__main__":
    unittest.main()
