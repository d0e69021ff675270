"""Grey values of a micrograph as the network sees them."""

import torch
from torch import Tensor

CLIP = 6.0


def robust_standardise(image: Tensor) -> tuple[Tensor, float, float]:
    """Subtract the median and divide by the robust standard deviation (interquartile range / 1.349).

    Returns
    -------
    Tensor, float
        Standardised image, and the median and deviation taken from it. The deviation is 0 for an image
        of which half the pixels are equal; the image is then only shifted.
    """
    flat = image.flatten()
    sample = flat[:: max(1, flat.numel() // 500_000)].to(torch.float32)
    low, middle, high = torch.quantile(sample, torch.tensor([0.25, 0.5, 0.75], device=sample.device)).tolist()
    deviation = (high - low) / 1.349
    return (image - middle) / (deviation if deviation > 0 else 1.0), middle, deviation


def network_input(image: Tensor, diameter_px: float, protein_dark: bool) -> Tensor:
    """Prepare a whole micrograph for segmentation: protein white, flat, robustly scaled, clipped.

    Ice gradients slower than four particle diameters are removed with a Gaussian high pass. It is done once a
    micrograph, never a tile, so that tiles agree.

    Parameters
    ----------
    image : Tensor, float32, shape (y, x)
    diameter_px : float
        Particle diameter in pixels of this image.
    protein_dark : bool

    Returns
    -------
    Tensor, float32, shape (y, x)
        Within [-6, 6].
    """
    standard, _, _ = robust_standardise(image)
    # A hot pixel must not ring through the high pass.
    standard = standard.clamp(-2 * CLIP, 2 * CLIP)
    height, width = standard.shape
    pad_y, pad_x = min(height // 8, 32), min(width // 8, 32)
    framed = torch.nn.functional.pad(standard[None, None], (pad_x, pad_x, pad_y, pad_y), mode="reflect")[0, 0]
    fy = torch.fft.fftfreq(framed.shape[0], device=framed.device)[:, None]
    fx = torch.fft.rfftfreq(framed.shape[1], device=framed.device)[None, :]
    sigma = 1.0 / (4.0 * diameter_px)
    high_pass = 1.0 - torch.exp(-(fx * fx + fy * fy) / (2.0 * sigma * sigma))
    flat = torch.fft.irfft2(torch.fft.rfft2(framed) * high_pass, s=framed.shape)
    flat = flat[pad_y : pad_y + height, pad_x : pad_x + width]
    out, _, _ = robust_standardise(-flat if protein_dark else flat)
    return out.clamp(-CLIP, CLIP)
