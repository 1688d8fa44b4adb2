"""Prefetches the shards of coming steps.

In: the current step. Out: nothing; a thread fills the cache with the shards of the next steps and
marks those in use, so that they are not removed.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from .cache import TOUCH_SECONDS, ShardCache

# New steps per call of `at`: the first batch of a run must not wait for the entire horizon.
NEW_STEPS = 8
# The thread of an idle loader ends; it starts again when needed.
IDLE_SECONDS = 300.0


class Prefetcher:
    """Fetches shards ahead; one for each process that makes batches.

    The thread starts in the process that first calls `at`, so that the object may be handed to
    forked or spawned loader workers.

    Args:
        shards_of: returns the shards that a step's batch on this rank needs, int64 [n], in the
            order of need; they may repeat.
        store: the cache.
        urls: address of each shard.
        num_bytes: size of each shard (0: unknown).
        sha256: checksum of each shard; all unknown by default.
        total_steps: one past the last step of the run.
        horizon: how many steps to look ahead.
        stride: steps from one batch of this process to its next: the number of loader workers.
        interval: seconds until failed shards are tried again.
    """

    def __init__(
        self,
        shards_of: Callable[[int], np.ndarray],
        store: ShardCache,
        urls: Sequence[str],
        num_bytes: Sequence[int] | np.ndarray,
        total_steps: int,
        horizon: int,
        sha256: Sequence[str] | None = None,
        stride: int = 1,
        interval: float = 1.0,
    ):
        self.shards_of = shards_of
        self.store = store
        self.urls = urls
        self.num_bytes = num_bytes
        self.sha256 = sha256
        self.total_steps = total_steps
        self.horizon = horizon
        self.stride = stride
        self.interval = interval
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._shards: dict[int, list[int]] = {}
        self._needed: list[int] = []
        self._moved = threading.Event()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, object]:
        private = ("_pid", "_shards", "_needed", "_moved", "_error", "_thread")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def at(self, step: int) -> None:
        """Moves the horizon to the step whose batch is made now.

        Raises:
            ValueError: fetching failed for every shard, such as on a full disk.
        """
        if self._pid != os.getpid():
            self._reset()
        if self._error is not None:
            raise self._error
        # Here and not in the thread: the caches of `shards_of` are not thread-safe.
        self._needed = self.wanted(step)
        self._moved.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=self._run, daemon=True, name="counterpoint-prefetch"
            )
            self._thread.start()

    def wanted(self, step: int) -> list[int]:
        """Returns the shards of a step and of those within the horizon, the next needed first."""
        last = min(step + self.horizon, self.total_steps - 1)
        steps = range(step, last + 1, self.stride)
        for old in [old for old in self._shards if old not in steps]:
            del self._shards[old]
        for coming in [coming for coming in steps if coming not in self._shards][:NEW_STEPS]:
            shards = np.asarray(self.shards_of(coming))
            self._shards[coming] = list(dict.fromkeys(shards.tolist()))
        return list(
            dict.fromkeys(shard for coming in steps for shard in self._shards.get(coming, ()))
        )

    def _run(self) -> None:
        marked: dict[int, float] = {}
        idle_since = time.monotonic()
        try:
            while time.monotonic() - idle_since < IDLE_SECONDS:
                if self._moved.is_set():
                    idle_since = time.monotonic()
                    self._moved.clear()
                self._advance(marked)
                self._moved.wait(self.interval)
        except Exception as error:
            self._error = error

    def _advance(self, marked: dict[int, float]) -> None:
        """Fetches missing shards in order of need until the step changes.

        Args:
            marked: when each shard was last seen in the cache; updated.
        """
        needed = self._needed
        for shard in [shard for shard in marked if shard not in needed]:
            del marked[shard]
        for shard in needed:
            if time.monotonic() - marked.get(shard, float("-inf")) < TOUCH_SECONDS:
                continue
            sha256 = "" if self.sha256 is None else self.sha256[shard]
            if self.store.prefetch(self.urls[shard], int(self.num_bytes[shard]), sha256):
                marked[shard] = time.monotonic()
            if self._moved.is_set():
                return
