"""The network, and the picks that come of it."""

import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.gpu.measuring import DEVICE, generator, seconds, tell


def unet_flops(architecture: Any, height: int, width: int) -> float:
    """Floating point operations of one padded pass."""
    a, total = architecture, 0.0
    for level in range(a.depth + 1):
        pixels, c = (height >> level) * (width >> level), a.width << level
        total += 2 * 9 * pixels * c * (a.in_channels if level == 0 else c // 2) + 2 * 9 * pixels * c * c
        if level < a.depth:
            total += 2 * 9 * pixels * c * 2 * c + 2 * 9 * pixels * c * c + 2 * 4 * (pixels // 4) * c * 2 * c
    return total + 2 * height * width * a.width * a.classes


def shipped() -> tuple[Any, dict[str, Tensor]]:
    """The network that comes with the package."""
    from safetensors import safe_open

    from cryoseg_dist.networks.unet import Architecture

    with safe_open(
        str(files("cryoseg_dist.networks") / "weights" / "default.safetensors"), framework="numpy"
    ) as handle:
        metadata = json.loads(handle.metadata()["cryoseg"])
        tensors = {name: torch.from_numpy(handle.get_tensor(name)).float() for name in handle.keys()}  # noqa: SIM118
    return Architecture.from_dict(metadata["architecture"]), tensors


def unet(compiled: bool = False) -> None:
    """Images a second through the network."""
    from cryoseg_dist.networks.inference import class_probabilities, for_inference
    from cryoseg_dist.networks.unet import Architecture, UNet

    torch.backends.cudnn.benchmark = True
    cases = [
        ("base 32", Architecture(width=32, padded=True, batch_norm=False), 1024, 8),
        ("base 64", Architecture(width=64, padded=True, batch_norm=False), 1024, 8),
        ("base 64", Architecture(width=64, padded=True, batch_norm=False), 4096, 1),
        ("shipped", shipped()[0], 1024, 16),
    ]
    for name, architecture, extent, batch in cases:
        network = for_inference(UNet(architecture), DEVICE, compiled)
        x = torch.randn((batch, 1, extent, extent), device=DEVICE)
        began = time.perf_counter()
        with torch.inference_mode():
            class_probabilities(network, x)
            torch.cuda.synchronize()
            first = time.perf_counter() - began
            taken = seconds(lambda network=network, x=x: class_probabilities(network, x), 5, 1)
        rate = batch / taken
        tell(
            "unet",
            f"{name}, {extent}{', compiled' if compiled else ''}",
            images_s=rate,
            tflop_s=rate * unet_flops(architecture, extent, extent) / 1e12,
            first_s=first,
            batch=batch,
        )
        torch.cuda.empty_cache()


def picks(micrograph: Path | None) -> None:
    """The segmentation stage on the card and on the processor: probabilities and picks of one micrograph."""
    from cryoseg_dist.kernels.evaluation import match_centres
    from cryoseg_dist.schema.work import Region, Unit
    from cryoseg_dist.stages.pick import PickSettings, PickStage
    from cryoseg_dist.stages.segment import SegmentGeometry, SegmentSettings, SegmentStage

    architecture, weights = shipped()
    if micrograph is None:
        g = generator(4)
        image = torch.randn((1024, 1024), generator=g).numpy()
    else:
        image = np.load(micrograph).astype(np.float32)
    pixel, diameter = 1.5, 130.0
    wanted = diameter / 16.0
    from cryoseg_dist.kernels.rescale import rescale_ratio, rescaled_shape

    ratio = rescale_ratio(pixel, wanted)
    where = SegmentGeometry("m", image.shape, pixel, float(pixel / ratio), rescaled_shape(image.shape, ratio))
    stage = SegmentStage(
        SegmentSettings(), architecture, {k: v.numpy() for k, v in weights.items()}, diameter, True, where
    )
    unit = Unit("s", {}, {"probability": Region("p", (0, 0, 0, 0), (1, 4, *where.extent))}, {"index": 0})
    found, probability = [], []
    for device in ("cpu", "cuda"):
        network = stage.setup({}, device)
        result = stage.compute(unit, {"image": image[None]}, network)
        began = time.perf_counter()
        for _ in range(5):
            result = stage.compute(unit, {"image": image[None]}, network)
        taken = (time.perf_counter() - began) / 5
        tell("picks", f"segmenting {image.shape[1]} x {image.shape[0]} on {device}", seconds=taken)
        probability.append(result.arrays["probability"].astype(np.float32))
        pick = PickStage(PickSettings(), diameter / where.pixel_size, where.pixel_size / pixel)
        target = Unit("p", {}, {"picks": Region("p", (0, 0, 0), (1, 4000, 3))}, {"index": 0})
        table = pick.compute(target, {"probability": result.arrays["probability"]}, None).arrays["picks"][0]
        found.append(table[np.isfinite(table[:, 0]) & (table[:, 2] > 0.5)])
    both = match_centres(found[1][:, :2], found[0][:, :2], 0.05 * diameter / pixel)
    tell(
        "picks",
        "card against processor",
        picks=len(found[0]),
        recall=both.recall,
        precision=both.precision,
        probability=float(np.abs(probability[0] - probability[1]).max() / 255.0),
    )
