"""Who reaches whom under the chart's NetworkPolicies, by the rules of networking.k8s.io/v1: every container port of every pair of components."""


def matches(selector, labels):
    """An empty selector matches everything; what is not understood raises, rather than passing for a match."""
    selector = dict(selector or {})
    wanted, expressions = selector.pop("matchLabels", {}), selector.pop("matchExpressions", [])
    if selector:
        raise ValueError(f"selector {selector}")
    for e in expressions:
        if e["operator"] != "In":
            raise ValueError(f"operator {e['operator']}")
    return all(labels.get(k) == v for k, v in wanted.items()) and all(labels.get(e["key"]) in e["values"] for e in expressions)


def peer_matches(peer, other, namespaces):
    """`other` is a pod's labels, or the name of what is outside."""
    known = {"podSelector", "namespaceSelector"}
    if set(peer) - known:
        raise ValueError(f"peer {peer}")
    outside = isinstance(other, str)
    if "namespaceSelector" in peer:
        return outside and matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other}) and "podSelector" not in peer
    return not outside and matches(peer["podSelector"], other)


def rule_allows(rule, direction, other, port, namespaces):
    peers = rule.get("from" if direction == "Ingress" else "to")
    # No list of peers, and an empty one, mean everybody.
    if peers and not any(peer_matches(p, other, namespaces) for p in peers):
        return False
    ports = rule.get("ports")
    return not ports or any(p["port"] == port and p.get("protocol", "TCP") == "TCP" for p in ports)


def allowed(policies, direction, labels, other, port):
    """Whether policies let this pod receive from, or send to, `other`."""
    isolated = [p["spec"] for p in policies if direction in p["spec"]["policyTypes"] and matches(p["spec"]["podSelector"], labels)]
    if not isolated:
        return True
    return any(rule_allows(rule, direction, other, port, None) for spec in isolated for rule in spec.get(direction.lower()) or [])


def flows(docs, outside=("anywhere",)):
    """All (from, to, port) that are possible."""
    policies = [d for d in docs if d["kind"] == "NetworkPolicy"]
    pods = {}
    for d in docs:
        template = d["spec"].get("template") if d["kind"] in ("Deployment", "StatefulSet", "Job") else d if d["kind"] == "Pod" else None
        if template:
            labels = template["metadata"]["labels"]
            ports = {p["containerPort"] for c in template["spec"]["containers"] for p in c.get("ports", [])}
            known = pods.setdefault(labels["app.kubernetes.io/component"], (labels, set()))
            known[1].update(ports)
    found = set()
    for to, (target, ports) in pods.items():
        for port in ports:
            for source, (labels, _) in pods.items():
                if allowed(policies, "Egress", labels, target, port) and allowed(policies, "Ingress", target, labels, port):
                    found.add((source, to, port))
            for name in outside:
                if allowed(policies, "Ingress", target, name, port):
                    found.add((name, to, port))
    for source, (labels, _) in pods.items():
        # Ports that nobody here listens on: what leaves the cluster.
        for port in (80, 443, 6443):
            if allowed(policies, "Egress", labels, "anywhere", port):
                found.add((source, "anywhere", port))
    return found
