"""A rank that stands still is named, and the run ends, so that its launcher can start it again.

In: where each rank's main thread is. Out: nothing, until some rank has not moved for too long; then
one message that names the ranks for which the others wait, and exit status 75 of every process.
Left alone, torch waits half an hour for a partner that does not come, and cannot say who it is.
"""

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

EXIT_STATUS = 75  # "try again later" in sysexits.h
ROOT = Path(__file__).parent.parent.parent  # not resolved: as it stands in stacks
STAGES = ("waits for data", "forward pass", "backward pass", "update or callbacks")
COLLECTIVES = f"torch{os.sep}distributed{os.sep}"


@dataclass(frozen=True)
class Standing:
    """Where a rank is.

    Attributes:
        beat: counts the looks; a process that is stopped, or cut off, counts no further.
        step: of the run.
        stage: index into STAGES.
        still: seconds for which nothing has moved.
        place: the line of our code, or of another's.
        meets: whether it is inside a collective of torch.
    """

    beat: int
    step: int
    stage: int
    still: float
    place: str
    meets: bool

    def __str__(self) -> str:
        """As the message says it."""
        return f"step {self.step + 1}, {STAGES[self.stage]}, {self.place}, for {self.still:.0f} s"


class Board:
    """Where ranks leave their standing for the others; the first rank's process serves it."""

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
        """Leaves this rank's standing."""
        self.store.set(str(self.rank), json.dumps(asdict(standing)))

    def read(self) -> list[Standing]:
        """Every rank's last standing, in rank order."""
        found = self.store.multi_get([str(rank) for rank in range(self.world_size)])
        return [Standing(**json.loads(value)) for value in found]


class HangWatchdog(pl.Callback):
    """Ends a run in which a rank stands still.

    Args:
        timeout: seconds without any movement of a rank's main thread; None: for ever.

    Raises:
        ValueError: the timeout is no time.
    """

    def __init__(self, timeout: float | None):
        if timeout is not None and timeout <= 0:
            raise ValueError(
                f"watch.timeout is {timeout:g}; give seconds, or null to wait for ever"
            )
        self.timeout = timeout
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
        """Learns the ranks' names and begins to look (collective).

        Raises:
            ValueError: the ranks begin at different steps.
        """
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
            control.gather(None)  # from here on everybody's standing is there
            self._hear(self._board.read())
            threading.Thread(target=self._talk, args=(self._board,), daemon=True).start()
        threading.Thread(target=self._judge, daemon=True).start()

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """The batch has come."""
        self._progress = (trainer.global_step, 1)

    def on_before_backward(self, trainer: pl.Trainer, *args: Any) -> None:
        """The loss is there."""
        self._progress = (trainer.global_step, 2)

    def on_before_optimizer_step(self, trainer: pl.Trainer, *args: Any) -> None:
        """The gradients are there."""
        self._progress = (trainer.global_step, 3)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Runs after all other callbacks."""
        self._progress = (trainer.global_step, 0)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Stops looking."""
        self._end.set()

    @property
    def _interval(self) -> float:
        assert self.timeout is not None
        return min(10.0, self.timeout / 8)

    def _look(self) -> Standing:
        """Compares the main thread's stack with that of the last look."""
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

    def _talk(self, board: Board) -> None:
        """A thread of its own: a process that serves the board and is stopped never answers."""
        while not self._end.wait(self._interval):
            with suppress(dist.DistError):  # nobody heard of is told by that
                board.post(self._look())
                self._hear(board.read())

    def _hear(self, standings: list[Standing]) -> None:
        now = time.monotonic()
        before = self._heard or [(s, now) for s in standings]
        self._heard = [
            (new, now if new.beat != old.beat else heard)
            for new, (old, heard) in zip(standings, before, strict=True)
        ]

    def _judge(self) -> None:
        assert self.timeout is not None
        last = time.monotonic()
        while not self._end.wait(self._interval):
            now = time.monotonic()
            if now - last > 3 * self._interval + 1:
                # This process itself was stopped (a suspended job): nobody is to blame.
                self._moved, self._heard = now, [(s, now) for s, _ in self._heard]
            last = now
            own = self._look()
            heard = self._heard or [(own, now)]
            if max(own.still, *(s.still for s, _ in heard)) < self.timeout:
                continue
            silent = [now - at for _, at in heard]
            standings = [standing for standing, _ in heard]
            blamed = hung(standings, [s > self.timeout / 2 for s in silent])
            speaker = next((r for r in range(len(heard)) if r not in blamed), 0)
            if self._board is None or self._board.rank == speaker:
                print(self._message(standings, silent, blamed), file=sys.stderr, flush=True)
            time.sleep(2 * self._interval)  # the others come to the same end
            os._exit(EXIT_STATUS)

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
    """The ranks that the others wait for.

    Those not heard of (the first one, if nobody is: it serves the board); else those that are
    behind; else those that are not in a collective; else nobody can be told from the others.
    """
    if all(silent):
        return [0]
    everybody = list(range(len(standings)))
    furthest_back = min((s.step, s.stage) for s in standings)
    for guilty in (
        [r for r in everybody if silent[r]],
        [r for r in everybody if (standings[r].step, standings[r].stage) == furthest_back],
        [r for r in everybody if not standings[r].meets],
    ):
        if 0 < len(guilty) < len(everybody):
            return guilty
    return everybody
