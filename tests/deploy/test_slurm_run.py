"""Our Slurm scripts on a real Slurm: submitted, run to a map, warned, and queued again.

Starts daemons of its own, so it runs only where it is asked for: ``CRYOSEG_TEST_SLURM=1`` with ``slurm-wlm`` and
``munge`` installed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_manifests import TOP
from slurm_cluster import Slurm, missing

pytestmark = pytest.mark.slurm
SCRIPTS = TOP / "cluster" / "slurm"
SETTINGS = """\
[data]
micrographs = "{micrographs}/*.mrc"
pixel_size = 3.0
voltage = 300
spherical_aberration = 2.7
amplitude_contrast = 0.1
[particle]
diameter = 150
symmetry = "D2"
[classify]
iterations = 4
[abinitio]
iterations = 8
[refine]
max_iterations = 4
"""

# Enough of a map where the way to it is what is tested.
SHORT = [
    w for c in ("classify.enabled=false", "abinitio.iterations=3", "refine.max_iterations=2") for w in ("--set", c)
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if os.environ.get("CRYOSEG_TEST_SLURM") != "1":
        pytest.skip("real Slurm runs only with CRYOSEG_TEST_SLURM=1")
    if why := missing():
        pytest.skip(f"no Slurm: {why}")
    started = Slurm(tmp_path_factory.mktemp("slurm"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def settings(slurm: Slurm) -> Path:
    program = Path(sys.executable).parent / "cryoseg"
    choices = ["n_micrographs=3", "width=512", "height=512", "particles=40", "snr=0.15", "ice_noise=0.6", "seed=1"]
    sets = [word for choice in choices for word in ("--set", choice)]
    out = slurm.folder / "data"
    subprocess.run([program, "simulate", "--output", out, "--symmetry", "D2", "--diameter", "150", *sets], check=True)
    path = slurm.folder / "settings.toml"
    path.write_text(SETTINGS.format(micrographs=out / "micrographs"), encoding="utf-8")
    return path


def finished_units(project: Path) -> int:
    return sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (project / "ledger").glob("*.jsonl"))


def test_whole_nodes_to_a_map(slurm: Slurm, settings: Path) -> None:
    project, log = slurm.folder / "whole", slurm.folder / "whole.out"
    job = slurm.submit(f"--output={log}", SCRIPTS / "cryoseg.sbatch", settings, project)
    end = slurm.ended(job, 400.0)
    text = log.read_text(encoding="utf-8")
    assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0"), text[-3000:]
    assert "Running command on head node" in text, "not run by ray symmetric-run"
    assert (project / "export" / "map.mrc").is_file()
    result = json.loads((project / "export" / "result.json").read_text(encoding="utf-8"))
    assert "ray_address" in json.dumps(json.loads((project / "settings.json").read_text(encoding="utf-8")))
    assert result
    assert not Path(f"/tmp/cryoseg-{job}").exists(), "Ray's folder stays behind"


def test_an_array_of_data_sets_side_by_side_on_one_node(slurm: Slurm, settings: Path) -> None:
    projects = [slurm.folder / f"set{i}" for i in (1, 2)]
    (slurm.folder / "sets.tsv").write_text("".join(f"{settings}\t{p}\n" for p in projects), encoding="utf-8")
    arguments = ("--array=1-2", "--cpus-per-task=1", "--mem=3G", f"--output={slurm.folder}/set%a.out")
    job = slurm.submit(*arguments, SCRIPTS / "array.sbatch", slurm.folder / "sets.tsv", *SHORT)
    for i in (1, 2):
        end = slurm.ended(f"{job}_{i}", 600.0)
        text = (slurm.folder / f"set{i}.out").read_text(encoding="utf-8")
        assert end["JobState"] == "COMPLETED", text[-3000:]
    halves = [(p / "export" / "half1.mrc").read_bytes() for p in projects]
    assert halves[0][1024:] == halves[1][1024:], "the same data and settings gave two maps"


def test_a_warned_job_goes_back_to_the_queue_and_on(slurm: Slurm, settings: Path) -> None:
    project, log = slurm.folder / "warned", slurm.folder / "warned.out"
    resources = ("--cpus-per-task=2", "--mem=4G")
    job = slurm.submit(f"--output={log}", *resources, SCRIPTS / "shared.sbatch", settings, project, *SHORT)
    deadline = time.monotonic() + 600.0
    while not (project / "ledger").is_dir() or finished_units(project) < 8:
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.2)
    slurm.run("scancel", "--signal=TERM", "--batch", job)
    while slurm.show(job).get("Restarts") != "1":
        assert time.monotonic() < deadline + 60.0, log.read_text(encoding="utf-8")
        time.sleep(0.2)
    before = finished_units(project)
    # Slurm lets a job rest for two minutes before it starts again. In the second in which it was taken back its credential is revoked.
    time.sleep(3.0)
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    end = slurm.ended(job, 600.0)
    text = log.read_text(encoding="utf-8")
    assert end["JobState"] == "COMPLETED", text[-3000:]
    assert "goes back to the queue" in text
    assert (project / "export" / "map.mrc").is_file()
    assert before >= 8
    keys = [json.loads(line)["key"] for line in next((project / "ledger").glob("ctf*")).read_text().splitlines()]
    assert len(keys) == len(set(keys)), "units were computed twice"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("nosuch.toml", "p"), "expected a file of settings"), (("settings.toml",), "got 1 arguments")],
)
def test_a_wrong_call_ends_at_once(slurm: Slurm, settings: Path, arguments: tuple[str, ...], says: str) -> None:
    log = slurm.folder / f"wrong{len(arguments)}.out"
    job = slurm.submit(f"--output={log}", SCRIPTS / "cryoseg.sbatch", *arguments)
    assert slurm.ended(job, 120.0)["ExitCode"] == "2:0"
    assert says in log.read_text(encoding="utf-8")
