"""How a network runs when it is not trained."""

import torch
from torch import Tensor

from cryoseg_dist.networks.unet import UNet


def for_inference(network: UNet, device: torch.device, compiled: bool = False) -> UNet:
    """The network on its device, channels last; in bfloat16 on a GPU, whose matrix units are made for it.

    Parameters
    ----------
    network : UNet
        Without batch normalisation.
    device : torch.device
    compiled : bool
        Compile it at its first image, for images of that extent; on a GPU only.
    """
    if device.type == "cpu":
        return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = network.eval().to(device, torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        network.compile()
    return network


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
