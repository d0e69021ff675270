"""Dashboards, alert rules and manifests name metrics that exist, and a real Prometheus takes them."""

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from cryoseg_dist.monitor.prometheus import metric_names

TOP = Path(__file__).resolve().parents[2]
FOLDER = TOP / "deploy" / "monitoring"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
NAME = re.compile(r"\b(?:cryoseg|ray|dask)_[a-z][a-z0-9_]*")


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is absent: alert rules were not checked (Debian: prometheus)")
    return found


def rules() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "rules.yaml").read_text(encoding="utf-8"))


def expressions() -> list[tuple[str, str]]:
    """Every query of the dashboards and rules, with where it stands."""
    found = []
    for path in DASHBOARDS:
        board = json.loads(path.read_text(encoding="utf-8"))
        for panel in board["panels"]:
            found += [(f"{path.name}: {panel['title']}", target["expr"]) for target in panel["targets"]]
        for variable in board["templating"]["list"]:
            found.append((f"{path.name}: ${variable['name']}", variable["query"]))
    found += [(rule["alert"], rule["expr"]) for group in rules()["groups"] for rule in group["rules"]]
    return found


def sources(package: str, *folders: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    top = Path(spec.origin).parent
    return "\n".join(p.read_text(encoding="utf-8") for folder in folders for p in sorted((top / folder).rglob("*.py")))


def unknown(names: set[str]) -> set[str]:
    """Names that neither this exporter nor the installed Ray and Dask make."""
    ray = sources("ray", "dashboard/modules/reporter", "dashboard/modules/metrics", "_private")
    dask = sources("distributed", "http")
    out = set()
    for name in names:
        owner, _, rest = name.partition("_")
        if owner == "cryoseg":
            known = name in metric_names()
        elif owner == "ray":
            known = re.search(rf"[\"'\s(]({name}|{rest})\b", ray) is not None
        else:
            kind, _, what = rest.partition("_")
            known = f'build_name("{what.removesuffix("_total")}")' in dask and f'subsystem="{kind}"' in dask.replace(
                "subsystem = ", "subsystem="
            )
        if not known:
            out.add(name)
    return out


def test_every_metric_that_is_named_exists() -> None:
    names = {name for _, text in expressions() for name in NAME.findall(text)}
    assert len([n for n in names if n.startswith("cryoseg_")]) > 20
    assert any(n.startswith("ray_") for n in names)
    assert any(n.startswith("dask_") for n in names)
    assert unknown(names) == set()
    planted = {"cryoseg_unit_seconds_total", "ray_node_gpu_dreams", "dask_scheduler_dreams"}
    assert unknown(planted) == planted


def test_the_table_of_metrics_holds_each_once() -> None:
    rows = re.findall(r"^\| `(cryoseg_\w+)`", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    exported = {re.sub(r"_(bucket|sum|count)$", "", n) for n in metric_names()}
    assert len(rows) == len(set(rows))
    assert set(rows) == exported


def test_dashboards_have_distinct_names_and_whole_panels() -> None:
    boards = [json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS]
    assert {p.stem for p in DASHBOARDS} == {"overview", "micrographs", "throughput", "failures"}
    assert len({b["uid"] for b in boards}) == len({b["title"] for b in boards}) == len(boards)
    for board in boards:
        cells: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            g = panel["gridPos"]
            here = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
            assert g["x"] + g["w"] <= 24
            assert not cells & here, panel["title"]
            cells |= here
            assert all(target["expr"] for target in panel["targets"])


def test_every_alert_says_what_to_do_and_is_tested() -> None:
    alerts = [rule for group in rules()["groups"] for rule in group["rules"]]
    tested = (FOLDER / "rules_test.yaml").read_text(encoding="utf-8")
    for rule in alerts:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert f"alertname: {rule['alert']}\n        exp_alerts:\n          -" in tested, rule["alert"]


def test_the_manifest_holds_the_rules_of_the_file() -> None:
    manifest = yaml.safe_load((FOLDER / "prometheus-rule.yaml").read_text(encoding="utf-8"))
    assert manifest["spec"] == rules()


def test_promtool_takes_the_rules(promtool: str) -> None:
    for command in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("old", "new"),
    [("> 1800", "> 18000"), ("> 0.1", "> 0.3"), ("< 0.05", "< 0.01"), ('outcome="quarantined"', 'outcome="lost"')],
)
def test_promtool_finds_a_changed_rule(promtool: str, tmp_path: Path, old: str, new: str) -> None:
    text = (FOLDER / "rules.yaml").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "rules.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")
    shutil.copy(FOLDER / "rules_test.yaml", tmp_path)
    done = subprocess.run(
        [promtool, "test", "rules", "rules_test.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
