"""Holds Envoy's own configuration (config_dump of its admin port, on stdin) against what the Gateway API variant of the chart asks for."""

import json
import sys


def find(node, kind):
    """Every object that has this key, anywhere."""
    if isinstance(node, dict):
        if kind in node:
            yield node
        for value in node.values():
            yield from find(value, kind)
    elif isinstance(node, list):
        for value in node:
            yield from find(value, kind)


def main():
    dump = json.load(sys.stdin)
    policies = {}
    for cluster in find(dump, "lb_policy"):
        policies[cluster["name"]] = cluster["lb_policy"]
    for cluster in find(dump, "load_balancing_policy"):
        policies[cluster["name"]] = json.dumps(cluster["load_balancing_policy"])
    wrong, seen = [], 0
    for host in find(dump, "virtual_hosts"):
        for virtual in host["virtual_hosts"]:
            for route in virtual["routes"]:
                action = route.get("route")
                if not action or "cluster" not in action:
                    continue
                seen += 1
                name = action["cluster"]
                stream = "-streams" in name
                where = f"{virtual['domains']} {name}"
                policy = policies.get(name, "")
                wanted = ("ROUND_ROBIN", "round_robin") if "-ws-rr-" in name else ("LEAST_REQUEST", "least_request")
                if not any(word in policy for word in wanted):
                    wrong.append(f"{where}: balances by {policy[:80]}")
                retry = action.get("retry_policy", {})
                again = "503" in json.dumps(retry) or 503 in retry.get("retriable_status_codes", [])
                if again != stream:
                    wrong.append(f"{where}: {'is not' if stream else 'is'} tried again after 503")
                if stream and action.get("timeout") != "0s":
                    wrong.append(f"{where}: ends after {action.get('timeout', '15s')}")
                idle = action.get("idle_timeout")
                if stream and (not idle or not 10 < float(idle.rstrip("s")) < 20):
                    wrong.append(f"{where}: idle time-out {idle}, heart-beat 10 s")
    for line in wrong:
        print("FAIL", line)
    print(f"envoy: {seen} routes, {len(policies)} clusters, {len(wrong)} failures")
    sys.exit(bool(wrong) or seen == 0)


main()
