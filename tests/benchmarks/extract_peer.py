"""Extraction beside `relion_preprocess --extract` on the same micrographs: windows and times.

Run from the checkout, with RELION on the path::

    python tests/benchmarks/extract_peer.py --scratch /tmp/extract_peer --repeats 3

Simulated micrographs with particles up to and across the border go through both at the same whole-pixel centres (RELION
drops fractions of coordinates), once at the micrograph's pixel size and once Fourier-cropped to half the box. RELION is
given float32: version 3.1.3 takes 16-bit counts for signed ones. It keeps the Nyquist row and column when it crops,
which are ambiguous and dropped here; the windows are compared without them. Both read files; ours reads and computes in
the process that measures, on one thread.
"""

import argparse
import shutil
import subprocess
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch

from cryoseg_dist.formats.mrc import read_mrc, write_stack
from cryoseg_dist.formats.star import write_star
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.micrographs import SimulateSettings, simulate_micrograph
from cryoseg_dist.simulate.specimen import made_up
from cryoseg_dist.stages.extract import ExtractSettings, ExtractStage, plan, shard_size, window_geometry

OPTICS = Optics(pixel_size=1.5, voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1)
DIAMETER, BOX, RADIUS = 150.0, 160, 55


def prepare(folder: Path, n: int, size: int) -> pd.DataFrame:
    """Write float32 micrographs and RELION's tables; the whole-pixel centres."""
    specimen = made_up(diameter=DIAMETER, size=BOX, pixel_size=OPTICS.pixel_size)
    settings = SimulateSettings(n_micrographs=n, width=size, height=size, particles=400, carbon=0.0)
    tables = []
    for i in range(n):
        made = simulate_micrograph(specimen, OPTICS, settings, i)
        write_stack(folder / "mics" / f"m{i:02d}.mrc", made.image.astype(np.float32), OPTICS.pixel_size)
        centres = made.particles[["coordinate_x", "coordinate_y"]].round()
        write_star(folder / "mics" / f"m{i:02d}_pick.star", {"": centres})
        tables.append(centres.assign(micrograph=i))
    columns = {"voltage": 300.0, "spherical_aberration": 2.7, "amplitude_contrast": 0.1}
    sizes = {"micrograph_pixel_size": OPTICS.pixel_size, "original_pixel_size": OPTICS.pixel_size}
    optics = pd.DataFrame([{"optics_group": 1, "optics_group_name": "o", **columns, **sizes}])
    names = pd.DataFrame({"micrograph_name": [f"mics/m{i:02d}.mrc" for i in range(n)], "optics_group": 1})
    write_star(folder / "micrographs.star", {"optics": optics, "micrographs": names})
    return pd.concat(tables, ignore_index=True)


def run_relion(folder: Path, stored: int) -> tuple[float, np.ndarray]:
    """Seconds, and windows of all micrographs in order."""
    scale = [] if stored == BOX else ["--scale", str(stored)]
    command = ["relion_preprocess", "--i", "micrographs.star", "--coord_dir", "./", "--coord_suffix", "_pick.star"]
    command += ["--part_star", "out.star", "--part_dir", "parts/", "--extract", "--extract_size", str(BOX), *scale]
    command += ["--norm", "--bg_radius", str(RADIUS * stored // BOX), "--invert_contrast"]
    shutil.rmtree(folder / "parts", ignore_errors=True)
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    seconds = time.perf_counter() - started
    return seconds, np.concatenate([read_mrc(p) for p in sorted((folder / "parts" / "mics").glob("*.mrcs"))])


def run_ours(folder: Path, centres: pd.DataFrame, size: int, stored: int) -> tuple[float, np.ndarray]:
    """Seconds, and windows of all micrographs in order."""
    settings = ExtractSettings(
        box_size=BOX,
        pixel_size=OPTICS.pixel_size * BOX / stored,
        background_radius=RADIUS * OPTICS.pixel_size,
        dust=None,
    )
    where = window_geometry(settings, OPTICS.pixel_size, DIAMETER)
    index, x, y = (centres[c].to_numpy() for c in ("micrograph", "coordinate_x", "coordinate_y"))
    stage = ExtractStage(settings, where, protein_dark=True)
    started = time.perf_counter()
    parts = []
    for unit in plan("e", "m", (size, size), index, x, y, where, shard_size(index, (size, size))):
        inputs = {
            f"micrograph/{i}": read_mrc(folder / "mics" / f"m{i:02d}.mrc") for i in np.unique(unit.parameters["index"])
        }
        parts.append(stage.compute(unit, inputs, None).arrays["images"])
    return time.perf_counter() - started, np.concatenate(parts).astype(np.float32)


def without_nyquist(images: np.ndarray) -> np.ndarray:
    """Images less their Nyquist row and column."""
    half = images.shape[-1] // 2
    spectra = np.fft.rfft2(images)
    spectra[:, half] = 0
    spectra[:, :, half] = 0
    return np.fft.irfft2(spectra, s=images.shape[1:])


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for micrographs and stacks")
    parser.add_argument("--micrographs", type=int, default=4)
    parser.add_argument("--size", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if shutil.which("relion_preprocess") is None:
        raise SystemExit("relion_preprocess is not on the path")
    torch.set_num_threads(1)
    centres = prepare(arguments.scratch, arguments.micrographs, arguments.size)
    print(f"{len(centres)} particles of {arguments.micrographs} micrographs, windows of {BOX} px")
    for stored in (BOX, BOX // 2):
        times: dict[str, list[float]] = {"RELION": [], "ours": []}
        for _ in range(arguments.repeats):
            theirs_seconds, theirs = run_relion(arguments.scratch, stored)
            ours_seconds, ours = run_ours(arguments.scratch, centres, arguments.size, stored)
            times["RELION"].append(theirs_seconds)
            times["ours"].append(ours_seconds)
        if stored != BOX:
            ours, theirs = without_nyquist(ours), without_nyquist(theirs)
        correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, theirs, strict=True)]
        print(
            f"stored at {stored:3d} px: RELION {median(times['RELION']):.2f} s, ours {median(times['ours']):.2f} s; correlation "
            f"median {median(correlations):.6f}, least {min(correlations):.6f}; largest difference "
            f"{np.abs(ours - theirs).max():.4f}"
        )


if __name__ == "__main__":
    main()
