"""How well a network finds particles in patches with known truth."""

import numpy as np
import torch
from scipy import ndimage

from cryoseg_dist.kernels.evaluation import PickingScore, match_centres
from cryoseg_dist.kernels.peaks import find_peaks
from cryoseg_dist.kernels.tiles import predict
from cryoseg_dist.networks.unet import UNet
from cryoseg_dist.stages.segment import network_tiling
from cryoseg_dist.training.sample import CORE, PARTICLE, PARTICLE_PX, SampleSource

MIN_DISTANCE = 0.7
HELD_OUT = 1 << 20


def detection(
    network: UNet, source: SampleSource, *, patches: int, size: int, seed: int, threshold: float = 0.4
) -> PickingScore:
    """Match the peaks of a network with the particles of patches, within half a diameter.

    Particles and peaks nearer than half a diameter to a patch's border do not count.

    Parameters
    ----------
    network : UNet
        For inference.
    source : Callable
        Makes the patches.
    patches, size : int
        Number and side of the patches.
    seed : int
        Whatever it is, no training with fewer than ``HELD_OUT`` patches a batch has seen these patches.
    threshold : float
        Score from which a peak is a pick.

    Returns
    -------
    PickingScore
        Errors in pixels of the patches.
    """
    found: list[np.ndarray] = []
    known: list[np.ndarray] = []
    margin = 0.5 * PARTICLE_PX
    for i in range(patches):
        sample = source(np.random.default_rng([seed, i, HELD_OUT]), size)
        with torch.inference_mode():
            logits = predict(torch.from_numpy(sample.image)[None], network, network_tiling(network.architecture), None)
            probability = logits.softmax(dim=0)[PARTICLE]
        peaks = find_peaks(probability, CORE * PARTICLE_PX, MIN_DISTANCE * PARTICLE_PX, threshold)
        picks = torch.stack((peaks.x, peaks.y), dim=1).numpy()
        numbers = np.unique(sample.objects[sample.objects > 0])
        truth = np.array(ndimage.center_of_mass(sample.objects > 0, sample.objects, numbers)).reshape(-1, 2)[:, ::-1]
        # Patches far apart, so that one matching serves all.
        offset = np.array((0.0, 10.0 * size * i))
        for points, out in ((picks, found), (truth, known)):
            inside = ((points >= margin) & (points <= size - 1 - margin)).all(axis=1)
            out.append(points[inside] + offset)
    return match_centres(np.concatenate(found), np.concatenate(known), 0.5 * PARTICLE_PX)
