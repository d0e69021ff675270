"""Transfer functions and phase errors of images that were taken in different ways."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cryoseg_dist.kernels.aberrations import antisymmetric_phase, symmetric_phase
from cryoseg_dist.kernels.ctf import ctf_pixels, phase_factors, wavelength
from cryoseg_dist.kernels.magnification import is_magnified, matrices, of_form
from cryoseg_dist.schema.optics import Optics


class Microscope:
    """Optics groups at some Fourier pixels: what each did to the images of its group.

    Images are described by columns, shape (n, 4), (n, 5) or (n, 7): defocus U, V in A, angle and phase shift in degrees, the index of
    the image's group, and scale and B-factor in A^2 of its envelope. Images without a fifth column belong to the first group, those
    without a seventh have no envelope.

    Parameters
    ----------
    optics : Optics or sequence of Optics
        The groups; of one pixel size.
    size : int
        Extent of the images.
    ky, kx : Tensor, int64, shape (p,)
        Signed indices of the pixels.
    """

    def __init__(self, optics: Optics | Sequence[Optics], size: int, ky: Tensor, kx: Tensor) -> None:
        self.groups = (optics,) if isinstance(optics, Optics) else tuple(optics)
        self._size, self._ky, self._kx = size, ky, kx
        self._matrices = matrices(self.groups) if is_magnified(self.groups) else None
        # Computed in double precision: k^3 and higher powers lose much.
        scale = 1.0 / (size * self.groups[0].pixel_size)
        plain = torch.stack((kx.double(), ky.double())) * scale
        # Of each group, unless all see the same.
        seen = plain[None] if self._matrices is None else self._matrices.to(plain) @ plain
        self._square = seen.square().sum(dim=1).float()
        magnified = seen.expand(len(self.groups), -1, -1)
        self._even: Tensor | None = None
        self._odd: Tensor | None = None
        if any(any(g.even_aberrations) for g in self.groups) or self._matrices is not None:
            phases = []
            for g, (x, y) in zip(self.groups, magnified, strict=True):
                # Of the magnified k^4, which is no multiple of k^4, what the factor of k^4 does not say.
                quartic = (x * x + y * y).square() - plain.square().sum(dim=0).square()
                quartic *= 0.5 * math.pi * wavelength(g.voltage) ** 3 * g.spherical_aberration * 1e7
                phases.append(symmetric_phase(y, x, g.even_aberrations) + quartic)
            self._even = torch.stack(phases).float()
        if any(any((*g.beam_tilt, *g.odd_aberrations)) for g in self.groups):
            phases = [
                antisymmetric_phase(
                    y,
                    x,
                    g.beam_tilt,
                    g.odd_aberrations,
                    voltage=g.voltage,
                    spherical_aberration=g.spherical_aberration,
                )
                for g, (x, y) in zip(self.groups, magnified, strict=True)
            ]
            angle = -torch.stack(phases)
            self._odd = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)

    @property
    def even(self) -> Tensor | None:
        """Radians that even aberrations and magnification take from the phase, float32, shape (groups, p); nothing where there are none."""
        return self._even

    @property
    def odd(self) -> Tensor | None:
        """Factors that undo odd aberrations, complex64, shape (groups, p); nothing where there are none."""
        return self._odd

    def group(self, columns: Tensor) -> Tensor:
        """Group of each image, int64, shape (n,), in the memory of the processor."""
        return columns[:, 4].long().cpu() if columns.shape[1] > 4 else torch.zeros(len(columns), dtype=torch.int64)

    def _constants(self, columns: Tensor) -> dict[str, Tensor]:
        values = torch.tensor(
            [(g.voltage, g.spherical_aberration, g.amplitude_contrast) for g in self.groups], dtype=torch.float64
        )[self.group(columns)]
        return {"voltage": values[:, 0], "spherical_aberration": values[:, 1], "amplitude_contrast": values[:, 2]}

    def phase_factors(self, columns: Tensor) -> Tensor:
        """Those of :func:`~cryoseg_dist.kernels.ctf.phase_factors`, shape (n, 5)."""
        factors = phase_factors(*columns[:, :4].to(self._ky.device).unbind(1), **self._constants(columns))
        if self._matrices is not None:
            matrix = self._matrices[self.group(columns)].to(factors.device)
            factors[:, :3] = of_form(factors[:, :3].double(), matrix).float()
        return factors

    def magnify(self, rotations: Tensor, columns: Tensor) -> None:
        """Put the magnification of their groups, in place, on the axes of slices: the first two rows of rotations (n, 3, 3)."""
        if self._matrices is not None:
            rotations[:, :2] = self._matrices[self.group(columns)].to(rotations).mT @ rotations[:, :2]

    def envelope(self, columns: Tensor) -> Tensor | None:
        """What scales the transfer functions, ``scale exp(-B k^2 / 4)``, float32, shape (n, p); nothing where nothing does."""
        if columns.shape[1] < 7:
            return None
        scale, b_factor = columns[:, 5:7, None].to(self._square.device).unbind(1)
        square = self._square if self._matrices is None else self._square[self.group(columns)]
        return scale * torch.exp(-0.25 * b_factor * square)

    def sine(self, columns: Tensor) -> Tensor:
        """Transfer functions without their envelopes, float32, shape (n, p)."""
        offset = None if self._even is None else self._even[self.group(columns)]
        pixel_size = self.groups[0].pixel_size
        return ctf_pixels(self._ky, self._kx, self._size, pixel_size, self.phase_factors(columns), offset)

    def ctf(self, columns: Tensor) -> Tensor:
        """Transfer functions, float32, shape (n, p)."""
        sine, envelope = self.sine(columns), self.envelope(columns)
        return sine if envelope is None else sine * envelope

    def dampen(self, weights: Tensor, columns: Tensor, *data: Tensor) -> None:
        """Put envelopes, in place, on what was weighted without them: once on data (n, p), twice on their weights (n, p)."""
        envelope = self.envelope(columns)
        if envelope is not None:
            weights *= envelope * envelope
            for some in data:
                some *= envelope

    def in_phase(self, spectra: Tensor, columns: Tensor) -> Tensor:
        """Spectra (n, p) without the phase errors of odd aberrations; themselves where there are none."""
        if self._odd is None:
            return spectra
        return spectra * self._odd[self.group(columns)]
