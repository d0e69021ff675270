"""The U-Net family (Ronneberger, Fischer & Brox 2015)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@dataclass(frozen=True, slots=True)
class Architecture:
    """What determines a network's layers.

    Attributes
    ----------
    depth : int
        Number of poolings.
    width : int
        Channels of the first level; each level doubles them.
    classes : int
        Output channels.
    in_channels : int
    padded : bool
        Convolutions padded by one pixel; valid ones, as published, when false.
    batch_norm : bool
        Normalise batches while training; folded into the convolutions for inference.
    dropout : float
        Probability at the end of the contracting path.
    """

    depth: int = 4
    width: int = 16
    classes: int = 4
    in_channels: int = 1
    padded: bool = False
    batch_norm: bool = True
    dropout: float = 0.5

    @property
    def stride(self) -> int:
        """Pixels after which the pooling grid repeats: tile strides are multiples of it."""
        return 2**self.depth

    @property
    def margin(self) -> int:
        """Pixels lost on each side by valid convolutions."""
        # Two 3x3 convolutions a level going down and up; each reaches 2**level pixels of the input.
        return sum(2 * 2**level * (1 if level == self.depth else 2) for level in range(self.depth + 1))

    @property
    def reach(self) -> int:
        """Pixels by which a block of output, in phase with the pooling grid, sees beyond itself."""
        low = 0
        for _ in range(self.depth):
            low = (low - 2) // 2  # Two convolutions, then the pixel's parent in the coarser level.
        low -= 2
        for _ in range(self.depth):
            low = 2 * low - 2
        return -low

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Architecture":
        """From :meth:`to_dict`."""
        return cls(**values)


class _Convolutions(nn.Module):
    """Two 3x3 convolutions with ReLU."""

    def __init__(self, n_in: int, n_out: int, architecture: Architecture) -> None:
        super().__init__()
        padding = 1 if architecture.padded else 0
        self.first = nn.Conv2d(n_in, n_out, 3, padding=padding)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=padding)
        norm = architecture.batch_norm
        self.norm_first: nn.Module = nn.BatchNorm2d(n_out) if norm else nn.Identity()
        self.norm_second: nn.Module = nn.BatchNorm2d(n_out) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm_first(self.first(x)))
        return torch.relu(self.norm_second(self.second(x)))


def centre_crop(x: Tensor, height: int, width: int) -> Tensor:
    """Central part of the trailing two axes."""
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


class UNet(nn.Module):
    """A U-Net of the given architecture.

    Input (b, in_channels, y, x), output logits (b, classes, y', x'): the same extent when padded, smaller by
    twice the margin when valid. Extents must suit the poolings: see :func:`valid_input_extent`.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = a = architecture
        channels = [a.width * 2**level for level in range(a.depth + 1)]
        self.down = nn.ModuleList(
            _Convolutions(a.in_channels if level == 0 else channels[level - 1], c, a)
            for level, c in enumerate(channels)
        )
        self.dropout = nn.Dropout2d(a.dropout)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(channels[level + 1], channels[level], 2, stride=2) for level in range(a.depth)
        )
        self.merge = nn.ModuleList(_Convolutions(2 * channels[level], channels[level], a) for level in range(a.depth))
        self.head = nn.Conv2d(a.width, a.classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        kept = []
        for level, block in enumerate(self.down):
            if level:
                x = torch.max_pool2d(x, 2)
            x = block(x)
            kept.append(x)
        x = self.dropout(x)
        for level in reversed(range(self.architecture.depth)):
            x = self.up[level](x)
            skip = centre_crop(kept[level], x.shape[-2], x.shape[-1])
            x = self.merge[level](torch.cat((skip, x), dim=1))
        logits: Tensor = self.head(x)
        return logits


def valid_input_extent(architecture: Architecture, output: int) -> tuple[int, int]:
    """Smallest input extent whose valid output covers ``output`` pixels, and that output.

    Every pooled extent must be even for the published network's crops to be symmetric.
    """
    for bottom in range(1, 100_000):
        extent = bottom
        for _ in range(architecture.depth):
            extent = 2 * extent - 4
        if extent < output:
            continue
        size = bottom + 4
        for _ in range(architecture.depth):
            size = 2 * size + 4
        return size, extent
    raise ValueError(f"no valid input extent gives {output} pixels")


def fold_batch_norm(network: UNet) -> UNet:
    """An equal network for inference, with batch normalisation folded into its convolutions."""
    a = network.architecture
    folded = UNet(Architecture(**{**a.to_dict(), "batch_norm": False}))
    source = network.eval()
    blocks = zip([*source.down, *source.merge], [*folded.down, *folded.merge], strict=True)
    folded.load_state_dict({k: v for k, v in source.state_dict().items() if "norm" not in k})
    if a.batch_norm:
        for old, new in blocks:
            for name in ("first", "second"):
                fused = fuse_conv_bn_eval(getattr(old, name), getattr(old, f"norm_{name}"))
                getattr(new, name).load_state_dict(fused.state_dict())
    return folded.eval()
