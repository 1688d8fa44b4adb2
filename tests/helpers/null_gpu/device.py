"""A process that uses the null GPU: what it must do otherwise, and what was counted.

In: torch, in a process with the environment of `build`. Out: counts of launches, waits, copies and
collectives; the places in which the host waited for the device.
"""

import ctypes
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.parallel.distributed as parallel
from torch.distributed import distributed_c10d as c10d
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - registers the backend


def prepare() -> None:
    """Leaves out what needs results of kernels, or libraries that talk to the driver themselves."""
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Compares shapes that a kernel puts together.
    parallel._verify_param_shape_across_processes = lambda *_, **__: None


def objects_over_gloo() -> None:
    """Sends objects over gloo: on the device, kernels would put their bytes together."""
    broadcast, gather, groups = dist.broadcast_object_list, dist.all_gather_object, []

    def gloo() -> Any:
        if not groups:
            groups.append(dist.new_group(backend="gloo"))
        return groups[0]

    def broadcast_objects(objects: Any, src: int = 0, group: Any = None, **_: Any) -> None:
        broadcast(objects, src, group=gloo())

    def gather_objects(objects: Any, value: Any, group: Any = None) -> None:
        gather(objects, value, group=gloo() if group is None else group)

    dist.broadcast_object_list, dist.all_gather_object = broadcast_objects, gather_objects


def imagine_ranks(world_size: int) -> None:
    """Makes this process rank 0 of many that do not exist; for its next process group.

    NCCL's collectives are counted, gloo's do nothing.
    """
    init, new_group = c10d.init_process_group, c10d.new_group

    def init_process_group(*_: Any, **__: Any) -> None:
        store = dist.HashStore()
        init("nccl", store=store, rank=0, world_size=world_size)

    def group(*args: Any, backend: Any = None, **options: Any) -> Any:
        backend = "fake" if backend == "gloo" else backend
        return new_group(*args, backend=backend, **options)

    for module in (dist, c10d):
        module.init_process_group = init_process_group
        module.new_group = group


class Counts:
    """What the null GPU has counted since `reset`."""

    def __init__(self):
        self._library = ctypes.CDLL(None)

    def reset(self) -> None:
        """Sets all counts to 0."""
        self._library.null_gpu_reset()

    def all(self) -> dict[str, tuple[int, float]]:
        """Returns times and sum by name: launch, wait, kernel:..., copy:..., nccl:..., flops:...

        The sum is of bytes for copies and collectives, of operations for products.
        """
        with tempfile.NamedTemporaryFile() as file:
            self._library.null_gpu_write(file.name.encode())
            lines = Path(file.name).read_text().splitlines()
        rows = [line.split("\t") for line in lines]
        return {name: (int(times), float(total)) for times, total, name in rows}

    @contextmanager
    def order(self) -> Iterator[list[str]]:
        """Yields a list that holds, at the end, the names of all that was counted, in its order."""
        names: list[str] = []
        with tempfile.NamedTemporaryFile() as file:
            self._library.null_gpu_order(file.name.encode())
            yield names
            self._library.null_gpu_order(None)
            names += Path(file.name).read_text().splitlines()

    def mark(self, name: str) -> None:
        """Counts something of one's own."""
        self._library.null_gpu_note(name.encode(), ctypes.c_double(0.0))

    @contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """Yields the places in which the host waits for the device from now on."""
        places: Counter[str] = Counter()

        @ctypes.CFUNCTYPE(None, ctypes.c_char_p)
        def listen(name: bytes) -> None:
            stack = traceback.extract_stack()[:-1]
            ours = [frame for frame in stack if "site-packages" not in frame.filename]
            ours = [frame for frame in ours if "/lib/python" not in frame.filename]
            frames = [*ours[-1:], *stack[-1:]]
            where = " <- ".join(f"{f.filename}:{f.lineno} {f.name}" for f in frames)
            places[f"{name.decode()} in {where}"] += 1

        self._library.null_gpu_listen(listen)
        try:
            yield places
        finally:
            self._library.null_gpu_listen(None)
