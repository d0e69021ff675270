"""`cryoseg refine` beside `relion_refine_mpi --auto_refine`: the same particles, half sets, first map and mask.

Run from the checkout, with RELION 3.1 and OpenMPI on the path::

    python tests/benchmarks/refine_peer.py particles.star --reference map.mrc --symmetry O --diameter 130 --scratch DIR

Images are copied as float32, which every version of RELION reads, without angles and origins. A program whose half maps lie
in the folder already is not run again; delete its folder to measure it anew. `relion_postprocess` judges both with the mask that
`cryoseg refine` made. Told are resolutions, the area under the corrected FSC, wall and processor time of the program with its
children, and the memory of its largest process (RELION has three).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cryoseg_dist.formats.images import read_images
from cryoseg_dist.formats.mrc import create_stack
from cryoseg_dist.formats.star import image_reads, read_blocks, read_star, write_star
from cryoseg_dist.kernels.fsc import crossing
from cryoseg_dist.pipeline.particle_tables import read_particles
from cryoseg_dist.stages.refine import half_sets

POSE = ("rot", "tilt", "psi", "origin_x", "origin_y", "class_number", "max_probability")
RELION_HALF = "relion/run_half{}_class001_unfil.mrc"
OURS_HALF = "cryoseg/export/half{}.mrc"


def prepare(star: Path, diameter: float, folder: Path) -> None:
    """Write ``particles.mrcs`` and ``particles.star`` with half sets and without poses."""
    tables = read_star(star)
    particles = read_particles(star, diameter, poses=False)
    size, pixel, n = particles.size, particles.optics.pixel_size, len(particles)
    stack = create_stack(folder / "particles.mrcs", n, size, pixel)
    first = 0
    for source in image_reads(tables.rows["image_name"].tolist(), star.parent):
        images = read_images(source)
        stack[first : first + len(images)] = images
        first += len(images)
    stack.flush()
    rows = tables.rows.drop(columns=[c for c in POSE if c in tables.rows])
    rows["image_name"] = [f"{i:06d}@particles.mrcs" for i in range(1, n + 1)]
    rows["random_subset"] = half_sets(n, 0) + 1
    optics = tables.optics.assign(image_size=size, image_dimensionality=2)
    write_star(folder / "particles.star", {"optics": optics, "particles": rows})


def timed(command: list[str], folder: Path, name: str) -> None:
    """Run a program; keep its wall and processor seconds and the peak memory in GB of its largest process."""
    started = time.perf_counter()
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} ended with {process.returncode}; see {folder / f'{name}.log'}")
    figures = {
        "wall": time.perf_counter() - started,
        "cpu": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss * 1024 / 1e9,
    }
    (folder / f"{name}.json").write_text(json.dumps(figures))


def relion(folder: Path, options: argparse.Namespace) -> list[str]:
    """The peer's command, with the options that its interface sets."""
    return (
        "mpirun --allow-run-as-root --oversubscribe -n 3 relion_refine_mpi --o relion/run --auto_refine "
        f"--split_random_halves --i particles.star --ref {options.reference.absolute()} --firstiter_cc "
        f"--ini_high {options.low_pass:g} --dont_combine_weights_via_disc --pool 10 --pad 2 --ctf "
        f"--particle_diameter {options.diameter:g} --flatten_solvent --zero_mask --oversampling 1 --healpix_order 2 "
        "--auto_local_healpix_order 4 --offset_range 5 --offset_step 2 --low_resol_join_halves 40 --norm --scale "
        f"--sym {options.symmetry} --j 1"
    ).split()


def ours(options: argparse.Namespace) -> list[str]:
    """Our command, in one process."""
    start = [sys.executable, "-c", "from cryoseg_dist.cli.main import app; app()", "refine", "particles.star"]
    given = {
        "--reference": str(options.reference.absolute()),
        "--symmetry": options.symmetry,
        "--diameter": f"{options.diameter:g}",
        "--set": f"refine.initial_low_pass={options.low_pass:g}",
        "--engine": "inline",
        "--output": "cryoseg",
    }
    return [*start, *(word for pair in given.items() for word in pair)]


def judge(folder: Path, half: str, name: str) -> dict[str, float]:
    """What `relion_postprocess` makes of two half maps."""
    (folder / "post").mkdir(exist_ok=True)
    command = ["relion_postprocess", "--i", half.format(1), "--i2", half.format(2), "--o", f"post/{name}"]
    timed([*command, "--mask", "cryoseg/export/mask.mrc", "--force_mask"], folder, f"{name}_post")
    table = read_blocks(folder / f"post/{name}.star")["fsc"]
    curve = torch.from_numpy(table["rlnFourierShellCorrelationCorrected"].to_numpy(np.float64).copy())
    resolution = table["rlnAngstromResolution"].to_numpy(np.float64)
    return {
        "resolution": resolution[1] / crossing(curve, 0.143),
        "resolution_half": resolution[1] / crossing(curve, 0.5),
        "first_shell": float(resolution[1]),
        "area": float(curve[1:].clamp(min=0).sum()),
    }


def main() -> None:
    """Parse the command line, run both programs and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("particles", type=Path)
    parser.add_argument("--reference", type=Path, required=True, help="map on the particles' grid")
    parser.add_argument("--symmetry", default="C1")
    parser.add_argument("--diameter", type=float, required=True)
    parser.add_argument("--low-pass", type=float, default=40.0, help="of the first map [A]")
    parser.add_argument("--only", choices=("relion", "cryoseg"), help="run this program alone, without judging it")
    parser.add_argument("--scratch", type=Path, required=True)
    options = parser.parse_args()
    folder = options.scratch.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [p for p in ("mpirun", "relion_refine_mpi", "relion_postprocess") if shutil.which(p) is None]
    if missing:
        raise SystemExit(f"not on the path: {', '.join(missing)}")
    if not (folder / "particles.star").exists():
        prepare(options.particles.absolute(), options.diameter, folder)
    programs = {"relion": (RELION_HALF, relion(folder, options)), "cryoseg": (OURS_HALF, ours(options))}
    for name, (half, command) in programs.items():
        if options.only in (None, name) and not (folder / half.format(2)).exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
            timed(command, folder, name)
    if options.only is not None:
        return
    print(f"{'':10} {'0.143 A':>8} {'shell':>6} {'0.5 A':>7} {'area':>6} {'wall s':>8} {'cpu s':>8} {'GB':>6}")
    for name, (half, _) in programs.items():
        found, spent = judge(folder, half, name), json.loads((folder / f"{name}.json").read_text())
        print(
            f"{name:10} {found['resolution']:8.2f} {found['first_shell'] / found['resolution']:6.1f} "
            f"{found['resolution_half']:7.2f} {found['area']:6.2f} {spent['wall']:8.1f} {spent['cpu']:8.1f} "
            f"{spent['memory']:6.2f}"
        )


if __name__ == "__main__":
    main()
