"""Every check catches the error that it is there for."""

import ast
import copy
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import deploy_rules_network as network
import deploy_rules_pods as pod_rules
import deploy_rules_ray as ray_rules
import kubernetes_validate
import pytest
from deploy_manifests import DEPLOY, TOP, kubectl, of_kind, render
from deploy_schema import FILES, faults

Objects = list[dict[str, Any]]
Change = Callable[[Objects], None]
REMOVE = object()


@pytest.fixture(autouse=True)
def _kubectl() -> None:
    if kubectl() is None:
        pytest.skip("kubectl is absent: no manifest was checked")


@cache
def _rendered(target: str) -> Objects:
    return render(DEPLOY / target)


def planted(target: str, change: Change) -> Objects:
    objects = copy.deepcopy(_rendered(target))
    change(objects)
    return objects


def put(kind: str, path: str, value: Any, name: str | None = None) -> Change:
    """Set (or remove) a field, by a dotted path, of the first object of a kind."""

    def change(objects: Objects) -> None:
        at: Any = next(o for o in of_kind(objects, kind) if name in (None, o["metadata"]["name"]))
        *parts, last = path.split(".")
        for part in parts:
            at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
        key: Any = int(last) if isinstance(at, list) else last
        if value is REMOVE:
            del at[key]
        else:
            at[key] = value

    return change


def add(*new: dict[str, Any]) -> Change:
    return lambda objects: objects.extend(copy.deepcopy(list(new)))


def without(kind: str, name: str | None = None) -> Change:
    def change(objects: Objects) -> None:
        objects[:] = [o for o in objects if not (o["kind"] == kind and name in (None, o["metadata"]["name"]))]

    return change


def retoml(old: str, new: str) -> Change:
    def change(objects: Objects) -> None:
        data = of_kind(objects, "ConfigMap")[0]["data"]
        assert old in data["cryoseg.toml"]
        data["cryoseg.toml"] = data["cryoseg.toml"].replace(old, new)

    return change


def append(kind: str, path: str, value: Any, name: str | None = None) -> Change:
    def change(objects: Objects) -> None:
        at: Any = next(o for o in of_kind(objects, kind) if name in (None, o["metadata"]["name"]))
        for part in path.split("."):
            at = at[int(part)] if isinstance(at, list) else at[part]
        at.append(value)

    return change


SPEC = "spec.rayClusterSpec"
HEAD = f"{SPEC}.headGroupSpec"
HEAD_POD = f"{HEAD}.template.spec"
HEAD_BOX = f"{HEAD_POD}.containers.0"
GROUP = f"{SPEC}.workerGroupSpecs.0"
WORKER_POD = f"{GROUP}.template.spec"
WORKER_BOX = f"{WORKER_POD}.containers.0"
SUBMITTER = "spec.submitterPodTemplate.spec"


def job(path: str, value: Any) -> Change:
    return put("RayJob", path, value)


def gpus(path: str, n: str) -> Change:
    def change(objects: Objects) -> None:
        at: Any = of_kind(objects, "RayJob")[0]
        for part in path.split("."):
            at = at[int(part)] if isinstance(at, list) else at[part]
        at["nvidia.com/gpu"] = n

    return change


def second_group_of_the_name(objects: Objects) -> None:
    groups = of_kind(objects, "RayJob")[0]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    groups.append(copy.deepcopy(groups[0]))


PLANTED: list[tuple[Any, str, Change, str]] = [
    # Pods
    (pod_rules.restricted, "base", put("Namespace", "metadata.labels", {}), "not enforced"),
    (pod_rules.restricted, "base", job(f"{HEAD_POD}.securityContext.runAsNonRoot", False), "root"),
    (pod_rules.restricted, "base", job(f"{WORKER_POD}.securityContext.seccompProfile", REMOVE), "seccomp"),
    (pod_rules.restricted, "base", job(f"{WORKER_POD}.hostNetwork", True), "hostNetwork"),
    (
        pod_rules.restricted,
        "base",
        job(f"{WORKER_POD}.volumes.2", {"name": "x", "hostPath": {"path": "/"}}),
        "host path",
    ),
    (pod_rules.restricted, "base", job(f"{SUBMITTER}.containers.0.securityContext", REMOVE), "submitter.*escalation"),
    (pod_rules.restricted, "base", job(f"{SPEC}.autoscalerOptions.securityContext", REMOVE), "autoscaler: allows"),
    (pod_rules.restricted, "base", job(f"{HEAD_BOX}.securityContext.capabilities.drop", ["NET_RAW"]), "capabilities"),
    (pod_rules.restricted, "base", job(f"{HEAD_BOX}.securityContext.privileged", True), "privileged"),
    (pod_rules.restricted, "base", job(f"{HEAD_BOX}.securityContext.readOnlyRootFilesystem", False), "read-only"),
    (pod_rules.restricted, "base", job(f"{HEAD_BOX}.ports.0.hostPort", 6379), "port of the host"),
    (pod_rules.writable_scratch, "base", job(f"{WORKER_POD}.volumes.2.emptyDir", {}), "bounded"),
    (pod_rules.writable_scratch, "base", job(f"{WORKER_BOX}.volumeMounts.0.name", "dta"), "unknown volume"),
    (pod_rules.service_account_tokens, "base", job(f"{HEAD_POD}.automountServiceAccountToken", REMOVE), "head: mounts"),
    (
        pod_rules.service_account_tokens,
        "base",
        put("ServiceAccount", "automountServiceAccountToken", REMOVE, "cryoseg-worker"),
        "cryoseg-worker",
    ),
    (
        pod_rules.service_account_tokens,
        "base",
        append("RayJob", f"{HEAD_BOX}.volumeMounts", {"name": "api-access", "mountPath": "/token"}),
        "ray-head: can reach",
    ),
    (pod_rules.service_account_tokens, "base", job(f"{SPEC}.enableInTreeAutoscaling", False), "nothing uses"),
    (pod_rules.service_account_tokens, "base", job(f"{SPEC}.autoscalerOptions.volumeMounts", []), "has no token"),
    (
        pod_rules.service_account_tokens,
        "base",
        add({"apiVersion": "v1", "kind": "ClusterRole", "metadata": {"name": "all"}, "rules": []}),
        "grants rights",
    ),
    (pod_rules.references, "base", job(f"{HEAD_POD}.volumes.1.configMap.name", "cryoseg-settings"), "ConfigMap"),
    (pod_rules.references, "base", job(f"{HEAD_POD}.volumes.0.persistentVolumeClaim.claimName", "data"), "Claim data"),
    (pod_rules.references, "base", job(f"{WORKER_POD}.serviceAccountName", "default"), "ServiceAccount default"),
    (pod_rules.references, "base", without("ServiceAccount", "cryoseg-head"), "cryoseg-head does not"),
    (
        pod_rules.references,
        "base",
        append("RayJob", f"{HEAD_BOX}.env", {"name": "A", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "a"}}}),
        "Secret keys",
    ),
    (pod_rules.namespaces, "s3", put("PersistentVolumeClaim", "metadata.namespace", REMOVE), "namespace None"),
    (pod_rules.namespaces, "kueue", put("LocalQueue", "metadata.namespace", "default"), "namespace default"),
    (pod_rules.namespaces, "base", put("Namespace", "metadata.namespace", "cryoseg"), "has a namespace"),
    (pod_rules.images, "base", job(f"{HEAD_BOX}.image", "cryoseg:latest"), "not pinned"),
    (pod_rules.images, "base", job(f"{HEAD_BOX}.image", "cryoseg"), "not pinned"),
    (pod_rules.images, "base", job(f"{WORKER_BOX}.image", "cryoseg:0.0.9"), "not pinned"),
    (pod_rules.images, "base", job(f"{WORKER_BOX}.image", "cryoseg:0.1.0-cuda"), "differ"),
    (pod_rules.resources, "base", job(f"{WORKER_BOX}.resources.limits.memory", "64Gi"), "is not its request"),
    (pod_rules.resources, "base", job(f"{HEAD_BOX}.resources.limits", {}), "without request or limit"),
    (pod_rules.resources, "base", job(f"{HEAD_BOX}.resources.requests.cpu", "9"), "more cpu"),
    (pod_rules.resources, "base", job(f"{SPEC}.autoscalerOptions.resources", REMOVE), "autoscaler: cpu"),
    (pod_rules.resources, "gpu", gpus(f"{WORKER_BOX}.resources.requests", "2"), "nvidia.com/gpu limit"),
    (pod_rules.resources, "base", job(f"{WORKER_POD}.volumes.2.emptyDir.sizeLimit", "64Gi"), "scratch"),
    (pod_rules.secrets, "base", job(f"{SPEC}.authOptions", REMOVE), "run code"),
    (pod_rules.secrets, "base", job(f"{SPEC}.authOptions.secretName", "token"), "does not exist"),
    (
        pod_rules.secrets,
        "base",
        add({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "t"}, "stringData": {"auth_token": "abc"}}),
        "in the manifest",
    ),
    (
        pod_rules.secrets,
        "base",
        append("RayJob", f"{HEAD_BOX}.env", {"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}),
        "plain sight",
    ),
    # KubeRay, Ray, our driver
    (ray_rules.names, "base", put("RayJob", "metadata.name", "c" * 48), "longer than 47"),
    (ray_rules.names, "interactive", put("RayCluster", "metadata.name", "c" * 54), "longer than 53"),
    (ray_rules.names, "base", put("RayJob", "metadata.name", "CryoSeg"), "DNS"),
    (ray_rules.ray_version, "base", job(f"{SPEC}.rayVersion", "2.51.0"), "tokens need"),
    (ray_rules.ray_version, "base", job(f"{SPEC}.rayVersion", "2.59.0"), "pinned"),
    (ray_rules.start_parameters, "base", job(f"{GROUP}.rayStartParams.num-gpus", 0), "not a string"),
    (ray_rules.start_parameters, "base", job(f"{GROUP}.rayStartParams", REMOVE), "missing"),
    (ray_rules.start_parameters, "base", job(f"{HEAD}.rayStartParams.block", "true"), "managed"),
    (ray_rules.start_parameters, "base", job(f"{HEAD}.rayStartParams.object-store-memory", str(2**36)), "object store"),
    (ray_rules.head_takes_no_units, "base", job(f"{HEAD}.rayStartParams.num-cpus", REMOVE), "offers num-cpus"),
    (ray_rules.head_takes_no_units, "base", gpus(f"{HEAD_BOX}.resources.limits", "1"), "takes a GPU"),
    (ray_rules.replicas, "base", job(f"{GROUP}.replicas", 17), "<="),
    (ray_rules.replicas, "base", second_group_of_the_name, "of one name"),
    (ray_rules.replicas, "base", job(f"{GROUP}.minReplicas", REMOVE), "not all given"),
    (ray_rules.replicas, "base", job(f"{GROUP}.minReplicas", 1), "<="),
    (ray_rules.replicas, "kueue", job(f"{GROUP}.replicas", 0), "<="),
    (ray_rules.replicas, "gpu", job(f"{GROUP}.rayStartParams.num-gpus", "2"), "offers 2 GPUs"),
    (ray_rules.autoscaler, "base", job(f"{SPEC}.autoscalerOptions.version", "v1"), "v2"),
    (ray_rules.autoscaler, "base", job(f"{WORKER_POD}.restartPolicy", "Always"), "restartPolicy"),
    (ray_rules.autoscaler, "base", job(f"{SPEC}.enableInTreeAutoscaling", False), "without an autoscaler"),
    (ray_rules.job, "base", job("spec.activeDeadlineSeconds", REMOVE), "activeDeadline"),
    (ray_rules.job, "base", job("spec.preRunningDeadlineSeconds", 604801), "wait for longer"),
    (ray_rules.job, "base", job("spec.shutdownAfterJobFinishes", False), "stays"),
    (ray_rules.job, "base", job("spec.ttlSecondsAfterFinished", REMOVE), "look at it"),
    (ray_rules.job, "base", job("spec.backoffLimit", 0), "not tried again"),
    (ray_rules.job, "base", job("spec.submitterPodTemplate", REMOVE), "refused"),
    (ray_rules.job, "base", job(f"{SUBMITTER}.restartPolicy", "Always"), "restartPolicy"),
    (ray_rules.job, "base", job("spec.entrypoint", 'sh -c "cryoseg run; exit $?"'), "takes the entrypoint apart"),
    (ray_rules.job, "base", job("spec.clusterSelector", {"ray.io/cluster": "other"}), "no retries"),
    (ray_rules.settings, "base", retoml("pixel_size = 1.5", "pixel_size = -1.5"), "pixel_size"),
    (ray_rules.settings, "base", retoml("[engine]", "[engines]"), "engines"),
    (ray_rules.settings, "base", retoml("[engine]", "[engine"), "TOML"),
    (ray_rules.settings, "base", retoml('engine = "ray"', 'engine = "inline"'), "does not use"),
    (ray_rules.settings, "base", retoml("9000", "9001"), "9001"),
    (ray_rules.settings, "base", retoml("0.0.0.0", "127.0.0.1"), "127.0.0.1"),
    (ray_rules.settings, "base", retoml("wait_for_workers = 1800", ""), "wait_for_workers"),
    (ray_rules.settings, "base", retoml("workers = 32", "workers = 129"), "room for 128"),
    (ray_rules.settings, "base", job(f"{WORKER_BOX}.resources.limits.memory", "8Gi"), "8 workers need"),
    (ray_rules.settings, "base", job(f"{HEAD_BOX}.resources.limits.memory", "2Gi"), "head's memory"),
    (
        ray_rules.settings,
        "base",
        retoml("[engine]", "[extract]\nbox_size = 256\npixel_size = 1.5\n[engine]"),
        "8 workers need",
    ),
    (ray_rules.settings, "gpu", job(f"{WORKER_BOX}.resources.limits.cpu", "4"), "room for 0"),
    (ray_rules.set_aside_is_no_failure, "base", job("spec.entrypoint", "bash /etc/cryoseg/go.sh"), "no ConfigMap"),
    (
        ray_rules.set_aside_is_no_failure,
        "base",
        put("ConfigMap", "data", {"run.sh": "cryoseg run", "cryoseg.toml": ""}),
        "counts as a failure",
    ),
    (ray_rules.spot, "spot", job(f"{HEAD_POD}.nodeSelector", {"cryoseg.io/capacity": "spot"}), "driver"),
    (ray_rules.spot, "spot", job(f"{WORKER_POD}.terminationGracePeriodSeconds", 60), "notice"),
    (ray_rules.queue, "kueue", put("RayJob", "metadata.labels", {}), "past the queue"),
    (ray_rules.queue, "kueue", without("LocalQueue"), "does not exist"),
    (ray_rules.queue, "kueue", without("ResourceFlavor"), "flavor"),
    (ray_rules.queue, "kueue", job(f"{GROUP}.replicas", 40), "the queue grants"),
    (ray_rules.queue, "kueue", job(f"{SPEC}.enableInTreeAutoscaling", True), "fixed size"),
    # Network and monitoring
    (network.fenced, "base", without("NetworkPolicy", "deny-everything-else"), "closes the namespace"),
    (network.fenced, "base", put("NetworkPolicy", "spec.ingress", [{}], "head-api"), "everybody in"),
    (
        network.fenced,
        "base",
        put("NetworkPolicy", "spec.ingress", [{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}], "head-api"),
        "from outside",
    ),
    (network.fenced, "base", put("NetworkPolicy", "spec.egress", [{}], "names"), "out to everywhere"),
    (network.fenced, "base", put("NetworkPolicy", "spec.egress.0.ports", REMOVE, "head-api"), "every port"),
    (
        network.code_ports,
        "base",
        put("NetworkPolicy", "spec.ingress.0.ports", REMOVE, "ray-metrics"),
        "port 8265 is open",
    ),
    (
        network.code_ports,
        "base",
        add({"kind": "Service", "metadata": {"name": "ui"}, "spec": {"type": "LoadBalancer"}}),
        "to the outside",
    ),
    (network.reachable, "base", without("NetworkPolicy", "names"), "look up names"),
    (network.reachable, "base", without("NetworkPolicy", "submitter"), "submitter cannot reach"),
    (network.reachable, "base", without("NetworkPolicy", "ray-nodes"), "worker cannot reach"),
    (network.reachable, "base", put("NetworkPolicy", "spec.egress", [], "head-api"), "API server"),
    (
        network.reachable,
        "base",
        put("NetworkPolicy", "spec.ingress.0.from.1.podSelector.matchLabels", {"app": "other"}, "head-api"),
        "operator cannot ask",
    ),
    (network.monitors, "base", put("PodMonitor", "spec.podMetricsEndpoints.0.port", "drivers"), "no port"),
    (network.monitors, "base", put("PodMonitor", "spec.selector", {"matchLabels": {"a": "b"}}), "selects nothing"),
    (network.monitors, "base", without("NetworkPolicy", "ray-metrics"), "cannot reach"),
    (network.head_stays, "base", without("PodDisruptionBudget"), "drained"),
    (network.head_stays, "base", job(f"{HEAD}.template.metadata.annotations", {}), "hardly used"),
    (
        network.head_stays,
        "base",
        put("PodDisruptionBudget", "spec.selector.matchLabels", {"app.kubernetes.io/part-of": "cryoseg"}),
        "may not be drained",
    ),
]


@pytest.mark.parametrize(
    ("rule", "target", "change", "says"), PLANTED, ids=[f"{i}-{p[0].__name__}" for i, p in enumerate(PLANTED)]
)
def test_rule_catches(rule: Any, target: str, change: Change, says: str) -> None:
    target = target if target == "base" else f"overlays/{target}"
    assert list(rule(_rendered(target))) == []
    complaints = list(rule(planted(target, change)))
    assert any(re.search(says, c) for c in complaints), complaints


def complaints_of(module: Any) -> list[tuple[str, str]]:
    """Where a rule complains, and a pattern of the complaint."""
    found = []
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.JoinedStr | ast.Constant):
            parts = node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
            words = (re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".*" for p in parts)
            found.append((f"{module.__name__}:{node.lineno}", "".join(words)))
    return found


def test_every_complaint_of_every_rule_has_an_error_planted() -> None:
    assert {*pod_rules.RULES, *ray_rules.RULES, *network.RULES} == {rule for rule, *_ in PLANTED}
    said = set()
    for rule, target, change, _ in PLANTED:
        said |= set(rule(planted(target if target == "base" else f"overlays/{target}", change)))
    patterns = [p for module in (pod_rules, ray_rules, network) for p in complaints_of(module)]
    assert len(patterns) > 80
    assert [where for where, p in patterns if not any(re.fullmatch(p, text, re.DOTALL) for text in said)] == []


KUBERNETES_ERRORS: list[tuple[Change, str]] = [
    (put("NetworkPolicy", "spec.podSelectors", {}), "podSelectors"),
    (put("PersistentVolumeClaim", "spec.accessModes", "ReadWriteMany"), "ReadWriteMany"),
    (put("PersistentVolumeClaim", "spec.resource", {"requests": {}}), "resource"),
    (put("PodDisruptionBudget", "spec.maxUnavailable", [0]), r"\[0\]"),
    (put("ServiceAccount", "automountServiceAccountToken", "false"), "false"),
    (put("Namespace", "metadata.label", {}), "label"),
]


@pytest.mark.parametrize(("change", "says"), KUBERNETES_ERRORS, ids=range(len(KUBERNETES_ERRORS)))
def test_kubernetes_schema_catches(change: Change, says: str) -> None:
    found = []
    for o in planted("base", change):
        if "." not in o["apiVersion"].split("/")[0] or "k8s.io/" in o["apiVersion"]:
            try:
                kubernetes_validate.validate(o, "1.37", strict=True)
            except kubernetes_validate.ValidationError as fault:
                found.append(fault.message)
    assert len(found) == 1
    assert re.search(says, found[0]), found


KUBERAY_ERRORS: list[tuple[Change, str]] = [
    (job(f"{SPEC}.workerGroupSpec", []), "workerGroupSpec"),
    (job(f"{HEAD}.rayStartParams.num-cpus", 0), "num-cpus"),
    (job("spec.backoffLimit", "3"), "backoffLimit"),
    (job(f"{SPEC}.authOptions.mode", "tokens"), "mode"),
    (job(f"{SPEC}.autoscalerOptions.version", "v3"), "version"),
    (job(f"{GROUP}.maxReplicas", 1.5), "maxReplicas"),
    (job(f"{WORKER_BOX}.resources.limit", {}), "limit"),
    (job(f"{WORKER_BOX}.securityContext.readOnlyRootFileSystem", True), "readOnlyRootFileSystem"),
    (job(f"{SUBMITTER}.restartpolicy", "Never"), "restartpolicy"),
    (job("spec.entryPoint", "x"), "entryPoint"),
]


@pytest.mark.parametrize(("change", "says"), KUBERAY_ERRORS, ids=range(len(KUBERAY_ERRORS)))
def test_kuberay_schema_catches(change: Change, says: str) -> None:
    folder = TOP.parent / "shared" / "k8s"
    if not all((folder / name).is_file() for name in FILES.values()):
        pytest.skip(f"KubeRay's resource definitions absent: {folder} is missing")
    found = faults(folder, of_kind(planted("base", change), "RayJob")[0])
    assert len(found) == 1
    assert says in found[0]


def test_kustomize_refuses_a_patch_of_something_that_moved(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    job_file = tmp_path / "deploy" / "base" / "rayjob.yaml"
    moved = job_file.read_text(encoding="utf-8").replace(
        "name: autoscaler-scratch\n", "name: scratch-of-autoscaler\n", 1
    )
    job_file.write_text(moved, encoding="utf-8")
    with pytest.raises(ValueError, match="test"):
        render(tmp_path / "deploy" / "overlays" / "kueue")
