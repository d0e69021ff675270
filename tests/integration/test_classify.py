"""2D classification of planted classes: who is found, with which pose, after an interruption, and what is thrown away."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cryoseg_dist.formats.mrc import write_stack
from cryoseg_dist.kernels.ctf import ctf
from cryoseg_dist.kernels.fourier import shift, to_real
from cryoseg_dist.kernels.planes import prepare_planes, sample_planes
from cryoseg_dist.kernels.slices import disc_pixels, put_pixels
from cryoseg_dist.pipeline.classes import Classified, run_classify
from cryoseg_dist.pipeline.config import RunSettings
from cryoseg_dist.pipeline.particles import Particles
from cryoseg_dist.pipeline.session import open_session
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.schema.work import ImageFile, Region, Unit
from cryoseg_dist.stages.class_averages import select
from cryoseg_dist.stages.classify import ClassifySettings, ClassifyStage, Sampling

SIZE, PIXEL, DIAMETER, N = 32, 4.0, 90.0, 360
OPTICS = Optics(PIXEL, 300.0, 2.7, 0.1)
SETTINGS = {"n_classes": 6, "iterations": 10, "unit_size": 128, "last_resolution": 12.0, "batch": 200}


def pictures() -> torch.Tensor:
    """Three shapes of equal mass without symmetry."""
    axis = torch.arange(SIZE, dtype=torch.float32) - SIZE // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    shapes = (
        ((6, 0, 1.0), (-3, 5, 1.0), (-5, -3, 2.0)),
        ((0, 0, 3.0), (7, 2, 1.0)),
        ((-8, 0, 1.0), (-3, 1, 1.0), (2, 0, 1.0), (7, -3, 1.0)),
    )
    return torch.stack(
        [sum((m * torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 6.0) for a, b, m in s), torch.zeros(())) for s in shapes]
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Particles, np.ndarray, np.ndarray, np.ndarray]:
    """Particles, and the true class, psi and origin (px) of each."""
    generator = torch.Generator().manual_seed(5)
    which = torch.arange(N) % 3
    psi = 360.0 * torch.rand(N, generator=generator)
    origin = 4.0 * torch.rand((N, 2), generator=generator) - 2.0
    defocus = 8000.0 + 12000.0 * torch.rand(N, generator=generator)
    ky, kx = disc_pixels(SIZE, SIZE / 2)
    spectra = put_pixels(sample_planes(prepare_planes(pictures()), which, psi, ky, kx), ky, kx, SIZE)
    spectra = spectra * ctf(
        SIZE,
        PIXEL,
        defocus,
        defocus - 300.0,
        torch.full((N,), 30.0),
        voltage=300.0,
        spherical_aberration=2.7,
        amplitude_contrast=0.1,
    )
    images = to_real(shift(spectra, -origin, SIZE), SIZE)
    images = images / images.std() * 0.8 + torch.randn(images.shape, generator=generator)
    path = tmp_path_factory.mktemp("planted") / "stack.mrcs"
    write_stack(path, images.numpy(), PIXEL)
    table = pd.DataFrame(
        {
            "defocus_u": defocus.numpy(),
            "defocus_v": defocus.numpy() - 300.0,
            "defocus_angle": 30.0,
            "phase_shift": 0.0,
            "origin_x": 0.0,
            "origin_y": 0.0,
            "row": np.arange(N),
        }
    )
    sources = tuple(ImageFile(str(path), (i,)) for i in range(N))
    particles = Particles("planted", table, OPTICS, SIZE, DIAMETER, sources=sources)
    return particles, which.numpy(), psi.numpy(), origin.numpy()


def classified(particles: Particles, root: Path, stop_after: int | None = None, **more: object) -> Classified:
    settings = RunSettings.model_validate(
        {
            "data": {"pixel_size": PIXEL, "voltage": 300.0, "spherical_aberration": 2.7},
            "particle": {"diameter": DIAMETER},
            "engine": {"engine": "inline"},
            "classify": {**SETTINGS, **more},
        }
    )

    def interrupt(event: object) -> None:
        if stop_after is not None and re.search(rf"it{stop_after:03d}/000001$", getattr(event, "key", "")):
            raise KeyboardInterrupt

    with open_session(settings, root, [interrupt], ["test"]) as session:
        return run_classify(session, particles)


@pytest.fixture(scope="module")
def found(
    planted: tuple[Particles, np.ndarray, np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Classified:
    return classified(planted[0], tmp_path_factory.mktemp("found"), keep=list(range(1, 7)))


def test_planted_classes_are_found(
    planted: tuple[Particles, np.ndarray, np.ndarray, np.ndarray], found: Classified
) -> None:
    """Nine in ten particles share their class with others of their shape."""
    assert len(found.particles) == found.counts.sum() == N
    number = found.particles.table["class_number"].to_numpy()
    agree = sum(np.bincount(planted[1][number == c], minlength=3).max() for c in set(number))
    assert agree / N > 0.9


def test_angles_and_origins_have_their_sign(
    planted: tuple[Particles, np.ndarray, np.ndarray, np.ndarray], found: Classified
) -> None:
    """Within a class, psi differs from the truth by one angle, and origins by a shift that turns with psi."""
    _, which, psi, origin = planted
    table = found.particles.table
    number = table["class_number"].to_numpy()
    # The first shape resembles none of its own rotations.
    largest = int(np.bincount(number[which == 0]).argmax())
    mine = np.flatnonzero((number == largest) & (which == 0))
    turn = np.radians(table["psi"].to_numpy()[mine] - psi[mine])
    apart = np.abs(np.angle(np.exp(1j * (turn[:, None] - turn))))
    close = apart[(apart < np.radians(20.0)).sum(axis=1).argmax()] < np.radians(20.0)
    assert close.mean() > 0.75
    mine = mine[close]
    # A class average that is off centre moves all origins by that shift in the image's frame.
    difference = table[["origin_x", "origin_y"]].to_numpy()[mine] / PIXEL - origin[mine]
    angle = np.radians(table["psi"].to_numpy()[mine])
    z = (difference[:, 0] + 1j * difference[:, 1]) * np.exp(1j * angle)
    assert np.median(np.abs(z - np.median(z.real) - 1j * np.median(z.imag))) < 0.7


def test_an_interrupted_run_goes_on_to_the_same_end(
    planted: tuple[Particles, np.ndarray, np.ndarray, np.ndarray], found: Classified, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        classified(planted[0], tmp_path, stop_after=6)
    assert len(list(tmp_path.glob("state/*/it*.json"))) == 6
    again = classified(planted[0], tmp_path, keep=list(range(1, 7)))
    assert np.array_equal(again.averages, found.averages)
    assert again.particles.table.equals(found.particles.table)


def summed(optics: Optics | tuple[Optics, ...], images: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What the stage sums up of images with these columns of the CTF."""
    noise = np.full(SIZE // 2 + 1, 0.5 * SIZE**2, dtype=np.float32)
    stage = ClassifyStage(optics, DIAMETER, Sampling(20.0, 2.0, 1.0, 8.0, 6.0), noise, 4, Region("a", (0,), (1,)))
    state = stage.setup({"averages": pictures().numpy()}, "cpu")
    writes = {"partials": Region("p", (0,), (1,)), "assignment": Region("q", (0, 0, 0), (1, len(images), 6))}
    result = stage.compute(Unit("u", {}, writes, {"ctf": columns}), {"images": images}, state)
    assert np.all(result.arrays["assignment"][0, :, 4] > 0)
    return result.arrays["partials"]


def test_the_sums_of_parts_add_up(planted: tuple[Particles, np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Two halves of a batch give the whole batch's sums, in one optics group and in two."""
    images = torch.randn((40, SIZE, SIZE), generator=torch.Generator().manual_seed(1)).numpy()
    columns = planted[0].transfer(np.arange(40))
    first, second = slice(0, 24), slice(24, 40)
    other = replace(OPTICS, voltage=200.0, beam_tilt=(5.0, -3.0), even_aberrations=(0.4, 20.0))
    grouped = np.column_stack((columns, np.arange(40) >= 24)).astype(np.float32)
    for optics, whole in ((OPTICS, summed(OPTICS, images, columns)), (other, summed((OPTICS, other), images, grouped))):
        parts = summed(OPTICS, images[first], columns[first]) + summed(optics, images[second], columns[second])
        assert np.allclose(whole, parts, atol=1e-4 * np.abs(whole).max())
        assert whole[..., 2].sum() > 0


def test_junk_is_not_selected() -> None:
    """A class of noise, one too small and one with its power beside the particle go; the rest stays."""
    generator = np.random.default_rng(2)
    images = np.concatenate((pictures().numpy(), np.zeros((3, SIZE, SIZE), dtype=np.float32)))
    images[3] = generator.normal(size=(SIZE, SIZE))
    images[4] = images[0]
    axis = np.arange(SIZE) - SIZE // 2
    images[5] = np.hypot(axis[:, None], axis) > 0.5 * DIAMETER / PIXEL
    ratio = np.full((6, SIZE // 2 + 1), 0.01)
    for i, shell in enumerate((10, 9, 8, 2, 10, 9)):
        ratio[i, :shell] = 20.0
    counts = np.array([100, 90, 80, 40, 2, 30])
    chosen = select(images, ratio, counts, PIXEL, DIAMETER, ClassifySettings())
    assert chosen.tolist() == [True, True, True, False, False, False]
    kept = select(images, ratio, counts, PIXEL, DIAMETER, ClassifySettings(keep=[4]))
    assert kept.tolist() == [False, False, False, True, False, False]
    # No more than the allowed share goes, whatever the averages look like.
    counts[3] = 1000
    assert select(images, ratio, counts, PIXEL, DIAMETER, ClassifySettings(max_rejected=0.3))[3]


def test_particles_of_rejected_classes_are_told(
    planted: tuple[Particles, np.ndarray, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """The particles come from two optics groups."""
    few = planted[0].subset(np.arange(60), "few")
    grouped = replace(few, table=few.table.assign(optics_group=np.arange(60) % 2 + 3), groups={3: OPTICS, 4: OPTICS})
    result = classified(grouped, tmp_path, iterations=2, n_classes=2, keep=[1])
    n_out = 60 - len(result.particles)
    assert set(result.particles.table["class_number"]) == {1}
    assert n_out == result.counts[1] > 0
    assert [item.item for item in result.set_aside] == [f"{n_out} particles"]
