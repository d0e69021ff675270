"""Rules for who reaches whom, and for what is scraped."""

from collections.abc import Iterator
from typing import Any

from deploy_manifests import PodOf, of_kind, pods, selects

Objects = list[dict[str, Any]]
# Ports that accept code: the job API (dashboard), the control service, Ray's client server.
CODE_PORTS = (8265, 6379, 10001)


def _policies(objects: Objects, pod: PodOf, direction: str) -> list[dict[str, Any]]:
    return [
        p["spec"]
        for p in of_kind(objects, "NetworkPolicy")
        if direction in p["spec"].get("policyTypes", ["Ingress"]) and selects(p["spec"]["podSelector"], pod.labels)
    ]


def _covers(rule: dict[str, Any], port: int) -> bool:
    return "ports" not in rule or any(
        p.get("port") == port and p.get("protocol", "TCP") == "TCP" for p in rule["ports"]
    )


def fenced(objects: Objects) -> Iterator[str]:
    """Everything is closed first; what opens, opens for somebody named."""
    closed = [
        p
        for p in of_kind(objects, "NetworkPolicy")
        if p["spec"]["podSelector"] == {}
        and set(p["spec"].get("policyTypes", [])) == {"Ingress", "Egress"}
        and not p["spec"].get("ingress")
        and not p["spec"].get("egress")
    ]
    if not closed:
        yield "no policy closes the namespace"
    for policy in of_kind(objects, "NetworkPolicy"):
        name = policy["metadata"]["name"]
        for rule in policy["spec"].get("ingress", []):
            if not rule.get("from"):
                yield f"network policy {name}: lets everybody in"
            if any("ipBlock" in peer for peer in rule.get("from", [])):
                yield f"network policy {name}: lets addresses in from outside"
        for rule in policy["spec"].get("egress", []):
            if not rule.get("to"):
                yield f"network policy {name}: lets its pods out to everywhere"
            if any("ipBlock" in peer for peer in rule.get("to", [])) and not rule.get("ports"):
                yield f"network policy {name}: every port of an address outside"


def code_ports(objects: Objects) -> Iterator[str]:
    """Only Ray's own pods, the submitter and the operator reach a port that takes code."""
    for pod in pods(objects):
        if pod.role == "submitter":
            continue
        for policy in _policies(objects, pod, "Ingress"):
            for rule in policy.get("ingress", []):
                for port in CODE_PORTS:
                    if not _covers(rule, port):
                        continue
                    for peer in rule.get("from", [{}]):
                        ours = "cryoseg" in str(peer.get("podSelector", {}))
                        operator = "kuberay-operator" in str(peer.get("podSelector", {}))
                        if not (ours or operator):
                            yield f"{pod.where}: port {port} is open to {peer}"
    for service in of_kind(objects, "Service", "Ingress", "Route", "HTTPRoute"):
        if service["kind"] != "Service" or service["spec"].get("type") in ("NodePort", "LoadBalancer"):
            yield f"{service['kind']} {service['metadata']['name']}: shows the cluster to the outside"


def reachable(objects: Objects) -> Iterator[str]:
    """What must work is not fenced off: names, Ray among itself, submitter to head, operator to head."""
    by_role = {pod.role: pod for pod in pods(objects)}
    for pod in by_role.values():
        rules = [r for p in _policies(objects, pod, "Egress") for r in p.get("egress", [])]
        if not any(_covers(r, 53) and "kube-system" in str(r.get("to")) for r in rules):
            yield f"{pod.where}: cannot look up names"
    for source, target, port in (("submitter", "head", 8265), ("worker", "head", 6379), ("head", "worker", 10002)):
        if source not in by_role or target not in by_role:
            continue
        goes = any(
            _covers(r, port)
            and any(selects(t["podSelector"], by_role[target].labels) for t in r["to"] if "podSelector" in t)
            for p in _policies(objects, by_role[source], "Egress")
            for r in p.get("egress", [])
        )
        comes = any(
            _covers(r, port)
            and any(selects(f["podSelector"], by_role[source].labels) for f in r["from"] if set(f) == {"podSelector"})
            for p in _policies(objects, by_role[target], "Ingress")
            for r in p.get("ingress", [])
        )
        if not (goes and comes):
            yield f"{source} cannot reach {target}:{port}"
    head = by_role.get("head")
    if head is not None and any(c["name"] == "autoscaler" for c in head.containers):
        rules = [r for p in _policies(objects, head, "Egress") for r in p.get("egress", [])]
        if not any(_covers(r, 443) and any("ipBlock" in t for t in r.get("to", [])) for r in rules):
            yield f"{head.where}: the autoscaler cannot reach the API server"
    if of_kind(objects, "RayJob") and head is not None:
        rules = [r for p in _policies(objects, head, "Ingress") for r in p.get("ingress", [])]
        if not any(_covers(r, 8265) and "kuberay-operator" in str(r.get("from")) for r in rules):
            yield f"{head.where}: the operator cannot ask for the state of the job"


def monitors(objects: Objects) -> Iterator[str]:
    """A monitor selects pods that have its port, and Prometheus may reach it."""
    for monitor in of_kind(objects, "PodMonitor"):
        name = monitor["metadata"]["name"]
        chosen = [p for p in pods(objects) if selects(monitor["spec"]["selector"], p.labels)]
        if not chosen:
            yield f"pod monitor {name}: selects nothing"
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for pod in chosen:
                ports = {q["name"]: q["containerPort"] for c in pod.containers for q in c.get("ports", [])}
                if endpoint["port"] not in ports:
                    yield f"pod monitor {name}: {pod.where} has no port {endpoint['port']}"
                    continue
                rules = [r for p in _policies(objects, pod, "Ingress") for r in p.get("ingress", [])]
                if not any(_covers(r, ports[endpoint["port"]]) and "monitoring" in str(r.get("from")) for r in rules):
                    yield f"pod monitor {name}: Prometheus cannot reach {pod.where}:{ports[endpoint['port']]}"


def head_stays(objects: Objects) -> Iterator[str]:
    """Draining a node does not take the driver along."""
    for pod in pods(objects):
        if pod.role != "head":
            continue
        budgets = [
            b["spec"]
            for b in of_kind(objects, "PodDisruptionBudget")
            if selects(b["spec"]["selector"], pod.labels) and b["spec"].get("maxUnavailable") == 0
        ]
        if not budgets:
            yield f"{pod.where}: may be evicted when its node is drained"
        notes = pod.template["metadata"].get("annotations", {})
        if notes.get("cluster-autoscaler.kubernetes.io/safe-to-evict") != "false":
            yield f"{pod.where}: may be evicted when its node is hardly used"
    for budget in of_kind(objects, "PodDisruptionBudget"):
        for pod in pods(objects):
            if pod.role != "head" and selects(budget["spec"]["selector"], pod.labels):
                yield f"disruption budget {budget['metadata']['name']}: {pod.where} may not be drained"


RULES = (fenced, code_ports, reachable, monitors, head_stays)
