import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.spatial import cKDTree

from cryoseg_dist.kernels.ctf import aberration_phase, ctf
from cryoseg_dist.kernels.fourier import shift, to_real
from cryoseg_dist.kernels.slices import project
from cryoseg_dist.kernels.so3 import euler_to_matrix
from cryoseg_dist.schema.optics import Optics
from cryoseg_dist.simulate.micrographs import (
    BACKGROUND,
    CARBON,
    CONTAMINATION,
    PARTICLE,
    SimulatedMicrograph,
    SimulateSettings,
    simulate_micrograph,
)
from cryoseg_dist.simulate.specimen import Specimen, made_up

OPTICS = Optics(pixel_size=4.0, voltage=300.0, spherical_aberration=2.7, amplitude_contrast=0.1)
CLEAN = {
    "carbon": 0.0,
    "contamination": 0.0,
    "hot_pixels": 0.0,
    "ice_gradient": 0.0,
    "ice_noise": 0.0,
    "mtf_nyquist": 1.0,
}


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return made_up(diameter=120.0, size=48, pixel_size=4.0, seed=2)


def make(specimen: Specimen, index: int = 0, **settings: float) -> SimulatedMicrograph:
    wanted = {"width": 512, "height": 384, "particles": 40, **settings}
    return simulate_micrograph(specimen, OPTICS, SimulateSettings(**wanted), index)  # type: ignore[arg-type]


def test_counts_of_the_dose_with_dark_protein(specimen: Specimen) -> None:
    made = make(specimen, snr=0.5, **CLEAN)
    assert made.image.dtype == np.uint16
    assert made.image.shape == made.mask.shape == (384, 512)
    ground, protein = (made.image[made.mask == c].astype(float) for c in (BACKGROUND, PARTICLE))
    assert ground.mean() == pytest.approx(30.0, rel=0.02)
    error = math.sqrt(ground.var() / ground.size + protein.var() / protein.size)
    assert protein.mean() < ground.mean() - 5 * error


def test_image_is_the_projection_at_the_true_pose_through_the_true_ctf(specimen: Specimen) -> None:
    made = make(specimen, snr=4.0, spacing=1.5, touching=0.0, particles=15, **CLEAN)
    size = 48
    table = made.particles
    inside = table[table.coordinate_x.between(24, 512 - 25) & table.coordinate_y.between(24, 384 - 25)]
    assert len(inside) >= 5
    angles = (torch.tensor(inside[c].to_numpy()) for c in ("rot", "tilt", "psi"))
    u, v, angle = (
        torch.tensor(inside[c].to_numpy(), dtype=torch.float32) for c in ("defocus_u", "defocus_v", "defocus_angle")
    )
    transfer = ctf(
        size,
        4.0,
        u,
        v,
        angle,
        b_factor=torch.full_like(u, 60.0),
        voltage=300.0,
        spherical_aberration=2.7,
        amplitude_contrast=0.1,
    )
    x, y = inside.coordinate_x.to_numpy(), inside.coordinate_y.to_numpy()
    ix, iy = np.floor(x).astype(int), np.floor(y).astype(int)
    rest = torch.from_numpy(np.stack((x - ix, y - iy), axis=1)).float()
    rotations = euler_to_matrix(*angles).float()
    windows = np.stack([made.image[b - 24 : b + 24, a - 24 : a + 24] for a, b in zip(ix, iy, strict=True)]).astype(
        float
    )

    def agreement(matrices: torch.Tensor) -> np.ndarray:
        spectra = shift(project(specimen.transform, matrices, size) * transfer, rest, size)
        expected = to_real(spectra, size).numpy()
        return np.array([-np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(windows, expected, strict=True)])

    right = agreement(rotations)
    assert right.min() > 0.7
    # The other hand, and the inverse rotation, are other views.
    other = rotations.clone()
    other[:, :, 2] *= -1.0
    for wrong in (other, rotations.transpose(1, 2)):
        assert (agreement(wrong) < right - 0.02).mean() > 0.8


def test_signal_to_noise_ratio(specimen: Specimen) -> None:
    made = make(
        specimen,
        snr=0.3,
        defocus_min=15000,
        defocus_max=15000,
        astigmatism=0,
        particles=80,
        width=1024,
        height=1024,
        **CLEAN,
    )
    # Far from any particle only shot noise is left, of the variance of the dose.
    centres = made.particles[["coordinate_x", "coordinate_y"]].to_numpy()
    y, x = np.mgrid[:1024, :1024]
    distance = cKDTree(centres).query(np.stack((x.ravel(), y.ravel()), axis=1))[0].reshape(1024, 1024)
    border = np.minimum.reduce((x, y, 1023 - x, 1023 - y)) > 60
    noise = made.image[(distance > 40) & border].astype(float).var()
    assert noise == pytest.approx(30.0, rel=0.03)
    signal = made.image[made.mask == PARTICLE].astype(float).var() - noise
    assert signal / noise == pytest.approx(0.3, rel=0.2)


def test_thon_rings_lie_where_the_true_ctf_has_them(specimen: Specimen) -> None:
    settings = {**CLEAN, "ice_noise": 1.0}
    made = make(specimen, snr=1.0, particles=0, width=512, height=512, astigmatism=1500.0, b_factor=0.0, **settings)
    power = torch.from_numpy(np.abs(np.fft.rfft2(made.image - made.image.mean())) ** 2)
    # No particle, so no truth table: the defocus is that of the same micrograph with particles.
    row = make(
        specimen, snr=1.0, particles=30, width=512, height=512, astigmatism=1500.0, b_factor=0.0, **settings
    ).particles.iloc[0]
    assert abs(row.defocus_u - row.defocus_v) > 200
    fy, fx = torch.fft.fftfreq(512)[:, None] / 4.0, torch.fft.rfftfreq(512)[None, :] / 4.0
    k = torch.sqrt(fx * fx + fy * fy)
    band = (k > 1 / 40.0) & (k < 1 / 9.0)

    def contrast(factor: float, turn: float) -> float:
        """Power where the CTF is largest over that where it vanishes."""
        phase = aberration_phase(
            k,
            torch.atan2(fy, fx),
            torch.tensor(row.defocus_u * factor),
            torch.tensor(row.defocus_v * factor),
            torch.tensor(row.defocus_angle + turn),
            torch.tensor(0.0),
            voltage=300.0,
            spherical_aberration=2.7,
            amplitude_contrast=0.1,
        )
        value = torch.sin(phase) ** 2
        return float(power[band & (value > 0.9)].mean() / power[band & (value < 0.05)].mean())

    right = contrast(1.0, 0.0)
    assert right > 3.0
    assert contrast(1.06, 0.0) < 0.7 * right
    assert contrast(0.94, 0.0) < 0.7 * right
    assert contrast(1.0, 90.0) < 0.9 * right


def test_particles_are_as_many_and_as_far_apart_as_asked(specimen: Specimen) -> None:
    made = make(specimen, particles=40, spacing=0.9, touching=0.5, carbon=0.0, contamination=0.0)
    centres = made.particles[["coordinate_x", "coordinate_y"]].to_numpy()
    assert len(centres) == 40
    assert (centres >= 0).all()
    assert (centres <= np.array([511, 383])).all()
    diameter = specimen.diameter / 4.0
    nearest = cKDTree(centres).query(centres, k=2)[0][:, 1]
    assert nearest.min() >= 0.9 * diameter - 1e-9
    assert (nearest < 0.95 * diameter).mean() > 0.4
    assert (made.particles[["origin_x", "origin_y"]] == 0).all(axis=None)


def test_a_full_micrograph_ends_with_what_fits(specimen: Specimen) -> None:
    made = make(specimen, particles=5000, spacing=1.0)
    diameter = specimen.diameter / 4.0
    assert 60 < len(made.particles) < 512 * 384 / (0.7 * diameter**2)


def test_particles_reach_in_across_the_border(specimen: Specimen) -> None:
    made = make(specimen, particles=100, **{**CLEAN, "touching": 0.0})
    left = made.mask[:, 0] == PARTICLE
    centres = made.particles[["coordinate_x", "coordinate_y"]].to_numpy()
    y = np.arange(384)
    known = np.zeros(384, dtype=bool)
    for cx, cy in centres:
        known |= (cx**2 + (y - cy) ** 2) < (specimen.diameter / 8.0) ** 2
    assert (left & ~known).any()


def test_mask_says_what_is_where(specimen: Specimen) -> None:
    made = make(specimen, carbon=1.0, contamination=4.0, width=1024, height=1024, particles=150, spacing=1.05)
    values, counts = np.unique(made.mask, return_counts=True)
    assert values.tolist() == [BACKGROUND, PARTICLE, CONTAMINATION, CARBON]
    assert counts[CARBON] > 0.02 * made.mask.size
    ground = made.image[made.mask == BACKGROUND].mean()
    assert made.image[made.mask == CARBON].mean() < 0.95 * ground
    assert made.image[made.mask == CONTAMINATION].mean() < 0.98 * ground
    at = np.rint(made.particles[["coordinate_x", "coordinate_y"]].to_numpy()).astype(int)
    assert (made.mask[at[:, 1], at[:, 0]] == PARTICLE).all()
    assert len(at) < 150
    # A disc for each particle that the border and the dirt leave whole.
    area = math.pi * (specimen.diameter / 8.0) ** 2
    assert counts[PARTICLE] == pytest.approx(len(at) * area, rel=0.25)


def test_same_seed_and_index_same_micrograph_in_any_order(specimen: Specimen) -> None:
    first = [make(specimen, i) for i in (0, 1)]
    again = [make(specimen, i) for i in (1, 0)][::-1]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.mask, b.mask)
        assert a.particles.equals(b.particles)
    assert (first[0].image != first[1].image).mean() > 0.5
    assert (make(specimen, 0, seed=1).image != first[0].image).mean() > 0.5


def test_dirt_moves_no_particle(specimen: Specimen) -> None:
    clean, dirty = make(specimen, carbon=0.0, contamination=0.0), make(specimen, carbon=0.0, contamination=3.0, snr=0.4)
    merged = dirty.particles.merge(
        clean.particles, on=["coordinate_x", "coordinate_y", "rot", "tilt", "psi", "defocus_u"]
    )
    assert len(merged) == len(dirty.particles) > 0


def test_preferred_views(specimen: Specimen) -> None:
    def polar(preferred: float) -> float:
        tilt = np.concatenate([make(specimen, i, preferred=preferred, particles=60).particles.tilt for i in range(4)])
        return float(np.abs(np.cos(np.deg2rad(tilt))).mean())

    # The mean of |cos| is 1/2 for uniform views, 1 - 1/c + 1/(e^c - 1) for the concentration c.
    assert polar(0.0) == pytest.approx(0.5, abs=0.08)
    assert polar(6.0) == pytest.approx(1 - 1 / 6 + 1 / (math.exp(6) - 1), abs=0.05)


def test_hot_pixels_and_detector_blur(specimen: Specimen) -> None:
    hot = make(specimen, particles=0, **{**CLEAN, "hot_pixels": 8.0})
    assert 1 <= (hot.image > 120).sum() <= 20
    blurred = make(specimen, particles=0, **{**CLEAN, "mtf_nyquist": 0.5})
    power = np.abs(np.fft.rfft2(blurred.image - blurred.image.mean())) ** 2
    assert power[:, 245:].mean() / power[:, 2:12].mean() == pytest.approx(
        # On the Nyquist edge of x, averaged over y.
        0.25,
        rel=0.15,
    )


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"defocus_min": 2e4, "defocus_max": 1e4}, {"snr": 0}, {"mtf_nyquist": 1.2}, {"particle": 3}):
        with pytest.raises(ValidationError):
            SimulateSettings(**wrong)
