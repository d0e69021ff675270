"""`cryoseg reconstruct` beside `relion_reconstruct` on the same simulated particles.

Run from the checkout, with RELION on the path::

    python tests/benchmarks/reconstruct_peer.py --scratch /tmp/reconstruct_peer --particles 10000 --box 128 --repeats 3

Particles of an asymmetric phantom of known angles, with CTF and white noise, go through both programs by turns. Told
are the medians of wall time, processor time and peak memory, the FSC of each map with the truth (mean over all
shells) and the correlation of the maps.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoseg_dist.formats.mrc import create_stack, read_volume, write_volume
from cryoseg_dist.formats.star import write_star
from cryoseg_dist.kernels.ctf import ctf
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.slices import prepare_volume, project
from cryoseg_dist.kernels.so3 import euler_to_matrix

PIXEL, VOLTAGE, CS, AMPLITUDE = 2.0, 300.0, 2.7, 0.1
BATCH = 200


def phantom(size: int, rng: np.random.Generator) -> Tensor:
    """An asymmetric clump of Gaussian pseudo-atoms of a self-avoiding walk's density; shape (size, size, size)."""
    radius = 0.3 * size
    centres = np.empty((0, 3))
    while len(centres) < 400:
        point = rng.normal(scale=0.5 * radius, size=3) * (1.3, 1.0, 0.7)
        if np.linalg.norm(point) < radius:
            centres = np.vstack((centres, point))
    axis = np.arange(size) - size // 2
    out = np.zeros((size, size, size))
    for centre, width, mass in zip(centres, rng.uniform(0.9, 1.6, 400), rng.uniform(0.5, 1.5, 400), strict=True):
        x, y, z = (np.exp(-0.5 * ((axis - c) / width) ** 2) for c in centre)
        out += mass * z[:, None, None] * y[None, :, None] * x[None, None, :]
    return torch.from_numpy(out.astype(np.float32))


def simulate(folder: Path, n: int, size: int, snr: float, seed: int) -> None:
    """Write ``truth.mrc``, ``particles.mrcs`` and ``particles.star``."""
    rng = np.random.default_rng(seed)
    truth = phantom(size, rng)
    reference = prepare_volume(truth)
    angles = np.column_stack(
        (rng.uniform(-180, 180, n), np.degrees(np.arccos(rng.uniform(-1, 1, n))), rng.uniform(-180, 180, n))
    )
    defocus = rng.uniform(8000, 25000, n)
    astigmatism, azimuth = rng.uniform(0, 600, n), rng.uniform(0, 180, n)
    origin = rng.uniform(-3, 3, (n, 2)).round(3)
    table = pd.DataFrame(
        {
            "image_name": [f"{i:06d}@particles.mrcs" for i in range(1, n + 1)],
            "optics_group": 1,
            "defocus_u": defocus + astigmatism,
            "defocus_v": defocus,
            "defocus_angle": azimuth,
            "rot": angles[:, 0],
            "tilt": angles[:, 1],
            "psi": angles[:, 2],
            "origin_x": origin[:, 0] * PIXEL,
            "origin_y": origin[:, 1] * PIXEL,
            "random_subset": rng.permutation(n) % 2 + 1,
        }
    )
    rotations = euler_to_matrix(*(torch.from_numpy(a) for a in angles.T)).float()
    stack = create_stack(folder / "particles.mrcs", n, size, PIXEL)
    k = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None, :]
    columns = torch.from_numpy(table[["defocus_u", "defocus_v", "defocus_angle"]].to_numpy(np.float32).copy()).T
    deviation = 0.0
    generator = torch.Generator().manual_seed(seed)
    for first in range(0, n, BATCH):
        rows = slice(first, min(first + BATCH, n))
        transfer = ctf(
            size, PIXEL, *columns[:, rows], voltage=VOLTAGE, spherical_aberration=CS, amplitude_contrast=AMPLITUDE
        )
        shift = torch.from_numpy(origin[rows])[:, :, None, None]
        # The origin is what moves an image back to the centre.
        phase = torch.exp(2j * torch.pi * (shift[:, 0] * k[1] + shift[:, 1] * k[0])).to(torch.complex64)
        images = to_real(project(reference, rotations[rows], size) * transfer * phase, size)
        deviation = deviation or float(images.std()) / snr**0.5
        images = images + deviation * torch.randn(images.shape, generator=generator)
        stack[rows] = (images / deviation).numpy()
    stack.flush()
    optics = pd.DataFrame(
        [
            {
                "optics_group_name": "opticsGroup1",
                "optics_group": 1,
                "voltage": VOLTAGE,
                "spherical_aberration": CS,
                "amplitude_contrast": AMPLITUDE,
                "pixel_size": PIXEL,
                "image_size": size,
                "image_dimensionality": 2,
            }
        ]
    )
    write_star(folder / "particles.star", {"optics": optics, "particles": table})
    write_volume(folder / "truth.mrc", truth.numpy(), PIXEL)


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Wall and processor seconds and peak memory in GB of a command."""
    started = time.perf_counter()
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}; see {folder / 'log.txt'}")
    wall = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * unit / 1e9}


def agreement(path: Path, truth: Tensor) -> tuple[float, Tensor]:
    """Mean FSC with the truth over all shells but the first inside a soft sphere, and the map in it."""
    volume = torch.from_numpy(read_volume(path)[0])
    # One mask for all: the peer has blanked the corners of its box.
    sphere = soft_sphere(truth.shape[0], 0.45 * truth.shape[0], 4.0)
    curve = fsc(to_fourier(volume * sphere, 3), to_fourier(truth * sphere, 3))
    return float(curve[1 : (truth.shape[0] - 1) // 2].mean()), volume * sphere


def compare(folder: Path, repeats: int) -> None:
    """Run the programs by turns and print a table."""
    cryoseg = [sys.executable, "-c", "from cryoseg_dist.cli.main import app; app()", "reconstruct", "particles.star"]
    commands = {
        "relion_reconstruct": ["relion_reconstruct", "--ctf", "--i", "particles.star", "--o", "relion.mrc"],
        "cryoseg, 1 worker": [*cryoseg, "--output", "one", "--workers", "1"],
        "cryoseg, 2 workers": [*cryoseg, "--output", "two", "--workers", "2"],
    }
    maps = {
        "relion_reconstruct": folder / "relion.mrc",
        "cryoseg, 1 worker": folder / "one/export/map_unsharpened.mrc",
        "cryoseg, 2 workers": folder / "two/export/map_unsharpened.mrc",
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            for made in ("one", "two"):
                shutil.rmtree(folder / made, ignore_errors=True)
            runs[name].append(timed(command, folder))
            if name != "relion_reconstruct":
                shutil.copy(maps[name], folder / f"{name.split()[1]}.mrc")
    truth = torch.from_numpy(read_volume(folder / "truth.mrc")[0])
    peer = agreement(maps["relion_reconstruct"], truth)[1]
    print(f"{'':20} {'wall s':>8} {'cpu s':>8} {'GB':>6} {'FSC':>8} {'with RELION':>12}   (medians of {repeats})")
    results = {}
    for name, held in runs.items():
        figures = {key: median(run[key] for run in held) for key in ("wall", "cpu", "memory")}
        path = maps[name] if name == "relion_reconstruct" else folder / f"{name.split()[1]}.mrc"
        figures["fsc"], volume = agreement(path, truth)
        figures["correlation"] = float(torch.corrcoef(torch.stack((volume.flatten(), peer.flatten())))[0, 1])
        results[name] = figures
        print(
            f"{name:20} {figures['wall']:8.2f} {figures['cpu']:8.2f} {figures['memory']:6.2f} {figures['fsc']:8.4f} "
            f"{figures['correlation']:12.4f}"
        )
    (folder / "results.json").write_text(json.dumps({"runs": runs, "medians": results}, indent=1))


def main() -> None:
    """Parse the command line, simulate what is not there yet and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for images and maps")
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--snr", type=float, default=0.07, help="variance of signal over that of noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if shutil.which("relion_reconstruct") is None:
        raise SystemExit("relion_reconstruct is not on the path")
    folder = arguments.scratch / f"{arguments.particles}x{arguments.box}_{arguments.snr:g}_{arguments.seed}"
    if not (folder / "truth.mrc").exists():
        folder.mkdir(parents=True, exist_ok=True)
        simulate(folder, arguments.particles, arguments.box, arguments.snr, arguments.seed)
    compare(folder, arguments.repeats)


if __name__ == "__main__":
    main()
