"""Checkpoints: atomic files `RUN/checkpoints/step-00000500.ckpt`, the last few kept.

In: the trainer's state after a step. Out: a file that is either whole or not there. A disk that is
full costs that file and neither the run nor the last good one. Files are read with
`weights_only=True`: they hold tensors and plain values, never code.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ...data.files import durable_file, remove_parts
from ...models.weights import damage, read_torch
from ..distributed import ControlGroup
from ..screen import log_line

PATTERN = re.compile(r"step-(\d+)\.ckpt")


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


def disk_error(error: Exception, path: Path) -> OSError:
    """Turns torch's error about a write on a full disk into the OSError behind it.

    Any other error becomes an OSError too, to reach the other ranks in the same way.
    """
    if isinstance(error, OSError):
        return error
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < 1 << 20 or "file write failed" in str(error):
        return OSError(28, "No space left on device", str(path))
    return OSError(f"{type(error).__name__}: {error}")


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

    A file that a stop leaves between two regular ones is deleted once a later file is whole. It
    counts towards no limit, so that a run has the same regular files however often it is stopped.

    If a checkpoint cannot be written, that is logged and training goes on: disk space may be freed
    before the next one, and to end would lose the steps since the last. The run ends after
    `max_failures` of them in a row, or if it is the last one.

    It is a `Checkpoint` for Lightning, which calls these last and in order: a user's
    ModelCheckpoint has acted on the same step before, and its state is in the file.

    Args:
        folder: where the files go.
        every_n_steps: distance between two files.
        keep: how many regular files stay (0: all); older ones are deleted after a new one is whole.
        max_failures: how many in a row may fail.
    """

    def __init__(self, folder: Path, every_n_steps: int, keep: int, max_failures: int = 3):
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.max_failures = max_failures
        self._num_failed = 0
        self._size_is_known = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the process group through which failures are shared (collective)."""
        self._control = ControlGroup()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Runs last among the callbacks, so that rows and counters of this step are written."""
        step = trainer.global_step
        last = trainer.should_stop or step == trainer.max_steps
        if self.is_regular(step) or last:
            self.save(trainer, step, last)

    def is_regular(self, step: int) -> bool:
        """Whether a run that nothing stops is saved after that step."""
        return step % self.every_n_steps == 0

    def save(self, trainer: pl.Trainer, step: int, last: bool) -> None:
        """Writes one checkpoint (collective) and prunes the oldest.

        Raises:
            ValueError: too many could not be written, or the last one; on every rank alike.
        """
        path = self.folder / f"step-{step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        failure = self._control.gather(_failure(trainer))[0]
        if failure is None:
            self._num_failed = 0
            if trainer.is_global_zero:
                self._report_size(path)
                self._prune(step)
            return
        self._num_failed += 1
        good = newest(self.folder.parent)
        text = f"step {step}: the checkpoint could not be written ({failure}); " + (
            "there is none yet" if good is None else f"the last good one is {good.name}"
        )
        if last or self._num_failed >= self.max_failures:
            raise ValueError(f"{text}; make room and continue with `fit --resume`")
        if trainer.is_global_zero:
            log_line(f"{text}; the run goes on and tries again", sys.stderr)

    def _report_size(self, path: Path) -> None:
        """Logs the size of a checkpoint, once a process, before a disk is full of them."""
        if self._size_is_known:
            return
        self._size_is_known = True
        kept = f"the last {self.keep} stay" if self.keep else "all stay"
        log_line(
            f"checkpoint {path.name}: {path.stat().st_size / 1e6:,.0f} MB, one every "
            f"{self.every_n_steps} steps and after the last; {kept}"
        )

    def _prune(self, step: int) -> None:
        old: list[Path] = []
        if self.keep:
            files = sorted(checkpoints_in(self.folder.parent), key=step_of)
            regular = [path for path in files if self.is_regular(step_of(path))]
            stops = [path for path in files if path not in regular and step_of(path) < step]
            old = regular[: -self.keep] + stops
        for path in old:
            path.unlink(missing_ok=True)
        # What a kill left of a file is of no use once a later one is whole.
        remove_parts(self.folder)


def _failure(trainer: pl.Trainer) -> str | None:
    """Returns why this process could not write; only the first one writes."""
    error = getattr(trainer.strategy.checkpoint_io, "failure", None)
    return None if error is None else f"{error.strerror or error}"
