"""How a batch gets to the device: in a stream of its own, with lengths that stay on the host.

In: a batch in pinned memory, and what moves it. Out: the same on the device; the stream that trains
waits for it.

The host starts a step while the device is busy with the one before. So a batch of hundreds of
megabytes is copied beside that step's kernels instead of between the two, and none has to be
fetched ahead of its step: the loader's position stays that of the steps done.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Tensor]


class BatchTransfer:
    """Moves batches to one device."""

    def __init__(self):
        self._stream: torch.cuda.Stream | None = None

    def __call__(
        self,
        batch: list[Batch] | Batch,
        device: torch.device,
        move: Callable[[Any, torch.device], Any],
    ) -> Any:
        """Returns the batch on the device; `move` makes the copies."""
        if device.type != "cuda":
            return move(batch, device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            on_device = move(batch, device)
        training = torch.cuda.current_stream(device)
        training.wait_stream(self._stream)
        if isinstance(batch, dict):  # of a loader of one's own
            return _complete(on_device, batch, training)
        return [_complete(*pair, training) for pair in zip(on_device, batch, strict=True)]


def lengths_on_host(batch: Batch) -> dict[str, np.ndarray]:
    """Returns a batch's text lengths, under names that stay on the host.

    As arrays: DDP and FSDP2 move every tensor among the arguments of a forward to the device.
    """
    return {f"{name}.host": batch[name].numpy() for name in batch if name.endswith("_length")}


def _complete(on_device: Batch, batch: Batch, training: torch.cuda.Stream) -> dict[str, Any]:
    for tensor in on_device.values():
        if isinstance(tensor, Tensor) and tensor.is_cuda:
            tensor.record_stream(training)  # its memory is not given away while it is read there
    return on_device | lengths_on_host(batch)
