"""Rendered manifests, and the pods that KubeRay would make of them."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TOP = Path(__file__).resolve().parents[2]
DEPLOY = TOP / "deploy"
TARGETS = (
    "base",
    "overlays/local",
    "overlays/gpu",
    "overlays/spot",
    "overlays/s3",
    "overlays/kueue",
    "overlays/interactive",
)
RAY_KINDS = ("RayJob", "RayCluster")


def kubectl() -> str | None:
    """The kubectl of this environment, else the machine's."""
    beside = Path(sys.executable).parent / "kubectl"
    return str(beside) if beside.exists() else shutil.which("kubectl")


@cache
def _text(folder: Path) -> str:
    program = kubectl()
    if program is None:
        raise FileNotFoundError("kubectl")
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout


def render(folder: Path) -> list[dict[str, Any]]:
    """Every object of a kustomization, freshly parsed so that a test may change it."""
    return [o for o in yaml.safe_load_all(_text(folder)) if o]


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [o for o in objects if o["kind"] in kinds]


def cluster_spec(ray: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster's specification in a RayJob or a RayCluster."""
    spec: dict[str, Any] = ray["spec"]["rayClusterSpec"] if ray["kind"] == "RayJob" else ray["spec"]
    return spec


def clusters(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for ray in of_kind(objects, *RAY_KINDS):
        yield f"{ray['kind']} {ray['metadata']['name']}", cluster_spec(ray)


@dataclass
class PodOf:
    """A pod template and where it stands."""

    where: str
    role: str
    template: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.template["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template.get("metadata", {}).get("labels", {})
        return labels

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ray(self) -> dict[str, Any]:
        """The container that KubeRay starts Ray in: the first."""
        first: dict[str, Any] = self.spec["containers"][0]
        return first


def pods(objects: list[dict[str, Any]]) -> Iterator[PodOf]:
    """Pods of Ray jobs and clusters: submitter, head with its autoscaler, one of each worker group."""
    for ray in of_kind(objects, *RAY_KINDS):
        name = f"{ray['kind']} {ray['metadata']['name']}"
        if ray["kind"] == "RayJob" and "submitterPodTemplate" in ray["spec"]:
            yield PodOf(f"{name} submitter", "submitter", ray["spec"]["submitterPodTemplate"])
        spec = cluster_spec(ray)
        yield PodOf(f"{name} head", "head", with_autoscaler(spec))
        for group in spec["workerGroupSpecs"]:
            yield PodOf(f"{name} {group['groupName']}", "worker", group["template"])


def with_autoscaler(spec: dict[str, Any]) -> dict[str, Any]:
    """The head's template with the container that KubeRay adds for the autoscaler."""
    template: dict[str, Any] = spec["headGroupSpec"]["template"]
    if not spec.get("enableInTreeAutoscaling"):
        return template
    options = spec.get("autoscalerOptions", {})
    container = {
        "name": "autoscaler",
        "image": options.get("image", template["spec"]["containers"][0]["image"]),
        "resources": options.get("resources", {}),
        "volumeMounts": options.get("volumeMounts", []),
    }
    if "securityContext" in options:
        container["securityContext"] = options["securityContext"]
    return {**template, "spec": {**template["spec"], "containers": [*template["spec"]["containers"], container]}}


UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "m": 1e-3}


def quantity(value: Any) -> float:
    """A Kubernetes quantity as a number."""
    text = str(value)
    for suffix, factor in UNITS.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector matches labels; an empty one matches everything."""
    if any(labels.get(k) != v for k, v in selector.get("matchLabels", {}).items()):
        return False
    for term in selector.get("matchExpressions", []):
        value, operator = labels.get(term["key"]), term["operator"]
        held = {
            "In": value in term.get("values", []),
            "NotIn": value not in term.get("values", []),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not held[operator]:
            return False
    return True
