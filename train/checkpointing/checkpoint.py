"""Checkpoints `RUN/checkpoints/step-00000500.ckpt`, a file or a folder each, the last few kept.

In: the trainer's state after a step. Out: a checkpoint that is either whole or not there. A disk
that is full costs that one and neither the run nor the last good one. They are read with
`weights_only=True`: they hold tensors and plain values, never code.
"""

import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ...data.files import durable_file, remove_parts
from ...losses.distributed.collectives import world
from ...models.distributed_checkpoint import STATE
from ...models.weights import damage, read_torch
from ..distributed import ControlGroup
from ..screen import log_line
from ..strategies.choose import sharding_of
from ..torch_internals import dump_checkpoint
from .disk import disk_error, remove
from .distributed import DistributedWriter

# One file, written by the first rank while training waits; or a folder with a part of each rank,
# written while training goes on.
Format = Literal["single", "distributed"]
PATTERN = re.compile(r"step-(\d+)\.ckpt")
PATIENCE = 60.0  # seconds for a checkpoint that is being written when the run fails


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames, so that a kill or a full disk leaves no half file.

    Attributes:
        failure: why the last file could not be written, if it could not.
            The caller that saves has to check it: raised here, on the first rank alone, it would
            leave the others waiting for that rank.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: OSError | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Saves `checkpoint` at `path`, whole or not at all; see `failure`."""
        self.failure = None
        try:
            write(checkpoint, Path(path))
        except OSError as error:
            self.failure = error
            if not PATTERN.fullmatch(Path(path).name):  # a user's callback, which does not check
                log_line(f"{path} could not be written ({error.strerror or error})", sys.stderr)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads a checkpoint, a folder too."""
        return read_torch(path)


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint that outlives a loss of power once it has its name.

    Raises:
        OSError: it cannot be written; what lay at `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with durable_file(path) as part:
        try:
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
        # While the part still takes its room: afterwards the disk is not full any more.
        except Exception as error:
            raise disk_error(error, path) from error


@contextmanager
def change(path: Path) -> Iterator[dict[str, Any]]:
    """Yields what a checkpoint holds beside parts of tensors, and writes it back with its changes.

    Raises:
        OSError: it cannot be written; the checkpoint is as it was.
    """
    file = path / STATE if path.is_dir() else path
    content = read_torch(file)
    yield content
    write(content, file)


def newest(run_dir: str | Path) -> Path | None:
    """Returns the checkpoint with the highest step in a run folder, or None."""
    return max(checkpoints_in(run_dir), key=step_of, default=None)


def checkpoints_in(run_dir: str | Path) -> list[Path]:
    """Returns the checkpoints of a run folder, whole or not."""
    folder = Path(run_dir, "checkpoints")
    return [path for path in folder.glob("*.ckpt") if PATTERN.fullmatch(path.name)]


def newest_whole(run_dir: str | Path) -> tuple[Path, dict[Path, str]]:
    """Returns the newest checkpoint that is as it was written, and what is wrong with newer ones.

    Every byte is read and held against the checksums inside the file: torch notices a file that was
    cut off, but not one in which bytes have changed.

    Raises:
        ValueError: there is none.
    """
    damaged: dict[Path, str] = {}
    for path in sorted(checkpoints_in(run_dir), key=step_of, reverse=True):
        reason = damage(path)
        if reason is None:
            return path, damaged
        damaged[path] = reason
    if not damaged:
        raise ValueError(f"{run_dir} holds no checkpoint: it has to be trained from its start")
    path, reason = next(iter(damaged.items()))
    raise ValueError(
        f"{path} cannot be read as a checkpoint ({reason}), and there is no whole one before it: "
        "train anew, with another --run_dir"
    )


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    match = PATTERN.fullmatch(path.name)
    assert match, path
    return int(match[1])


def load(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Reads a checkpoint on the CPU without running any code in it.

    Args:
        path: the file.
        mmap: whether tensors are read from the disk only when they are used.

    Raises:
        ValueError: the file is no checkpoint, or damaged.
    """
    try:
        return read_torch(path, mmap)
    except FileNotFoundError:
        raise ValueError(f"there is no checkpoint {path}") from None
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it may be cut off: "
            "delete it and resume from the one before"
        ) from error


class Checkpoints(Checkpoint):
    """Saves every `every_n_steps` steps, when the run stops, and at its end.

    What a stop leaves between two regular ones is deleted once a later one is whole. It counts
    towards no limit, so that a run has the same regular ones however often it is stopped.

    If a checkpoint cannot be written, that is logged and training goes on: disk space may be freed
    before the next one, and to end would lose the steps since the last. The run ends after
    `max_failures` of them in a row, or if it is the last one.

    It is a `Checkpoint` for Lightning, which calls these last and in order: a user's
    ModelCheckpoint has acted on the same step before, and its state is in the checkpoint.

    Args:
        folder: where they go.
        every_n_steps: distance between two.
        keep: how many regular ones stay (0: all); older ones are deleted after a new one is whole.
        max_failures: how many in a row may fail.
        format: of those that are written; either is read.
        ends: steps at which stages end, whose files stay.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int,
        keep: int,
        max_failures: int = 3,
        format: Format = "single",
        ends: Collection[int] = (),
    ):
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.max_failures = max_failures
        self.format = format
        self.ends = ends
        self._num_failed = 0
        self._size_is_known = False
        self._writer: DistributedWriter | None = None
        self._begun: int | None = None  # the step that is being written

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the process groups through which ranks speak about files (collective)."""
        self._control = ControlGroup()
        if self.format == "distributed":
            self._writer = DistributedWriter(self._is_whole)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Runs last among the callbacks, so that rows and counters of this step are written."""
        step = trainer.global_step
        last = trainer.should_stop or step == trainer.max_steps
        if self.is_regular(step) or last:
            self.save(trainer, step, last)

    def on_exception(self, trainer: pl.Trainer, *args: Any) -> None:
        """Leaves what was begun a while to become whole, which it does not if a rank is lost."""
        if self._writer is not None:
            self._writer.wait(PATIENCE)

    def is_regular(self, step: int) -> bool:
        """Whether a run that nothing stops is saved after that step."""
        return step % self.every_n_steps == 0

    def save(self, trainer: pl.Trainer, step: int, last: bool) -> None:
        """Writes one checkpoint (collective), or begins to; then prunes the oldest.

        Raises:
            ValueError: too many could not be written, or the last one; on every rank alike.
        """
        path = self.folder / f"step-{step:08d}.ckpt"
        if self._writer is None:
            trainer.save_checkpoint(path, weights_only=False)
            failure = getattr(trainer.strategy.checkpoint_io, "failure", None)
            if failure is None and trainer.is_global_zero:
                self._is_whole(path)
            self._check(failure, step, last)
            return
        self.settle()
        with sharding_of(trainer.strategy).pieces():
            checkpoint = dump_checkpoint(trainer)
        self._writer.begin(checkpoint, path)
        self._begun = step
        if last:
            self.settle(last)

    def settle(self, last: bool = False) -> None:
        """Waits until what was begun is whole (collective).

        Raises:
            ValueError: as `save`.
        """
        if self._writer is not None and self._begun is not None:
            failure, step, self._begun = self._writer.wait(), self._begun, None
            self._check(failure, step, last)

    def _check(self, failure: OSError | None, step: int, last: bool) -> None:
        """Agrees on whether a checkpoint is whole (collective), as the first rank saw it."""
        text = None if failure is None else failure.strerror or str(failure)
        if (reason := self._control.gather(text)[0]) is None:
            self._num_failed = 0
            return
        self._num_failed += 1
        good = newest(self.folder.parent)
        text = f"step {step}: the checkpoint could not be written ({reason}); " + (
            "there is none yet" if good is None else f"the last good one is {good.name}"
        )
        if last or self._num_failed >= self.max_failures:
            raise ValueError(f"{text}; make room and continue with `fit --resume`")
        if world()[0] == 0:
            log_line(f"{text}; the run goes on and tries again", sys.stderr)

    def _is_whole(self, path: Path) -> None:
        self._report_size(path)
        self._prune(step_of(path))

    def _report_size(self, path: Path) -> None:
        """Logs the size of a checkpoint, once a process, before a disk is full of them."""
        if self._size_is_known:
            return
        self._size_is_known = True
        kept = f"the last {self.keep} stay" if self.keep else "all stay"
        files = [file for file in (path, *path.rglob("*")) if file.is_file()]
        log_line(
            f"checkpoint {path.name}: {sum(file.stat().st_size for file in files) / 1e6:,.0f} MB, "
            f"one every {self.every_n_steps} steps and after the last; {kept}"
        )

    def _prune(self, step: int) -> None:
        old: list[Path] = []
        if self.keep:
            files = sorted(checkpoints_in(self.folder.parent), key=step_of)
            files = [path for path in files if step_of(path) not in self.ends]
            regular = [path for path in files if self.is_regular(step_of(path))]
            stops = [path for path in files if path not in regular and step_of(path) < step]
            old = regular[: -self.keep] + stops
        for path in old:
            remove(path)
        # What a kill left of a file is of no use once a later one is whole.
        remove_parts(self.folder)
