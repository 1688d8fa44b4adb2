"""A pool of processes that use the null GPU (the fixture `null_gpu` of tests/device).

As `pool.GlooPool`, but calls make their process groups themselves, each in fresh processes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

from null_gpu.build import build
from pool import GlooPool, Nursery, Worker
from processes import PRELOAD

MOST_RANKS = 4


class NullGpuPool(GlooPool):
    """Calls `fn(rank, world_size, *args)` on processes of a device each."""

    backend = None

    def _start(self) -> Nursery:
        folder = Path(self._folder.name)
        environment = build(folder) | {"NULL_GPU_COUNT": str(MOST_RANKS)}
        return Nursery(folder, environment, PRELOAD)

    def _claim(self, num: int) -> list[Worker]:
        """Starts new processes: what a run leaves behind on a device is gone."""
        for worker in self._workers:
            if worker.alive:
                worker.kill()
        return super()._claim(num)

    def _send(self, workers: list[Worker], fn: Callable, args: tuple) -> None:
        super()._send(workers, fn, (tempfile.mkdtemp(dir=self._folder.name), *args))
