"""What training needs of torch beside its public interface, one function each.

In: modules and tensors. Out: what torch's documented functions do not do. Each has a test in
tests/train/test_torch_internals.py, so that an upgrade of torch opens these two files.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# Where torch's compilers define their errors, which have no class in common.
COMPILERS = ("torch._dynamo.", "torch._inductor.", "torch.fx.")


def is_in_backward() -> bool:
    """Whether autograd is running a backward pass; what is called inside is a recomputation."""
    return torch._C._current_graph_task_id() != -1


def set_compile_options(max_graphs: int) -> None:
    """Sets for the whole process how graphs are made and looked up, and how many a function."""
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max_graphs
    settings.optimize_ddp = False  # graphs of a layer need not be cut up to send gradients early
    settings.specialize_float = True  # else everything is compiled twice, once with a symbolic eps
    # A part is recomputed by the graph that computed it: as many rows as tokens make no graph of
    # their own, and the first graph that fits is always the same one.
    torch.fx.experimental._config.use_duck_shape = False  # type: ignore[attr-defined]
    # (Torch 2.9 has no such setting and tries the one used last first.)
    eval_frame: Any = torch._C._dynamo.eval_frame  # type: ignore[attr-defined]
    if hasattr(eval_frame, "_set_lru_cache"):
        eval_frame._set_lru_cache(False)


def is_compiler_error(error: Exception) -> bool:
    """Whether it was raised by torch.compile, not by what is compiled."""
    return type(error).__module__.startswith(COMPILERS)


def dump_checkpoint(trainer: Any) -> dict[str, Any]:
    """Returns what `trainer.save_checkpoint` would have the strategy write (collective)."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def nccl_trace() -> bytes | None:
    """Returns what the flight recorder of NCCL has seen last; None without NCCL."""
    if not dist.is_initialized() or "nccl" not in str(dist.get_backend_config()):
        return None
    return torch._C._distributed_c10d._dump_nccl_trace()  # type: ignore[attr-defined]


def record_memory(on: bool) -> None:
    """Begins or ends to remember every block of GPU memory, with the stack that asked for it."""
    limit = 1_000_000  # blocks: some hundred bytes of the host's memory each
    torch.cuda.memory._record_memory_history("all" if on else None, max_entries=limit)


def dump_memory_snapshot(path: Path) -> None:
    """Writes which blocks of GPU memory are held, by whom if that was recorded (a pickle)."""
    torch.cuda.memory._dump_snapshot(str(path))


@contextmanager
def fake_process_group(world_size: int) -> Iterator[None]:
    """Makes this process rank 0 of many that do not exist; collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def stay_in_eval_mode(module: nn.Module) -> None:
    """Puts a module into evaluation mode for good, whatever `train()` is called on above it."""
    module.eval()
    # Not a hook: train() asks no hooks. A partial follows its module through copies.
    module.train = partial(_unchanged, module)


def _unchanged(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def move_own_tensors(module: nn.Module, device: torch.device) -> None:
    """Moves parameters and buffers of a module, but not those of the modules inside it."""
    module._apply(lambda tensor: tensor.to(device), recurse=False)


def hide_from_ddp(module: nn.Module, names: Sequence[str]) -> None:
    """Keeps DDP from broadcasting and averaging the parameters of these names."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def scale_all(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiplies tensors in place by one number [], in few kernels."""
    torch._foreach_mul_(list(tensors), factor)  # type: ignore[attr-defined]


def clamp_all(tensors: Sequence[Tensor], limit: float) -> None:
    """Clamps tensors in place to [-limit, limit], in few kernels."""
    torch._foreach_clamp_min_(list(tensors), -limit)  # type: ignore[attr-defined]
    torch._foreach_clamp_max_(list(tensors), limit)  # type: ignore[attr-defined]


@torch.no_grad()
def move_toward(tensors: Sequence[Tensor], targets: Sequence[Tensor], weight: Tensor) -> None:
    """Moves tensors in place by `weight` [] of the way to their targets, in few kernels.

    Where it is 0 nothing changes. (torch's lerp over lists takes its weight from the host.)
    """
    ways = torch._foreach_sub(list(targets), list(tensors))  # type: ignore[attr-defined]
    scale_all(ways, weight.to(ways[0].device, ways[0].dtype))
    torch._foreach_add_(list(tensors), ways)  # type: ignore[attr-defined]


def norms_of(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Returns the L2 norm of each tensor, computed in `dtype`, in few kernels."""
    return torch._foreach_norm(list(tensors), 2.0, dtype=dtype)  # type: ignore[attr-defined]
