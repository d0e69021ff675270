"""Sums over particles that an expectation step leaves: the noise spectrum and figures of the posterior."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryoseg_dist.kernels.matching import Observations, shift_phases
from cryoseg_dist.kernels.pose_accuracy import angular_accuracy
from cryoseg_dist.kernels.slices import project_pixels
from cryoseg_dist.stages.refine_state import State


@dataclass(frozen=True, slots=True)
class Likeliest:
    """A batch at its likeliest poses.

    Attributes
    ----------
    weights : Tensor, float32, shape (b, k)
        Of the poses; they add up to one.
    images, slices : Tensor, complex64, shape (b, k, n_fine)
        Images moved by the poses' shifts, slices times transfer functions.
    """

    weights: Tensor
    images: Tensor
    slices: Tensor


class Sums:
    """Sums over a unit's particles for the noise spectrum and the figures of an iteration."""

    # Poses that the residual is taken over; the rest hold next to nothing.
    POSES = 4

    def __init__(self, n_shells: int, tested: int = 0, n_micrographs: int = 0) -> None:
        self.tested = tested
        self.scale = torch.zeros((2, n_micrographs), dtype=torch.float64)
        self.noise = torch.zeros(n_shells, dtype=torch.float64)
        self.count = torch.zeros(n_shells, dtype=torch.float64)
        self.n = self.n_tested = 0
        self.angular_accuracy = 0.0
        self.best = self.square_shift = self.square_origin = self.log_likelihood = self.n_significant = 0.0

    def add(
        self,
        images: Tensor,
        transfer: Tensor,
        rotations: Tensor,
        shifts: Tensor,
        centre: Tensor,
        weights: Tensor,
        scores: Tensor,
        state: State,
        half: int,
        any_scale: bool,
    ) -> Likeliest:
        """Add a batch: ``images`` and ``transfer`` are (b, p) over the whole disc; what it holds at its likeliest poses."""
        b, n = images.shape[0], state.n_fine
        k = min(self.POSES, weights.shape[1])
        ky, kx = state.ky[:n], state.kx[:n]
        top = weights[:, :k] / weights[:, :k].sum(dim=1, keepdim=True)
        projections = project_pixels(state.volumes[half], rotations[:, :k].reshape(-1, 3, 3), ky, kx)
        signal = transfer[:, None, :n] * projections.reshape(b, k, n)
        phases = shift_phases(shifts[:, :k].reshape(-1, 2), ky, kx, state.size).reshape(b, k, n)
        moved = images[:, None, :n] * phases
        if any_scale:
            scale = (moved * signal.conj()).real.sum(dim=(1, 2)) / signal.abs().square().sum(dim=(1, 2)).clamp(
                min=1e-12
            )
            signal = signal * scale.clamp(min=0.0)[:, None, None]
        residual = images.abs().square()
        # Beyond the pixels that poses are found with, the whole power counts as noise.
        residual[:, :n] = (top[..., None] * (moved - signal).abs().square()).sum(dim=1)
        shell = state.shell.cpu()
        self.noise.index_add_(0, shell, residual.sum(dim=0).double().cpu())
        self.count.index_add_(0, shell, torch.full(shell.shape, 2.0 * b, dtype=torch.float64))
        self.n += b
        self.best += float(weights.amax(dim=1).sum())
        self.square_shift += float((weights[..., None] * shifts.square()).sum())
        self.square_origin += float((weights[..., None] * (centre[:, None] + shifts).square()).sum())
        self.log_likelihood += float(scores.amax(dim=1).sum())
        self.n_significant += float((1.0 / weights.square().sum(dim=1)).sum())
        return Likeliest(top, moved, signal)

    def add_scales(self, at: Likeliest, noise: Tensor, micrographs: Tensor) -> None:
        """Add how images fit their slices, given the noise variance (n_fine,), to the micrograph (b,) of each."""
        cross = ((at.images * at.slices.conj()).real / noise).sum(dim=2)
        power = (at.slices.abs().square() / noise).sum(dim=2)
        fits = torch.stack(((at.weights * cross).sum(dim=1), (at.weights * power).sum(dim=1)))
        self.scale.index_add_(1, micrographs, fits.double().cpu())

    def add_accuracy(self, observations: Observations, rotations: Tensor, state: State, half: int) -> None:
        """Estimate the angular accuracy of the unit's first particles from their best rotations (b, 3, 3)."""
        left = slice(0, max(0, self.tested - self.n_tested))
        n, tested = state.n_fine, rotations[left]
        if not len(tested):
            return
        weight = observations.weight[left, :n]
        found = angular_accuracy(state.volumes[half], tested, weight, state.ky[:n], state.kx[:n])
        self.angular_accuracy += float(found.sum())
        self.n_tested += len(tested)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "noise": self.noise.tolist(),
            "count": self.count.tolist(),
            "n": self.n,
            "max_probability": self.best,
            "square_shift": self.square_shift,
            "square_origin": self.square_origin,
            "log_likelihood": self.log_likelihood,
            "n_significant": self.n_significant,
            "angular_accuracy": self.angular_accuracy,
            "n_tested": self.n_tested,
            "scale": self.scale.tolist(),
        }
