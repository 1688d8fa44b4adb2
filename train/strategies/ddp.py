"""DDP in the stream that trains, whose gradients are its buckets.

In: the module. Out: a Lightning strategy under which every rank holds everything, row shards apart.
"""

from inspect import signature
from typing import Any, Literal

from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ...data.pairs import Pairs
from ...models.distributed_checkpoint import is_distributed
from ...models.weights import read_torch
from .base import Sharding


class Ddp(Sharding, DDPStrategy):
    """DDP; `options` are those of Lightning's and of torch's DistributedDataParallel.

    Lightning's own copies all gradients into the buckets and back, sends constant buffers before
    each forward pass, and is built in a stream of its own, for which every gradient then waits.

    Args:
        reduce_dtype: in which gradients are added up over ranks. `bf16` halves the bytes, and
            rounds: sums are no longer those of one process, and differ with the number of ranks.
        options: see above.
    """

    def __init__(self, reduce_dtype: Literal["fp32", "bf16"] = "fp32", **options: Any):
        super().__init__(**{"gradient_as_bucket_view": True, **options})
        self.reduce_dtype = reduce_dtype

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        # Torch 2.9's name of it has become another option's.
        names = signature(DistributedDataParallel).parameters
        new = "forward_sync_buffers" in names
        name = "forward_sync_buffers" if new else "broadcast_buffers"
        options = {name: learns_statistics(model), **self._ddp_kwargs}
        data = self.lightning_module.trainer.datamodule  # type: ignore[union-attr]
        if isinstance(data, Pairs) and data.turns:  # a step may leave out a tower
            options["find_unused_parameters"] = True
        devices = self.determine_ddp_device_ids()
        wrapped = DistributedDataParallel(model, device_ids=devices, **options)
        if self.reduce_dtype == "bf16":
            wrapped.register_comm_hook(None, bf16_compress_hook)
        return wrapped

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Reads a checkpoint; before a GPU, what goes there is not copied in between.

        What stayed on the host would read a file that is removed later.
        """
        is_mapped = self.root_device.type == "cuda" and not is_distributed(checkpoint_path)
        return read_torch(checkpoint_path, mmap=is_mapped)


def learns_statistics(model: nn.Module) -> bool:
    """Whether a BatchNorm learns from this rank's rows: then rank 0's statistics are everyone's."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return any(norm.training and norm.track_running_stats for norm in norms)
