"""How a network runs when it is not trained."""

import torch
from torch import Tensor

from cryoseg_dist.networks.unet import UNet


def for_inference(network: UNet, device: torch.device) -> UNet:
    """The network on its device, channels last; in bfloat16 on a GPU, whose matrix units are made for it."""
    if device.type != "cpu":
        network = network.to(torch.bfloat16)
    return network.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def class_probabilities(network: UNet, images: Tensor) -> Tensor:
    """Probabilities of each class, float32, from a network of :func:`for_inference`.

    Parameters
    ----------
    images : Tensor, float32, shape (b, channels, y, x)

    Returns
    -------
    Tensor, shape (b, classes, y', x')
    """
    kind = next(network.parameters()).dtype
    logits = network(images.to(kind).contiguous(memory_format=torch.channels_last))
    return logits.to(torch.float32).softmax(dim=1)
