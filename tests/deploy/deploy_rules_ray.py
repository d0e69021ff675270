"""Rules of KubeRay's operator, of Ray and of our driver that no schema holds."""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from deploy_manifests import TOP, cluster_spec, clusters, of_kind, pods, quantity

from cryoseg_dist.errors import CryosegError
from cryoseg_dist.pipeline.config import RunSettings, build_settings, from_environment
from cryoseg_dist.pipeline.memory_plan import finest_order, worker_bytes
from cryoseg_dist.runtime.memory import finishing_bytes, summing_bytes
from cryoseg_dist.stages.extract import window_geometry

Objects = list[dict[str, Any]]
# What KubeRay adds to the names of a job's clusters and of a cluster's pods must still fit 63 characters.
NAME_LIMITS = {"RayJob": 47, "RayCluster": 53}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
TOKEN_SINCE, AUTOSCALER_V2_SINCE = (2, 52), (2, 10)
# The network that segments, on tiles of a micrograph: measured with the image's process 1.2 GB.
SEGMENTING_BYTES = 1.2e9


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def names(objects: Objects) -> Iterator[str]:
    """Names are DNS labels and short enough for what is derived from them."""
    for o in objects:
        name, limit = o["metadata"]["name"], NAME_LIMITS.get(o["kind"], 63)
        if len(name) > limit:
            yield f"{o['kind']} {name}: longer than {limit} characters"
        if not DNS_LABEL.fullmatch(name):
            yield f"{o['kind']} {name}: not a DNS label"


def ray_version(objects: Objects) -> Iterator[str]:
    """The operator is told the version that the image holds."""
    pinned = next(
        line.split("==")[1]
        for line in (TOP / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line.startswith("ray==")
    )
    for where, spec in clusters(objects):
        told = spec.get("rayVersion", "")
        if told != pinned:
            yield f"{where}: rayVersion {told!r} is not the pinned {pinned}"
        if spec.get("authOptions", {}).get("mode") == "token" and version(told) < TOKEN_SINCE:
            yield f"{where}: tokens need Ray {TOKEN_SINCE}"


def start_parameters(objects: Objects) -> Iterator[str]:
    """Every parameter is a string; none of those that KubeRay manages; the object store fits the memory."""
    for where, spec in clusters(objects):
        groups = [("head", spec["headGroupSpec"]), *((g["groupName"], g) for g in spec["workerGroupSpecs"])]
        for name, group in groups:
            parameters = group.get("rayStartParams")
            if parameters is None:
                yield f"{where} {name}: rayStartParams missing"
                continue
            for key, value in parameters.items():
                if not isinstance(value, str):
                    yield f"{where} {name}: {key} is {value!r}, not a string"
            for key in ("labels", "address", "block", "head", "redis-password"):
                if key in parameters:
                    yield f"{where} {name}: {key} is managed by KubeRay"
            memory = quantity(group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])
            store = float(parameters.get("object-store-memory", 0.3 * memory))
            if store > 0.5 * memory:
                yield f"{where} {name}: object store of {store:.3g} bytes in {memory:.3g} bytes of memory"


def head_takes_no_units(objects: Objects) -> Iterator[str]:
    """The head offers no cores and no GPUs and has none of the latter."""
    for where, spec in clusters(objects):
        head = spec["headGroupSpec"]
        for key in ("num-cpus", "num-gpus"):
            if str(head.get("rayStartParams", {}).get(key)) != "0":
                yield f"{where}: the head offers {key}"
        resources = head["template"]["spec"]["containers"][0].get("resources", {})
        for part in ("requests", "limits"):
            if any(name.endswith("/gpu") for name in resources.get(part, {})):
                yield f"{where}: the head takes a GPU"


def replicas(objects: Objects) -> Iterator[str]:
    """From none up to a limit where there is an autoscaler; a fixed number where there is none."""
    for where, spec in clusters(objects):
        groups = spec["workerGroupSpecs"]
        if len({g["groupName"] for g in groups}) < len(groups):
            yield f"{where}: two worker groups of one name"
        for group in groups:
            low, n, high = (group.get(k) for k in ("minReplicas", "replicas", "maxReplicas"))
            name = f"{where} {group['groupName']}"
            if low is None or n is None or high is None:
                yield f"{name}: minReplicas, replicas and maxReplicas are not all given"
                continue
            if not 0 <= low <= n <= high:
                yield f"{name}: {low} <= {n} <= {high} does not hold"
            if spec.get("enableInTreeAutoscaling") and low != 0:
                yield f"{name}: does not shrink to none"
            if not spec.get("enableInTreeAutoscaling") and n == 0:
                yield f"{name}: no workers, and nothing that adds any"
            gpus = group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", "0")
            if group["rayStartParams"].get("num-gpus", gpus) != gpus:
                yield f"{name}: offers {group['rayStartParams']['num-gpus']} GPUs and holds {gpus}"


def autoscaler(objects: Objects) -> Iterator[str]:
    """Version 2, which does not restart pods in place, with bounded resources."""
    for where, spec in clusters(objects):
        options = spec.get("autoscalerOptions")
        if not spec.get("enableInTreeAutoscaling"):
            if options:
                yield f"{where}: autoscalerOptions without an autoscaler"
            continue
        if (options or {}).get("version") != "v2":
            yield f"{where}: autoscaler without version v2"
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
                yield f"{where}: restartPolicy must be Never or absent with autoscaler v2"


def job(objects: Objects) -> Iterator[str]:
    """A job ends, takes its cluster along, is tried again, and its command survives the submitter's shell."""
    for ray in of_kind(objects, "RayJob"):
        spec, name = ray["spec"], f"RayJob {ray['metadata']['name']}"
        for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
            if not spec.get(key, 0) > 0:
                yield f"{name}: no {key}"
        if spec.get("preRunningDeadlineSeconds", 0) >= spec.get("activeDeadlineSeconds", 0):
            yield f"{name}: may wait for longer than it may run"
        if spec.get("shutdownAfterJobFinishes") is not True:
            yield f"{name}: its cluster stays when it ends"
        if not spec.get("ttlSecondsAfterFinished", 0) > 0:
            yield f"{name}: the cluster goes before anyone can look at it"
        if not spec.get("backoffLimit", 0) >= 1:
            yield f"{name}: is not tried again"
        if spec.get("submissionMode", "K8sJobMode") == "K8sJobMode":
            template = spec.get("submitterPodTemplate")
            if template is None:
                yield f"{name}: KubeRay's own submitter pod is refused by Pod Security restricted"
            elif template["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
                yield f"{name}: the submitter's restartPolicy is refused for a Job"
        if re.search(r"[;&|$<>`'\"\\(){}]", spec.get("entrypoint", ";")):
            yield f"{name}: the submitter's shell takes the entrypoint apart: {spec.get('entrypoint')}"
        if "clusterSelector" in spec:
            yield f"{name}: a selected cluster allows no retries"


def settings_of(objects: Objects) -> Iterator[tuple[str, RunSettings, dict[str, Any]]]:
    """The settings that the driver will see in each cluster: the ConfigMap's, with the head's environment over them."""
    maps = {m["metadata"]["name"]: m for m in of_kind(objects, "ConfigMap")}
    for where, spec in clusters(objects):
        head = spec["headGroupSpec"]["template"]["spec"]
        name = next(v["configMap"]["name"] for v in head["volumes"] if v["name"] == "settings")
        text = maps[name]["data"]["cryoseg.toml"]
        variables = {v["name"]: v.get("value", "") for v in head["containers"][0].get("env", [])}
        yield where, build_settings(tomllib.loads(text), from_environment(variables)), spec


def planned(run: RunSettings) -> tuple[float, float]:
    """Bytes that the memory plan reckons for a worker with its share of the sums, and for the driver that finishes maps."""
    window = window_geometry(run.extract, run.data.pixel_size, run.particle.diameter or 0.0)
    order, symmetry = finest_order(run.refine, run.particle.symmetry), run.particle.symmetry
    scoring = worker_bytes(window.size, window.pixel_size, run.particle.diameter or 0.0, order, symmetry, maps=2)
    padding, split = run.reconstruct.padding, run.reconstruct.split_every
    # A Dask worker for every two cores sums one fold at a time; its process comes on top.
    summing = summing_bytes(window.size, padding, threads=1, split_every=split, groups=2) / 2
    return max(scoring, SEGMENTING_BYTES) + summing, finishing_bytes(window.size, padding, groups=2)


def settings(objects: Objects) -> Iterator[str]:
    """The run's settings are ones that our loader takes, and they fit the cluster."""
    try:
        held = list(settings_of(objects))
    except (CryosegError, tomllib.TOMLDecodeError, KeyError, StopIteration) as fault:
        yield f"settings: {fault!r}"
        return
    for where, run, spec in held:
        engine, head = run.engine, spec["headGroupSpec"]["template"]["spec"]["containers"][0]
        ports = {p["name"]: p["containerPort"] for p in head.get("ports", [])}
        if engine.engine != "ray" or engine.ray_address != "auto":
            yield f"{where}: the driver does not use its cluster"
        if engine.metrics_port != ports.get("driver") or engine.metrics_address != "0.0.0.0":
            yield f"{where}: metrics on {engine.metrics_address}:{engine.metrics_port}, scraped on {ports.get('driver')}"
        if spec.get("enableInTreeAutoscaling") and not (engine.workers and engine.wait_for_workers > 0):
            yield f"{where}: a cluster that begins without workers needs engine.workers and engine.wait_for_workers"
        room = memory = 0.0
        for group in spec["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            fit = quantity(limits["cpu"]) // engine.cpus_per_worker
            if engine.gpus_per_worker:
                fit = min(fit, quantity(limits.get("nvidia.com/gpu", 0)) // engine.gpus_per_worker)
            room += fit * group["maxReplicas"]
            store = float(group["rayStartParams"].get("object-store-memory", 0.3 * quantity(limits["memory"])))
            memory = fit * planned(run)[0] + store
            if memory > quantity(limits["memory"]):
                yield f"{where} {group['groupName']}: {fit:g} workers need {memory:.3g} bytes, limit {limits['memory']}"
        if (engine.workers or 1) > room:
            yield f"{where}: {engine.workers} workers asked for, room for {room:g}"
        store = float(spec["headGroupSpec"]["rayStartParams"].get("object-store-memory", 0))
        if planned(run)[1] + store > quantity(head["resources"]["limits"]["memory"]):
            yield f"{where}: the head's memory does not hold the driver"


def set_aside_is_no_failure(objects: Objects) -> Iterator[str]:
    """The script that runs the job is there, and exit code 3 does not start it again."""
    maps = {m["metadata"]["name"]: m for m in of_kind(objects, "ConfigMap")}
    for ray in of_kind(objects, "RayJob"):
        script = ray["spec"]["entrypoint"].split()[-1]
        head = cluster_spec(ray)["headGroupSpec"]["template"]["spec"]
        mounts = {m["mountPath"]: m["name"] for m in head["containers"][0]["volumeMounts"]}
        folder, _, file = script.rpartition("/")
        volume = next((v for v in head["volumes"] if v["name"] == mounts.get(folder)), {})
        held = maps.get(volume.get("configMap", {}).get("name", ""), {"data": {}})["data"]
        if file not in held:
            yield f"RayJob {ray['metadata']['name']}: {script} is in no ConfigMap"
        elif "-eq 3" not in held[file]:
            yield f"RayJob {ray['metadata']['name']}: a map with something set aside counts as a failure"


def spot(objects: Objects) -> Iterator[str]:
    """Workers on machines that may go; the driver never."""
    for pod in pods(objects):
        wants_spot = any("spot" in str(v) for v in pod.spec.get("nodeSelector", {}).values())
        if pod.role == "head" and wants_spot:
            yield f"{pod.where}: the driver is on a machine that may be taken away"
        if pod.role == "worker" and wants_spot and pod.spec.get("terminationGracePeriodSeconds", 30) > 25:
            yield f"{pod.where}: takes longer to end than the notice of a spot machine"


def queue(objects: Objects) -> Iterator[str]:
    """Kueue's queues exist, and their quota holds the job; Kueue and the autoscaler exclude one another."""
    flavors = {f["metadata"]["name"] for f in of_kind(objects, "ResourceFlavor")}
    cluster_queues = {q["metadata"]["name"]: q for q in of_kind(objects, "ClusterQueue")}
    local = {q["metadata"]["name"]: q["spec"]["clusterQueue"] for q in of_kind(objects, "LocalQueue")}
    for ray in of_kind(objects, "RayJob", "RayCluster"):
        name = ray["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name")
        spec, where = cluster_spec(ray), f"{ray['kind']} {ray['metadata']['name']}"
        if local and name is None:
            yield f"{where}: goes past the queue"
        if name is None:
            continue
        if spec.get("enableInTreeAutoscaling"):
            yield f"{where}: Kueue admits clusters of a fixed size only"
        if local.get(name) not in cluster_queues:
            yield f"{where}: queue {name} does not exist"
            continue
        quota = {}
        for group in cluster_queues[local[name]]["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                if flavor["name"] not in flavors:
                    yield f"{where}: flavor {flavor['name']} does not exist"
                quota |= {r["name"]: quantity(r["nominalQuota"]) for r in flavor["resources"]}
        for resource, need in requested(ray).items():
            if need > quota.get(resource, 0.0):
                yield f"{where}: needs {need:g} {resource}, the queue grants {quota.get(resource, 0.0):g}"


def requested(ray: dict[str, Any]) -> dict[str, float]:
    """What a job or cluster asks for at its fixed size."""
    spec = cluster_spec(ray)
    counted = [
        (1, spec["headGroupSpec"]["template"]),
        *((g["replicas"], g["template"]) for g in spec["workerGroupSpecs"]),
    ]
    if ray["kind"] == "RayJob" and "submitterPodTemplate" in ray["spec"]:
        counted.append((1, ray["spec"]["submitterPodTemplate"]))
    total: dict[str, float] = {}
    for n, template in counted:
        for container in template["spec"]["containers"]:
            for name, value in container["resources"]["requests"].items():
                total[name] = total.get(name, 0.0) + n * quantity(value)
    return total


RULES = (
    names,
    ray_version,
    start_parameters,
    head_takes_no_units,
    replicas,
    autoscaler,
    job,
    settings,
    set_aside_is_no_failure,
    spot,
    queue,
)
