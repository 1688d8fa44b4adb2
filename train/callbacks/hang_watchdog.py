"""Hang watchdog: names the ranks that make no progress and exits, so that the launcher restarts.

In: the stack of each rank's main thread. Out: nothing, until a rank makes no progress for
`timeout` seconds; then one message with the ranks that the others wait for, and exit status 75 of
every process. Left alone, torch waits half an hour for a missing rank and does not name it.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from ..distributed import ControlGroup
from ..torch_internals import nccl_trace

EXIT_STATUS = 75  # "try again later" in sysexits.h
ROOT = Path(__file__).parent.parent.parent  # not resolved: as it stands in stacks
STAGES = ("waits for data", "forward pass", "backward pass", "update or callbacks")
COLLECTIVES = f"torch{os.sep}distributed{os.sep}"


@dataclass(frozen=True)
class Standing:
    """What a rank does, as far as its main thread's stack shows.

    Attributes:
        beat: number of looks so far; it stops at a process that is stopped or cut off.
        step: of the run.
        stage: index into STAGES.
        still: seconds without progress.
        place: file and line, of our code where the stack has any.
        meets: whether it is inside a collective of torch.
    """

    beat: int
    step: int
    stage: int
    still: float
    place: str
    meets: bool

    def __str__(self) -> str:
        return f"step {self.step + 1}, {STAGES[self.stage]}, {self.place}, for {self.still:.0f} s"


class Board:
    """A key-value store in which each rank posts its standing; rank 0 serves it."""

    def __init__(self, control: ControlGroup, interval: float):
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        host, wait = os.environ["MASTER_ADDR"], timedelta(seconds=max(30.0, interval))
        options: dict[str, Any] = {"timeout": wait, "wait_for_workers": False}
        if self.rank == 0:
            self.store = TCPStore(host, 0, None, True, **options)
        port = control.gather(self.store.port if self.rank == 0 else None)[0]
        if self.rank > 0:
            self.store = TCPStore(host, port, None, False, **options)

    def post(self, standing: Standing) -> None:
        """Writes this rank's standing."""
        self.store.set(str(self.rank), json.dumps(asdict(standing)))

    def read(self) -> list[Standing]:
        """Returns every rank's last standing, in rank order."""
        values = self.store.multi_get([str(rank) for rank in range(self.world_size)])
        return [Standing(**json.loads(value)) for value in values]


class HangWatchdog(pl.Callback):
    """Ends a run in which a rank makes no progress.

    Args:
        timeout: seconds without a change of a rank's main thread; None: no limit.
        folder: gets each rank's stacks when the run hangs, and NCCL's last collectives
            (`torchfrtrace --prefix nccl_rank_ FOLDER` compares those of all ranks).
    """

    def __init__(self, timeout: float | None, folder: Path | None = None):
        if timeout is not None and timeout <= 0:
            raise ValueError(
                f"watch.timeout is {timeout:g}; give seconds, or null to wait for ever"
            )
        self.timeout = timeout
        self.folder = folder
        self.names = [f"rank 0 ({socket.gethostname()})"]
        self._board: Board | None = None
        self._end = threading.Event()
        self._progress = (0, 0)
        self._main = threading.main_thread().ident
        self._seen: Any = None
        self._moved = time.monotonic()
        self._beat = 0
        self._heard: list[tuple[Standing, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gathers the ranks' names, compares their steps and starts the threads (collective)."""
        control = ControlGroup()
        names = control.gather((socket.gethostname(), trainer.global_step))
        self.names = [f"rank {rank} ({host})" for rank, (host, _) in enumerate(names)]
        if len({step for _, step in names}) > 1:
            steps = ", ".join(
                f"{name}: {step}" for name, (_, step) in zip(self.names, names, strict=True)
            )
            raise ValueError(
                f"the ranks continue from different steps ({steps}): run_dir must be one folder "
                "that all of them see"
            )
        self._progress = (trainer.global_step, 0)
        if self.timeout is None:
            return
        if control.group is not None:
            self._board = Board(control, self._interval)
            self._board.post(self._look())
            control.gather(None)  # now every rank has posted
            self._update(self._board.read())
            threading.Thread(target=self._exchange, args=(self._board,), daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Data wait ends, forward pass begins."""
        self._progress = (trainer.global_step, 1)

    def on_before_backward(self, trainer: pl.Trainer, *args: Any) -> None:
        """Forward pass ends, backward pass begins."""
        self._progress = (trainer.global_step, 2)

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: Any) -> None:
        """Backward pass ends, update begins."""
        self._progress = (trainer.global_step, 3)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Step ends; runs after all other callbacks."""
        self._progress = (trainer.global_step, 0)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self._end.set()

    @property
    def _interval(self) -> float:
        assert self.timeout is not None
        return min(10.0, self.timeout / 8)

    def _look(self) -> Standing:
        """Compares the main thread's stack with that at the last call."""
        stack = []
        frame = sys._current_frames().get(self._main or 0)
        while frame is not None:
            stack.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        if (self._progress, stack) != self._seen:
            self._seen, self._moved = (self._progress, stack), time.monotonic()
        self._beat += 1
        ours = [place for place in stack if place[0].startswith(f"{ROOT}{os.sep}")]
        file, line = (ours or stack or [("?", 0)])[0]
        return Standing(
            self._beat,
            *self._progress,
            time.monotonic() - self._moved,
            f"{os.path.relpath(file, ROOT) if ours else file}:{line}",
            any(COLLECTIVES in name for name, _ in stack),
        )

    def _exchange(self, board: Board) -> None:
        """Posts and reads standings, in a thread of its own: a stopped server never answers."""
        while not self._end.wait(self._interval):
            with suppress(dist.DistError):  # a rank without news is found by its age
                board.post(self._look())
                self._update(board.read())

    def _update(self, standings: list[Standing]) -> None:
        now = time.monotonic()
        before = self._heard or [(s, now) for s in standings]
        self._heard = [
            (new, now if new.beat != old.beat else heard)
            for new, (old, heard) in zip(standings, before, strict=True)
        ]

    def _watch(self) -> None:
        assert self.timeout is not None
        last = time.monotonic()
        while not self._end.wait(self._interval):
            now = time.monotonic()
            if now - last > 3 * self._interval + 1:
                # This process itself was stopped (a suspended job): no rank hangs.
                self._moved, self._heard = now, [(s, now) for s, _ in self._heard]
            last = now
            standing = self._look()
            heard = self._heard or [(standing, now)]
            if max(standing.still, *(s.still for s, _ in heard)) < self.timeout:
                continue
            silent = [now - at for _, at in heard]
            standings = [standing for standing, _ in heard]
            blamed = hung(standings, [s > self.timeout / 2 for s in silent])
            speaker = next((r for r in range(len(heard)) if r not in blamed), 0)
            if self._board is None or self._board.rank == speaker:
                print(self._message(standings, silent, blamed), file=sys.stderr, flush=True)
            # A collector of traces may wait for what hangs.
            threading.Thread(target=self._keep_evidence, daemon=True).start()
            time.sleep(2 * self._interval)  # the other ranks reach the same result
            os._exit(EXIT_STATUS)

    def _keep_evidence(self) -> None:
        """Writes the stacks of this process's threads, and what NCCL did last if it is in use."""
        if self.folder is None:
            return
        rank = self._board.rank if self._board else 0
        self.folder.mkdir(exist_ok=True)
        with open(self.folder / f"stacks_rank_{rank}.txt", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        if trace := nccl_trace():
            (self.folder / f"nccl_rank_{rank}").write_bytes(trace)

    def _message(self, standings: list[Standing], silent: list[float], blamed: list[int]) -> str:
        quiet = [f"silent for {s:.0f} s; " if s > 3 * self._interval else "" for s in silent]
        lines = [f"{self.names[r]} hangs: {quiet[r]}{standings[r]}" for r in blamed]
        others = [r for r in range(len(standings)) if r not in blamed]
        lines += [f"  {self.names[r]} waits: {standings[r]}" for r in others[:4]]
        if len(others) > 4:
            lines.append(f"  and {len(others) - 4} more ranks wait")
        lines.append(f"the run ends after {self.timeout:.0f} s of standstill (watch.timeout)")
        return "\n".join(lines)


def hung(standings: list[Standing], silent: list[bool]) -> list[int]:
    """Returns the ranks that the others wait for.

    These are the silent ones (rank 0 if all are: it serves the board); else those that are behind;
    else those outside of a collective; else all, since nothing sets any of them apart.
    """
    if all(silent):
        return [0]
    all_ranks = list(range(len(standings)))
    furthest_back = min((s.step, s.stage) for s in standings)
    for guilty in (
        [r for r in all_ranks if silent[r]],
        [r for r in all_ranks if (standings[r].step, standings[r].stage) == furthest_back],
        [r for r in all_ranks if not standings[r].meets],
    ):
        if 0 < len(guilty) < len(all_ranks):
            return guilty
    return all_ranks
