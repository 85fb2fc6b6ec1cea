"""Holds Envoy's own configuration (config_dump of its admin port, on stdin) against the values of a release with the Gateway API variant (helm get values --all -o json, the argument)."""

import json
import re
import sys


def find(node, key):
    """Every object that has this key, anywhere."""
    if isinstance(node, dict):
        if key in node:
            yield node
        for value in node.values():
            yield from find(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from find(value, key)


def policy(cluster):
    """How a cluster balances: least_request, round_robin, …"""
    if "load_balancing_policy" in cluster:
        return cluster["load_balancing_policy"]["policies"][0]["typed_extension_config"]["name"].rpartition(".")[2]
    return cluster.get("lb_policy", "ROUND_ROBIN").lower()


def seconds(text):
    return float(text.rstrip("s")) if text else None


def main():
    values = json.load(open(sys.argv[1]))
    beat = values["pods"]["heartbeatSeconds"]
    dump = json.load(sys.stdin)
    clusters = {c["name"]: c for key in ("lb_policy", "load_balancing_policy", "connect_timeout") for c in find(dump, key) if "name" in c}
    hosts = {domain: virtual for held in find(dump, "virtual_hosts") for virtual in held["virtual_hosts"] for domain in virtual["domains"]}
    wrong, seen = [], 0

    def expect(where, holds, what):
        if not holds:
            wrong.append(f"{where}: {what}")

    for manager in find(dump, "http_filters"):
        names = [f["name"] for f in manager["http_filters"]]
        expect("listener", not any("buffer" in n or "compressor" in n for n in names), f"holds answers back: {names}")
    for variant, how in values["variants"].items():
        host = f"{variant}.{values['domain']}"
        virtual = hosts.get(host) or hosts.get(f"{host}:80")
        if not virtual:
            expect(host, False, f"no such host (there are {sorted(hosts)})")
            continue
        kinds = set()
        for route in virtual["routes"]:
            action = route.get("route", {})
            name = action.get("cluster")
            if not name:
                continue
            seen += 1
            match = json.dumps(route["match"])
            kind = "stomp" if "/stomp" in match else "sse" if "event-stream" in match else "api"
            kinds.add(kind)
            where = f"{host} {kind}"
            wanted = {"least_conn": "least_request", "round_robin": "round_robin"}[how["balance"]]
            expect(where, policy(clusters[name]) == wanted, f"balances by {policy(clusters[name])}")
            expect(where, "buffer" not in json.dumps(route.get("typed_per_filter_config", {})), "buffers")
            again = action.get("retry_policy", {})
            on503 = 503 in again.get("retriable_status_codes", []) or re.search(r"5xx|gateway-error", again.get("retry_on", ""))
            if kind == "api":
                expect(where, not on503, "a like is tried again after 503")
                continue
            expect(where, on503, "a stream that is refused is not tried again")
            expect(where, seconds(action.get("timeout")) == 0, f"ends after {action.get('timeout', '15s')}")
            idle = seconds(action.get("idle_timeout"))
            expect(where, idle and beat < idle < 2 * beat, f"idle time-out {idle} s, heart-beat {beat} s")
            if kind == "stomp":
                upgrades = json.dumps(action.get("upgrade_configs", [])) + "".join(json.dumps(m["upgrade_configs"]) for m in find(dump, "http_filters") if "upgrade_configs" in m)
                expect(where, "websocket" in upgrades, "does not upgrade to WebSocket")
        expect(host, kinds == {"api", "sse", "stomp"}, f"routes only {sorted(kinds)}")
    for line in wrong:
        print("FAIL", line)
    print(f"envoy: {seen} routes, {len(clusters)} clusters, {len(wrong)} failures")
    sys.exit(bool(wrong) or seen == 0)


main()
