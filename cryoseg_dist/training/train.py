"""Fitting the segmentation network."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from cryoseg_dist.errors import BadInputError
from cryoseg_dist.networks.losses import segmentation_loss
from cryoseg_dist.networks.unet import Architecture, UNet, fold_batch_norm, valid_input_extent
from cryoseg_dist.networks.weight_map import separation_weights
from cryoseg_dist.schema.settings import Settings
from cryoseg_dist.store.checksums import sha256_of
from cryoseg_dist.store.weights import read_weights, write_weights
from cryoseg_dist.training.sample import (
    CARBON,
    CLASSES,
    CONTAMINATION,
    PARTICLE,
    PARTICLE_PX,
    SampleSource,
)


class TrainSettings(Settings):
    """How the network is fitted."""

    iterations: int = Field(default=2000, ge=1)
    """Number of batches."""
    batch: int = Field(default=8, ge=1)
    """Patches a batch."""
    patch: int = Field(default=192, ge=16)
    """Side of a patch in pixels of the network's input; a multiple of 2**depth for padded convolutions."""
    depth: int = Field(default=4, ge=1, le=6)
    """Number of poolings."""
    width: int = Field(default=16, ge=2, le=128)
    """Channels of the first level."""
    padded: bool = True
    """Padded convolutions; valid ones, as first published, when false: the patch is then the network's output."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Largest rate of AdamW; it rises over the first twentieth and falls as a cosine."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Decay of the weights."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout at the end of the contracting path."""
    dice_share: float = Field(default=0.5, ge=0)
    """Weight of the Dice loss beside the cross-entropy."""
    average_decay: float = Field(default=0.995, ge=0, lt=1)
    """Decay of the running average of the weights that is kept as the result."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Batches between checkpoints."""
    half_precision: bool = True
    """Convolve in bfloat16, about twice as fast where the processor has it; the weights stay float32."""
    seed: int = 0
    """Seed of weights and patches."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Where the model is and how it did.

    Attributes
    ----------
    model : Path
    iterations : int
    loss : float
        Mean over the last tenth.
    metrics : Mapping of str to float
        Dice coefficient of each class over the last tenth.
    """

    model: Path
    iterations: int
    loss: float
    metrics: Mapping[str, float]


def batch_of(
    source: SampleSource, settings: TrainSettings, iteration: int, margin: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and weights of one iteration, the same whenever it is asked for.

    Images are larger than labels and weights by ``margin`` pixels on each side.
    """
    images, labels, weights = [], [], []
    inner = slice(margin, margin + settings.patch)
    for i in range(settings.batch):
        sample = source(np.random.default_rng([settings.seed, iteration, i]), settings.patch + 2 * margin)
        images.append(sample.image)
        labels.append(sample.labels[inner, inner])
        ridge = separation_weights(sample.labels, sample.objects, border_weight=4.0, sigma_px=0.15 * PARTICLE_PX)
        weights.append((ridge * sample.valid)[inner, inner])
    return (
        torch.from_numpy(np.stack(images))[:, None],
        torch.from_numpy(np.stack(labels)),
        torch.from_numpy(np.stack(weights)),
    )


def learning_rate(settings: TrainSettings, iteration: int) -> float:
    """Rate of an iteration: linear rise, cosine fall."""
    warm = max(1, settings.iterations // 20)
    if iteration < warm:
        return settings.learning_rate * (iteration + 1) / warm
    done = (iteration - warm) / max(1, settings.iterations - warm)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def load_model(path: Path) -> tuple[UNet, dict[str, Any]]:
    """A network for inference and its metadata.

    Raises
    ------
    BadInputError
        The file does not hold a network of its own architecture.
    """
    tensors, metadata = read_weights(path)
    try:
        network = UNet(Architecture.from_dict(metadata["architecture"]))
        network.load_state_dict({k: torch.from_numpy(v.astype(np.float32)) for k, v in tensors.items()})
    except (KeyError, TypeError, RuntimeError) as fault:
        raise BadInputError(str(path), "weights of a segmentation network", str(fault)) from None
    return network.eval(), metadata


def save_model(path: Path, network: UNet, metadata: Mapping[str, Any]) -> None:
    """Write a network for inference: batch normalisation folded, half precision."""
    folded = fold_batch_norm(network)
    tensors = {k: v.detach().numpy().astype(np.float16) for k, v in folded.state_dict().items()}
    described = {"architecture": folded.architecture.to_dict(), "classes": CLASSES, "particle_px": PARTICLE_PX}
    write_weights(path, tensors, {**described, **metadata})


class _Checkpoint:
    """Everything a training needs to go on as if it had never stopped."""

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device

    def save(self, state: Mapping[str, Any]) -> None:
        partial = self.path.with_suffix(".partial")
        torch.save(dict(state), partial)
        partial.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location=self.device)
        return state


def _cut_log(path: Path, first: int) -> None:
    """Drop the lines of iterations that will be repeated, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if entry["iteration"] >= first:
            break
        kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")


def train(
    settings: TrainSettings,
    source: SampleSource,
    output: Path,
    *,
    start_from: Path | None = None,
    data: str = "",
    device: str = "cpu",
    on_progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Fit the network, or go on where an earlier call with the same settings stopped.

    Parameters
    ----------
    settings : TrainSettings
    source : Callable
        ``source(generator, size)`` makes one patch.
    output : Path
        Folder of ``model.safetensors``, ``checkpoint.pt`` and ``log.jsonl``.
    start_from : Path, optional
        A model whose weights are the start (fine-tuning); its architecture is taken.
    data : str
        What the source draws from; a training that began with other data is not continued.
    device : str
        Torch device to fit on. A resumed training repeats the numbers of an uninterrupted one on the CPU; a GPU's
        sums are not reproducible.
    on_progress : Callable, optional
        Called with the iteration, their number and the metrics.
    metadata : Mapping, optional
        JSON values kept in the model.

    Raises
    ------
    BadInputError
        The folder holds a training with other settings or data, or the patch does not suit the depth.
    """
    output.mkdir(parents=True, exist_ok=True)
    if start_from is None:
        a = Architecture(
            depth=settings.depth,
            width=settings.width,
            classes=len(CLASSES),
            padded=settings.padded,
            dropout=settings.dropout,
        )
    else:
        _, described = load_model(start_from)
        a = Architecture.from_dict({**described["architecture"], "dropout": settings.dropout})
    margin = 0 if a.padded else a.margin
    fitting = -(-settings.patch // a.stride) * a.stride if a.padded else valid_input_extent(a, settings.patch)[1]
    if settings.patch != fitting:
        raise BadInputError(
            "train.patch", f"an extent that suits depth {a.depth}", str(settings.patch), f"Take {fitting}."
        )
    torch.manual_seed(settings.seed)
    network = UNet(a).to(device)
    if start_from is not None:
        network.load_state_dict(load_model(start_from)[0].state_dict())
    average = {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    identity = json.dumps(
        [settings.model_dump(), a.to_dict(), sha256_of(start_from) if start_from else None, data], sort_keys=True
    )
    checkpoint = _Checkpoint(output / "checkpoint.pt", device)
    first, history = 0, []
    held = checkpoint.load()
    if held is not None:
        if held["identity"] != identity:
            raise BadInputError(
                str(output), "a training with the same settings", "another one", "Name another folder to start anew."
            )
        network.load_state_dict(held["network"])
        optimizer.load_state_dict(held["optimizer"])
        average, first, history = held["average"], held["iteration"], held["history"]
    started = time.monotonic()
    _cut_log(output / "log.jsonl", first)
    with (output / "log.jsonl").open("a", encoding="utf-8") as log:
        for iteration in range(first, settings.iterations):
            images, labels, weights = (t.to(device) for t in batch_of(source, settings, iteration, margin))
            # Dropout draws from this seed, so that a resumed training repeats it.
            torch.manual_seed(settings.seed * 1_000_003 + iteration)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, iteration)
            network.train()
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.half_precision):
                logits = network(images.contiguous(memory_format=torch.channels_last))
            logits = logits.float()
            loss = segmentation_loss(logits, labels, weights, settings.dice_share)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            decay = min(settings.average_decay, (iteration + 1) / (iteration + 10))
            for name, value in network.state_dict().items():
                if value.dtype.is_floating_point:
                    average[name].lerp_(value, 1.0 - decay)
                else:
                    average[name].copy_(value)
            figures = {"loss": float(loss.detach()), **dice_by_class(logits.detach(), labels)}
            history.append(figures)
            log.write(json.dumps({"iteration": iteration, "seconds": time.monotonic() - started, **figures}) + "\n")
            log.flush()
            if (iteration + 1) % settings.checkpoint_every == 0 or iteration + 1 == settings.iterations:
                checkpoint.save(
                    {
                        "identity": identity,
                        "network": network.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "average": average,
                        "iteration": iteration + 1,
                        "history": history,
                    }
                )
            if on_progress is not None:
                on_progress(iteration + 1, settings.iterations, figures)
    network.load_state_dict(average)
    network.cpu()
    tail = history[-max(1, len(history) // 10) :]
    names = sorted({name for figures in tail for name in figures})
    means = {n: float(np.mean([f[n] for f in tail if n in f])) for n in names}
    model = output / "model.safetensors"
    save_model(model, network, {"settings": settings.model_dump(), "metrics": means, **(metadata or {})})
    return TrainResult(model, settings.iterations, means.pop("loss"), means)


def dice_by_class(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Hard Dice coefficient of each class present in a batch."""
    found = logits.argmax(dim=1)
    out = {}
    for number in (PARTICLE, CONTAMINATION, CARBON):
        a, b = found == number, labels == number
        total = int(a.sum() + b.sum())
        if bool(b.any()):
            out[f"dice_{CLASSES[number]}"] = 2.0 * float((a & b).sum()) / total
    return out
