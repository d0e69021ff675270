"""Whether Triton kernels can run: CUDA builds of torch bring Triton along, others do without."""

import importlib.util
from functools import lru_cache

import torch


@lru_cache
def _usable(index: int) -> bool:
    # Vector additions to memory came with compute capability 9.0.
    return importlib.util.find_spec("triton") is not None and torch.cuda.get_device_capability(index) >= (9, 0)


def has_triton(device: torch.device) -> bool:
    """Whether this device runs the Triton kernels; where not, tensor operations do their work."""
    return device.type == "cuda" and _usable(torch.cuda.current_device() if device.index is None else device.index)
