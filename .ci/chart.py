"""What .ci/chart checks; see there."""

import filecmp
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

import reachability

CHART = Path("helm/pushlab")
KUBERNETES = "1.34"
BASE = Path("k8s/base/pushlab.yaml")
# /grafana is the source; a chart cannot reach outside itself, so it keeps copies.
COPIES = {
    **{p: CHART / "dashboards" / p.name for p in sorted(Path("grafana/dashboards").glob("*.json"))},
    **{p: CHART / "rules" / p.name for p in sorted(Path("grafana/rules").glob("*.yaml")) if ".test." not in p.name},
    Path("grafana/provisioning/datasources/prometheus.yaml"): CHART / "provisioning/datasource.yaml",
    Path("grafana/provisioning/dashboards/pushlab.yaml"): CHART / "provisioning/provider.yaml",
}
failures = []


def fail(where, what):
    failures.append(f"{where}: {what}")


def helm(*args):
    return subprocess.run(["helm", *args], capture_output=True, text=True)


def render(*args, release="lab", namespace="lab"):
    done = helm("template", release, str(CHART), "-n", namespace, "--kube-version", KUBERNETES, *args)
    if done.returncode:
        raise SystemExit(f"helm template {' '.join(args)}:\n{done.stderr}")
    return [d for d in yaml.load_all(done.stdout, Unique) if d]


class Unique(yaml.SafeLoader):
    """A loader that does not take the same key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise SystemExit(f"line {node.start_mark.line + 1}: {twice} twice")
        return super().construct_mapping(node, deep)


# Numbers stay exact and strings stay strings, as in a cluster's own reader.
def validate(where, d):
    group, _, version = d["apiVersion"].rpartition("/")
    schema = Path("helm/schemas") / f"{group}_{version}_{d['kind']}.json"
    try:
        if schema.exists():
            jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(d)
        else:
            kubernetes_validate.validate(d, KUBERNETES, strict=True)
    except jsonschema.ValidationError as e:
        fail(where, f"{'/'.join(map(str, e.absolute_path))}: {e.message[:300]}")
    except kubernetes_validate.ValidationError as e:
        fail(where, f"{'/'.join(map(str, e.path))}: {e.message[:300]}")


def pod_of(d):
    match d["kind"]:
        case "Pod":
            return d["spec"]
        case "Deployment" | "StatefulSet" | "Job":
            return d["spec"]["template"]["spec"]
    return None


def check_pod(where, pod):
    """Pod Security "restricted", and what makes a pod surprising."""
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        fail(where, "may run as root")
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        fail(where, "no seccomp profile")
    safe = {"net.ipv4.ip_local_port_range"}
    if {s["name"] for s in security.get("sysctls", [])} - safe:
        fail(where, "a sysctl that is not safe")
    if pod.get("hostNetwork") or pod.get("hostPID") or any("hostPath" in v for v in pod.get("volumes", [])):
        fail(where, "uses the host")
    volumes = {v["name"] for v in pod.get("volumes", [])}
    for c in pod["containers"] + pod.get("initContainers", []):
        at = f"{where} {c['name']}"
        s = c.get("securityContext", {})
        if s.get("allowPrivilegeEscalation") is not False or s.get("capabilities", {}).get("drop") != ["ALL"]:
            fail(at, "keeps privileges")
        if s.get("readOnlyRootFilesystem") is not True:
            fail(at, "writes to its image")
        tag = c["image"].rpartition(":")[2]
        if not tag or tag == "latest" or "/" in tag:
            fail(at, f"image {c['image']}")
        names = [e["name"] for e in c.get("env", [])]
        for name in {n for n in names if names.count(n) > 1}:
            fail(at, f"{name} twice")
        for e in c.get("env", []):
            if "value" in e and re.search(r"password|secret", e["name"], re.I):
                fail(at, f"{e['name']} is a plain value")
        requests = c.get("resources", {})
        if "memory" not in requests.get("limits", {}) or "cpu" not in requests.get("requests", {}):
            fail(at, "no bound of memory, or no request of CPU")


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text).group(1))


def check_times(where, docs):
    """preStop, drain and grace are one set; edges are more patient than the heart-beat."""
    beats = set()
    for d in docs:
        pod = pod_of(d)
        for c in pod["containers"] if pod and d["kind"] == "Deployment" else []:
            env = {e["name"]: e.get("value") for e in c.get("env", [])}
            if "PUSHLAB_DRAIN" not in env:
                continue
            stop = c["lifecycle"]["preStop"]
            pause = stop["sleep"]["seconds"] if "sleep" in stop else int(stop["exec"]["command"][1])
            least = pause + seconds(env["PUSHLAB_DRAIN"]) + seconds(env["PUSHLAB_DRAIN_GRACE"]) + 18
            if pod["terminationGracePeriodSeconds"] <= least:
                fail(where, f"{d['metadata']['name']}: killed before it has drained ({least} s)")
            beats.add(seconds(env["PUSHLAB_HEARTBEAT"]))
    beat = max(beats, default=10)
    for d in docs:
        text = json.dumps(d)
        for found in re.findall(r"proxy[_-]read[_-]timeout[\": ]+(\d+)s", text):
            if not beat < int(found) < 2 * beat:
                fail(where, f"{d['metadata']['name']}: read time-out {found} s, heart-beat {beat} s")
        for found in re.findall(r'"(?:streamIdleTimeout|read)": "(\d+)s"', text):
            if not beat < int(found) < 2 * beat:
                fail(where, f"{d['metadata']['name']}: idle time-out {found} s, heart-beat {beat} s")


def check_nginx(where, config):
    """A location of likes never tries again after 503, those of streams do; no variant but the buffered ones buffers."""
    for server in re.split(r"\n    server \{", config)[1:]:
        if "stub_status" in server:
            continue
        name = re.search(r"server_name (\S+?)\.", server).group(1)
        parts = re.split(r"\n        location ", server)
        likes = [p for p in parts if p.startswith("/ {")]
        streams = [p for p in parts if p.startswith("@stream") or p.startswith("= /stomp")]
        if len(likes) != 1 or len(streams) != 2:
            fail(where, f"{name}: {len(likes)} locations of likes, {len(streams)} of streams")
        if any("503" in p for p in likes) or not all("http_503" in p for p in streams):
            fail(where, f"{name}: 503 rules")
        if ("proxy_buffering on" in server) != ("proxy_ignore_headers X-Accel-Buffering" in server):
            fail(where, f"{name}: buffers only when pods let it")
    for upstream in re.findall(r"upstream \S+ \{.*?\n    \}", config, re.S):
        if "zone " not in upstream or " resolve max_fails=0;" not in upstream:
            fail(where, "an upstream without zone or resolve, or that counts failures")


def api_versions(values):
    found = re.search(r"^# api-versions: (.+)$", values.read_text(), re.M)
    return ["--api-versions", ",".join(found.group(1).split())] if found else []


def check_values(values):
    where = values.name if values else "values.yaml"
    args = [*api_versions(values), "-f", str(values)] if values else []
    lint = helm("lint", "--strict", str(CHART), *(["-f", str(values)] if values else [])) if not args or "--api-versions" not in args else None
    if lint and lint.returncode:
        fail(where, f"helm lint: {lint.stdout}{lint.stderr}")
    docs = render(*args)
    names = [(d["kind"], d["metadata"]["name"]) for d in docs]
    for twice in {n for n in names if names.count(n) > 1}:
        fail(where, f"{twice} twice")
    for d in docs:
        at = f"{where} {d['kind']}/{d['metadata']['name']}"
        validate(at, d)
        if pod := pod_of(d):
            check_pod(at, pod)
        if d["kind"] == "TestRun":
            runner = d["spec"]["runner"]
            pod = {"securityContext": runner["securityContext"], "containers": [{"name": "runner", **runner, "securityContext": runner["containerSecurityContext"]}]}
            check_pod(at, pod)
        if "nginx.conf" in d.get("data", {}):
            check_nginx(at, d["data"]["nginx.conf"])
        if d["kind"] == "Secret" and d["metadata"]["annotations"].get("helm.sh/resource-policy") != "keep":
            fail(at, "is not kept")
    check_times(where, docs)
    return len(docs)


def check_flows():
    """NetworkPolicies allow what the table says, and nothing else."""
    count = 0
    for name, table in yaml.safe_load((CHART / "ci/flows.yaml").read_text()).items():
        values = CHART / "ci" / name
        wanted = {(a, b, port) for a, targets in table.items() for b, ports in targets.items() for port in ports}
        namespaces = {a for a in table} & set(re.findall(r"[\w-]+", "".join(re.findall(r"Namespaces: \[(.*?)\]", values.read_text()))))
        found = reachability.flows(render(*api_versions(values), "-f", str(values)), ("anywhere", *namespaces))
        # What may come from anywhere may come from a namespace too.
        found = {f for f in found if f[0] not in namespaces or ("anywhere", *f[1:]) not in found}
        for flow in sorted(found - wanted, key=str):
            fail(f"flows of {name}", f"{flow} is possible and should not be")
        for flow in sorted(wanted - found, key=str):
            fail(f"flows of {name}", f"{flow} is not possible")
        count += len(wanted)
    return count


def check_refused():
    cases = yaml.safe_load((CHART / "ci/refused.yaml").read_text())
    with ThreadPoolExecutor(2) as two:
        results = two.map(lambda case: helm("template", "lab", str(CHART), "--set", case["set"]), cases)
        for case, done in zip(cases, results):
            if not done.returncode:
                fail("refused.yaml", f"{case['set']} is not refused")
            for word in case["says"]:  # Helm 3 and 4 put the schema's words differently
                if done.returncode and word not in done.stderr:
                    fail("refused.yaml", f"{case['set']}: no {word!r} in {done.stderr.strip()}")
    return len(cases)


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def check_kind_values():
    """What runs in kind is the default: only image tags may differ."""
    values = dict(leaves(yaml.safe_load((CHART / "values.yaml").read_text())))
    for path, _ in leaves(yaml.safe_load((CHART / "ci/kind-values.yaml").read_text())):
        if path not in values or path[-1] != "tag":
            fail("kind-values.yaml", f"{'.'.join(path)} is no image tag of values.yaml")


def without_helm(d):
    """An object as kustomize has it: no hook, nothing that says Helm."""
    d = json.loads(json.dumps(d))
    for labels in (d["metadata"].get("labels", {}),):
        for key in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
            labels.pop(key, None)
    return d


def base():
    """The default render for people without Helm; the Secret is theirs to make."""
    docs = render("--set", "secrets.existingSecret=lab-secrets")
    return [without_helm(d) for d in docs if "helm.sh/hook" not in d["metadata"].get("annotations", {})]


class Block(yaml.SafeDumper):
    """Long texts as blocks, and no anchors."""

    def ignore_aliases(self, data):
        return True


Block.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def check_base(write):
    docs = base()
    if write:
        BASE.parent.mkdir(parents=True, exist_ok=True)
        head = "# Made by .ci/chart --write from the chart's defaults (helm template lab helm/pushlab -n lab); change the chart, not this file.\n"
        BASE.write_text(head + yaml.dump_all(docs, Dumper=Block, sort_keys=False, width=160))
    kept = [d for d in yaml.safe_load_all(BASE.read_text()) if d]
    if kept != docs:
        fail(str(BASE), "differs from what the chart renders: .ci/chart --write")


def described(path, node, lines):
    """Rows (name, default, description) of values.yaml in its order."""
    stack, text = [], None
    for line in lines:
        if found := re.match(r"\s*# -- (.*)", line):
            text = found.group(1)
            continue
        found = re.match(r"(\s*)([A-Za-z][\w-]*):(.*)", line)
        if not found or line.lstrip().startswith("#"):
            continue
        depth = len(found.group(1)) // 2
        stack[depth:] = [found.group(2)]
        rest = found.group(3).split(" #")[0].strip()
        if rest or text:
            yield ".".join(stack), rest, text or ""
        text = None


def check_readme(write):
    lines = (CHART / "values.yaml").read_text().splitlines()
    rows = [f"| `{name}` | {f'`{default}`' if default else ''} | {text} |" for name, default, text in described((), None, lines)]
    table = "\n".join(["| value | default | |", "|---|---|---|", *rows])
    readme = CHART / "README.md"
    text = readme.read_text()
    begin, end = "<!-- values -->\n", "\n<!-- /values -->"
    new = text[: text.index(begin) + len(begin)] + table + text[text.index(end) :]
    if write:
        readme.write_text(new)
    elif new != text:
        fail(str(readme), "its table is not that of values.yaml: .ci/chart --write")


def check_copies(write):
    for source, copy in COPIES.items():
        if write:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        if not copy.exists() or not filecmp.cmp(source, copy, shallow=False):
            fail(str(copy), f"is no copy of {source}: .ci/chart --write")
    for copy in [*CHART.glob("dashboards/*.json"), *CHART.glob("rules/*.yaml")]:
        if copy not in COPIES.values():
            fail(str(copy), "has no source in grafana/")


def main():
    write = "--write" in sys.argv
    check_copies(write)
    check_kind_values()
    files = sorted((CHART / "ci").glob("*-values.yaml"))
    objects = sum(check_values(values) for values in [None, *files])
    refused = check_refused()
    flows = check_flows()
    check_base(write)
    check_readme(write)
    for failure in failures:
        print("FAIL", failure)
    print(f"chart: {len(files) + 1} files of values, {objects} objects valid, {refused} bad values refused, {flows} flows allowed and no other, {len(failures)} failures")
    sys.exit(bool(failures))


main()
