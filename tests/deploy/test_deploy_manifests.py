"""Every overlay builds, is what the schemas allow, and keeps the rules that no schema holds."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import deploy_rules_network
import deploy_rules_pods
import deploy_rules_ray
import kubernetes_validate
import pytest
import yaml
from deploy_manifests import DEPLOY, TARGETS, TOP, kubectl, of_kind, pods, render
from deploy_schema import FILES, faults

RULES = (*deploy_rules_pods.RULES, *deploy_rules_ray.RULES, *deploy_rules_network.RULES)
# Oldest and newest Kubernetes that the manifests are checked against.
KUBERNETES = ("1.31", "1.37")
CUSTOM_GROUPS = ("ray.io", "monitoring.coreos.com", "kueue.x-k8s.io")
COMBINATIONS = [
    parts for n in (2, 3, 4) for parts in itertools.combinations(("gpu", "spot", "s3", "kueue"), n) if "gpu" in parts
]


@pytest.fixture(scope="module", autouse=True)
def _kubectl() -> None:
    if kubectl() is None:
        pytest.skip("kubectl is absent: no manifest was checked")


@pytest.fixture(scope="module")
def schemas() -> Path:
    folder = TOP.parent / "shared" / "k8s"
    if not all((folder / name).is_file() for name in FILES.values()):
        pytest.skip(f"KubeRay's resource definitions absent: {folder} is missing")
    return folder


@pytest.fixture(params=TARGETS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return render(DEPLOY / request.param)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(objects: list[dict[str, Any]], version: str) -> None:
    checked = 0
    for o in objects:
        if o["apiVersion"].split("/")[0] not in CUSTOM_GROUPS:
            kubernetes_validate.validate(o, version, strict=True)
            checked += 1
    assert checked >= 10


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_pod_inside_custom_objects(objects: list[dict[str, Any]], version: str) -> None:
    for pod in pods(objects):
        spec = {**pod.spec, "containers": pod.containers}
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": spec}, version, strict=True
        )


def test_the_command_line_checker_takes_base(tmp_path: Path) -> None:
    plain = [o for o in render(DEPLOY / "base") if o["apiVersion"].split("/")[0] not in CUSTOM_GROUPS]
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump_all(plain), encoding="utf-8")
    program = Path(sys.executable).parent / "kubernetes-validate"
    done = subprocess.run([program, "--strict", "-k", KUBERNETES[1], path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_kuberay_takes_every_ray_object(objects: list[dict[str, Any]], schemas: Path) -> None:
    rays = of_kind(objects, *FILES)
    assert rays
    for ray in rays:
        assert faults(schemas, ray) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_rule(objects: list[dict[str, Any]], rule: Any) -> None:
    assert list(rule(objects)) == []


@pytest.mark.parametrize("parts", COMBINATIONS, ids="+".join)
def test_components_combine(parts: tuple[str, ...], schemas: Path, tmp_path: Path) -> None:
    # Kustomize follows relative paths only.
    copy = tmp_path / "deploy"
    shutil.copytree(DEPLOY, copy)
    folder = copy / "overlays" / "combined"
    folder.mkdir()
    body = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../base"],
        "components": [f"../../components/{part}" for part in (*parts, "interactive")],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
    found = render(folder)
    job, cluster = of_kind(found, "RayJob")[0], of_kind(found, "RayCluster")[0]
    assert cluster["spec"] == job["spec"]["rayClusterSpec"]
    for ray in (job, cluster):
        assert faults(schemas, ray) == []
    assert [text for rule in RULES for text in rule(found)] == []


def test_overlays_differ_in_what_they_are_for() -> None:
    by_name = {target.rpartition("/")[2]: render(DEPLOY / target) for target in TARGETS}
    groups = {
        name: [g for _, spec in deploy_rules_ray.clusters(found) for g in spec["workerGroupSpecs"]]
        for name, found in by_name.items()
    }
    limits = {name: g[0]["template"]["spec"]["containers"][0]["resources"]["limits"] for name, g in groups.items()}
    assert [name for name in by_name if "nvidia.com/gpu" in limits[name]] == ["gpu", "spot"]
    assert [name for name, g in groups.items() if g[0]["replicas"] > 0] == ["kueue"]
    assert [name for name, found in by_name.items() if of_kind(found, "RayCluster")] == ["interactive"]
    assert [name for name, found in by_name.items() if not of_kind(found, "RayJob")] == ["interactive"]
    assert [name for name, found in by_name.items() if of_kind(found, "PersistentVolume")] == ["s3"]
    assert [name for name, found in by_name.items() if not of_kind(found, "PodMonitor")] == ["local"]
