"""`cryoseg reconstruct` beside other programs on the same simulated particles.

Run from the checkout, with RELION on the path::

    python tests/benchmarks/reconstruct_peer.py --scratch /tmp/reconstruct_peer --particles 10000 --box 128 --repeats 3

Particles of an asymmetric phantom of known angles, with CTF and white noise, go through the programs by turns. Told
are the medians of wall time, processor time and peak memory of the whole process, particles a second of one core, and the FSC of each
map with the truth (mean over all shells), in a sphere that just holds it: maps that fade towards the edge of their box would gain by noise
that others have there. Each program's start is in its time: what a particle takes beyond it is the difference of two runs of
different size, which is told too. ``--direct`` compares our sums with sums in double precision, pixel by pixel.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cryoseg_dist.formats.mrc import create_stack, read_volume, write_volume
from cryoseg_dist.formats.star import read_star, write_star
from cryoseg_dist.kernels.ctf import ctf, wavelength
from cryoseg_dist.kernels.finishing import finish
from cryoseg_dist.kernels.fourier import to_fourier, to_real
from cryoseg_dist.kernels.fsc import fsc
from cryoseg_dist.kernels.mask import soft_sphere
from cryoseg_dist.kernels.slices import prepare_volume, project
from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import Unit
from cryoseg_dist.stages.reconstruct import FoldStage, pose_table

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
            "phase_shift": 0.0,
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


# What a program took is asked of a process that is small: a child's peak memory begins with that of its parent.
LAUNCHER = """
import json, os, resource, subprocess, sys, time
started = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=2).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
wall = time.perf_counter() - started
print(json.dumps({"status": status, "wall": wall, "cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024 / 1e9}))
"""


def timed(command: list[str], folder: Path) -> dict[str, float]:
    """Wall and processor seconds and peak memory in GB of a command."""
    with (folder / "log.txt").open("a") as log:
        run = [sys.executable, "-S", "-c", LAUNCHER, *command]
        found = json.loads(subprocess.run(run, cwd=folder, stdout=subprocess.PIPE, stderr=log, check=True).stdout)
    if found.pop("status"):
        raise SystemExit(f"{' '.join(command)} failed; see {folder / 'log.txt'}")
    return found


def agreement(volume: Tensor, other: Tensor) -> Tensor:
    """FSC by shell inside the sphere that holds the phantom; contrast of either sign."""
    size = volume.shape[0]
    sphere = soft_sphere(size, 0.36 * size, 4.0)
    curve = fsc(to_fourier(volume * sphere, 3), to_fourier(other * sphere, 3))
    return curve * torch.sign(curve[1])


def single(folder: Path, n: int, size: int) -> Tensor:
    """A map of the first particles by our kernels, undamped."""
    tables = read_star(folder / "particles.star")
    t = tables.rows.iloc[:n]
    images = np.memmap(folder / "particles.mrcs", np.float32, "r", offset=1024).reshape(-1, size, size)[:n]
    transfer = t[["defocus_u", "defocus_v", "defocus_angle", "phase_shift"]].to_numpy(np.float32)
    poses = pose_table(t["rot"], t["tilt"], t["psi"], t["origin_x"], t["origin_y"], PIXEL)
    unit = Unit("all", {}, {}, {"half": 0, "parts": [{"ctf": transfer, "poses": poses}]})
    stage = FoldStage(Optics(PIXEL, VOLTAGE, CS, AMPLITUDE), size)
    total = stage.partial(unit, {"images/0": np.array(images)})
    return finish(torch.from_numpy(total), size)


def double(folder: Path, n: int, size: int) -> Tensor:
    """A map of the first particles by full trilinear sums in double precision, pixel by pixel; the float64 direct evaluation."""
    table = read_star(folder / "particles.star").rows.iloc[:n]
    # The header of a stack ends at byte 1024.
    images = np.memmap(folder / "particles.mrcs", np.float32, "r", offset=1024).reshape(-1, size, size)
    m = 2 * size
    rotations = euler_to_matrix(
        *(torch.from_numpy(table[c].to_numpy(float, copy=True)) for c in ("rot", "tilt", "psi"))
    ).numpy()
    ky, kx = np.meshgrid(np.arange(-(size // 2) + 1, size // 2), np.arange(size // 2), indexing="ij")
    keep = (ky**2 + kx**2 <= (size / 2) ** 2) & ((kx > 0) | (ky >= 0))
    y, x = ky[keep], kx[keep]
    k2, azimuth = (y * y + x * x) / (size * PIXEL) ** 2, np.arctan2(y, x)
    lam = wavelength(VOLTAGE)
    total = np.zeros((3, m * m * (m // 2 + 1)))
    for row in range(n):
        p = table.iloc[row]
        spectrum = np.fft.rfft2(np.fft.ifftshift(images[row].astype(np.float64)))[y % size, x]
        u, v, a = p["defocus_u"], p["defocus_v"], np.radians(p["defocus_angle"])
        focus = 0.5 * (u + v + (u - v) * np.cos(2 * (azimuth - a)))
        chi = np.pi * lam * k2 * focus - 0.5 * np.pi * lam**3 * CS * 1e7 * k2**2 + np.arcsin(AMPLITUDE)
        turns = (x * p["origin_x"] + y * p["origin_y"]) / PIXEL / size
        value, weight = spectrum * np.sin(chi) * np.exp(-2j * np.pi * turns), np.sin(chi) ** 2
        at = 2.0 * (x[:, None] * rotations[row, 0] + y[:, None] * rotations[row, 1])
        sign = np.where(at[:, 0] < 0, -1.0, 1.0)
        at *= sign[:, None]
        parts = (value.real, sign * value.imag, weight)
        low = np.floor(at).astype(np.int64)
        for corner in np.ndindex(2, 2, 2):
            share = (1.0 - np.abs(at - low - corner)).prod(axis=1)
            cx, cy, cz = (low + corner).T
            index = ((cz % m) * m + cy % m) * (m // 2 + 1) + cx
            for c in range(3):
                np.add.at(total[c], index, parts[c] * share)
    data, weight = total[0] + 1j * total[1], total[2]
    data, weight = data.reshape(m, m, -1), weight.reshape(m, m, -1)
    mirrored = (-np.arange(m)) % m
    data[:, :, 0] += np.conj(data[mirrored][:, mirrored, 0])
    weight[:, :, 0] += weight[mirrored][:, mirrored, 0]
    f = np.fft.fftfreq(m) * m
    shell = np.round(np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + np.arange(m // 2 + 1) ** 2)).astype(int)
    twice = np.where((np.arange(m // 2 + 1) % (m // 2)) == 0, 1.0, 2.0) * np.ones(shell.shape)
    mean = np.bincount(shell.ravel(), (weight * twice).ravel()) / np.bincount(shell.ravel(), twice.ravel())
    data /= np.maximum(np.maximum(weight, mean[shell] / 1000.0), 1e-30)
    data[shell > m // 2 - 2] = 0.0
    cube = np.fft.fftshift(np.fft.irfftn(data, s=(m, m, m), axes=(0, 1, 2)))[
        (slice(m // 2 - size // 2, m // 2 + size // 2),) * 3
    ]
    line = np.sinc((np.arange(size) - size // 2) / m) ** 2
    return torch.from_numpy((cube / (line[:, None, None] * line[:, None] * line)).astype(np.float32))


def subset(folder: Path, n: int) -> str:
    """STAR file of the first particles."""
    tables = read_star(folder / "particles.star")
    name = f"first_{n}.star"
    write_star(folder / name, {"optics": tables.optics, "particles": tables.rows.iloc[:n]})
    return name


ASPIRE = """
import sys, numpy
from aspire.source import RelionSource
from aspire.reconstruction import MeanEstimator
source = RelionSource(sys.argv[1], data_folder='.', pixel_size=float(sys.argv[2]))
volume = MeanEstimator(source).estimate()
volume.save(sys.argv[3], overwrite=True)
"""


@dataclass(frozen=True)
class Program:
    """A program, the particles it takes and the map it makes."""

    name: str
    command: list[str]
    particles: int
    made: Path
    remove: Path | None = None


def programs(folder: Path, n: int, arguments: argparse.Namespace) -> list[Program]:
    """Those that are there."""
    run = [sys.executable, "-c", "from cryoseg_dist.cli.main import app; app()", "reconstruct"]
    few = min(n, arguments.peer_particles)
    out = []
    for count in {n, few}:
        star = subset(folder, count)
        for workers in (1, 2):
            name = f"cryoseg, {workers} worker{'s' * (workers > 1)}"
            where = folder / f"ours_{count}_{workers}"
            command = [*run, star, "--output", str(where), "--workers", str(workers)]
            out.append(Program(name, command, count, where / "export/map_unsharpened.mrc", where))
    for name, more in (("relion_reconstruct", []), ("relion_reconstruct --skip_gridding", ["--skip_gridding"])):
        if arguments.gridding or more:
            for count in {n, few}:
                made = folder / f"relion{len(more)}_{count}.mrc"
                command = ["relion_reconstruct", "--ctf", "--i", subset(folder, count), "--o", str(made), *more]
                out.append(Program(name, command, count, made))
    star = subset(folder, few)
    if arguments.cryodrgn:
        box, where = str(arguments.box), folder / "cryodrgn"
        for kind in ("pose", "ctf"):
            timed(
                [arguments.cryodrgn, f"parse_{kind}_star", star, "-D", box, "--Apix", str(PIXEL), "-o", f"{kind}.pkl"],
                folder,
            )
        command = [
            arguments.cryodrgn,
            "backproject_voxel",
            star,
            "--datadir",
            ".",
            "--ctf",
            "ctf.pkl",
            "--poses",
            "pose.pkl",
        ]
        out.append(
            Program("cryodrgn backproject_voxel", [*command, "-o", str(where)], few, where / "backproject.mrc", where)
        )
    if arguments.aspire_python:
        made = folder / "aspire.mrc"
        command = [arguments.aspire_python, "-c", ASPIRE, star, str(PIXEL), str(made)]
        out.append(Program("ASPIRE MeanEstimator", command, few, made))
    return out


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    """Run the programs by turns and print a table."""
    n, size = arguments.particles, arguments.box
    given = programs(folder, n, arguments)
    truth = torch.from_numpy(read_volume(folder / "truth.mrc")[0])
    for count in arguments.direct:
        curve = agreement(single(folder, count, size), double(folder, count, size))
        print(
            f"{count} particles, single and double precision: least FSC to 0.9 Nyquist {float(curve[1 : int(0.45 * size) + 1].min()):.6f}"
        )
    runs: list[list[dict[str, float]]] = [[] for _ in given]
    for _ in range(arguments.repeats):
        for program, held in zip(given, runs, strict=True):
            if program.remove is not None:
                shutil.rmtree(program.remove, ignore_errors=True)
            held.append(timed(program.command, folder))
            print(f"{program.name}, {program.particles} particles: {held[-1]['wall']:.1f} s", flush=True)
    print(f"{'':36} {'particles':>9} {'wall s':>8} {'cpu s':>8} {'a cpu s':>8} {'GB':>6} {'FSC':>7}")
    results = []
    for program, held in zip(given, runs, strict=True):
        figures = {key: median(run[key] for run in held) for key in ("wall", "cpu", "memory")}
        curve = agreement(torch.from_numpy(read_volume(program.made)[0]), truth)
        figures["fsc"] = float(curve[1 : (size - 1) // 2].mean())
        results.append({"program": program.name, "particles": program.particles, **figures})
        print(
            f"{program.name:36} {program.particles:9} {figures['wall']:8.2f} {figures['cpu']:8.2f} "
            f"{program.particles / figures['cpu']:8.0f} {figures['memory']:6.2f} {figures['fsc']:7.4f}",
            flush=True,
        )
    for name in dict.fromkeys(program.name for program in given):
        ends = sorted((r["particles"], r["wall"], r["cpu"]) for r in results if r["program"] == name)
        if len(ends) == 2:
            (first, *begun), (last, *ended) = ends
            wall, cpu = ((b - a) / (last - first) * 1e3 for a, b in zip(begun, ended, strict=True))
            print(f"{name}: a particle beyond the first {first} takes {wall:.3f} ms, {cpu:.3f} ms of a core")
    (folder / "results.json").write_text(json.dumps(results, indent=1))


def main() -> None:
    """Parse the command line, simulate what is not there yet and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for images and maps")
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--snr", type=float, default=0.07, help="variance of signal over that of noise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-particles", type=int, default=1000, help="particles that the slow peers take, at most")
    parser.add_argument(
        "--direct", type=int, nargs="*", default=[], help="particles summed in single and in double precision"
    )
    parser.add_argument(
        "--gridding", action=argparse.BooleanOptionalAction, default=True, help="relion_reconstruct with it, too"
    )
    parser.add_argument("--cryodrgn", help="the program of an environment with cryoDRGN 4.3")
    parser.add_argument("--aspire-python", help="Python of an environment with ASPIRE 0.14")
    arguments = parser.parse_args()
    if shutil.which("relion_reconstruct") is None:
        raise SystemExit("relion_reconstruct is not on the path")
    folder = arguments.scratch / f"{arguments.particles}x{arguments.box}_{arguments.snr:g}_{arguments.seed}"
    if not (folder / "truth.mrc").exists():
        folder.mkdir(parents=True, exist_ok=True)
        simulate(folder, arguments.particles, arguments.box, arguments.snr, arguments.seed)
    compare(folder, arguments)


if __name__ == "__main__":
    main()
