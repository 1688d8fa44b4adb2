"""Placement of a frozen model's weights, where they are too many for each device.

In: the model with its `placement`, and this process's device. Out: the same features;
weights outside of layers are on the device in any case.
"""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ...losses.distributed.collectives import world
from ...models.teachers.frozen import FrozenTowers
from ..torch_internals import move_own_tensors


def place_teacher(towers: FrozenTowers, device: torch.device) -> None:
    """Moves the weights to their placement; in a single process `sharded` is `host`.

    All ranks call it, and then call the model equally often.
    """
    if towers.placed:
        return
    towers.placed = True
    world_size = world()[1]
    sharded = towers.placement == "sharded" and world_size > 1
    layers = towers.model.layers() if towers.placement != "device" else []
    if towers.placement != "device" and not layers:
        raise ValueError(
            f"a teacher with placement={towers.placement} is fetched layer by layer, and the "
            "towers of this one name no layers; leave placement out"
        )
    if sharded:
        mesh = init_device_mesh(device.type, (world_size,))
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        # One root for all of them, which fetches ahead and lets them share memory.
        cut = {p for layer in layers for p in layer.parameters()}
        outside = {p for p in towers.model.parameters() if p not in cut}
        fully_shard(towers.model, mesh=mesh, ignored_params=outside)
    if sharded or towers.placement == "device":
        towers.to(device)
        return
    inside: set[nn.Module] = set()
    for layer in layers:
        Fetched(layer, device)
        inside.update(layer.modules())
    for module in towers.modules():
        if module not in inside:
            move_own_tensors(module, device)


class Fetched:
    """A layer in the host's memory, of which there is a copy on the device while it runs."""

    def __init__(self, layer: nn.Module, device: torch.device):
        self.device = device
        self.tensors = [*layer.parameters(), *layer.buffers()]
        self.host_data: list[Tensor] = []
        if device.type == "cuda":
            for tensor in self.tensors:
                tensor.data = tensor.data.pin_memory()
        layer.register_forward_pre_hook(self._fetch)
        layer.register_forward_hook(self._release, always_call=True)

    def _fetch(self, *_: object) -> None:
        self.host_data = [tensor.data for tensor in self.tensors]
        for tensor in self.tensors:
            tensor.data = tensor.data.to(self.device, non_blocking=True, copy=True)

    def _release(self, *_: object) -> None:
        for tensor, data in zip(self.tensors, self.host_data, strict=True):
            tensor.data = data
