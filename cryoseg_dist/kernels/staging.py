"""Copies between ordinary memory and a GPU through a little pinned memory, beside the work of the GPU."""

import numpy as np
import torch
from torch import Tensor

# Bytes of each of the buffers; while one is filled the other travels.
BUFFER, BUFFERS = 32 * 2**20, 3


class Staging:
    """Pinned buffers and a stream of their own.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers = [torch.empty(BUFFER, dtype=torch.uint8, pin_memory=True) for _ in range(BUFFERS)]
        self._travelled = [torch.cuda.Event() for _ in range(BUFFERS)]
        self._turn = 0

    def upload(self, array: np.ndarray) -> Tensor:
        """A copy on the GPU; the current stream waits for it, the caller does not."""
        source = torch.from_numpy(np.ascontiguousarray(array))
        given = source.view(-1).view(torch.uint8)
        main = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            out = torch.empty_like(source, device=self._device)
            target = out.view(-1).view(torch.uint8)
            for first in range(0, len(given), BUFFER):
                part = given[first : first + BUFFER]
                buffer, travelled = self._next()
                buffer[: len(part)].copy_(part)
                target[first : first + len(part)].copy_(buffer[: len(part)], non_blocking=True)
                travelled.record(self._stream)
        main.wait_stream(self._stream)
        out.record_stream(main)
        return out

    def download(self, values: Tensor) -> np.ndarray:
        """A copy in ordinary memory."""
        given = values.contiguous().view(-1).view(torch.uint8)
        out = np.empty(tuple(values.shape), dtype=np.dtype(str(values.dtype).removeprefix("torch.")))
        target = torch.from_numpy(out).view(-1).view(torch.uint8)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        parts = list(given.split(BUFFER))
        under_way: list[tuple[Tensor, torch.cuda.Event, int]] = []
        with torch.cuda.stream(self._stream):
            for i in range(len(parts) + BUFFERS - 1):
                if i < len(parts):
                    buffer, travelled = self._next()
                    buffer[: len(parts[i])].copy_(parts[i], non_blocking=True)
                    travelled.record(self._stream)
                    under_way.append((buffer, travelled, len(parts[i])))
                if i >= BUFFERS - 1:
                    at = i - BUFFERS + 1
                    buffer, travelled, n = under_way[at]
                    travelled.synchronize()
                    target[at * BUFFER : at * BUFFER + n].copy_(buffer[:n])
        return out

    def _next(self) -> tuple[Tensor, torch.cuda.Event]:
        """The buffer that has waited longest, free to be filled."""
        self._turn = (self._turn + 1) % BUFFERS
        self._travelled[self._turn].synchronize()
        return self._buffers[self._turn], self._travelled[self._turn]
