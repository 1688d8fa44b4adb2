"""Checkpoints: atomic files `RUN/checkpoints/step-00000500.ckpt`, the last few kept.

In: the trainer's state after a step. Out: a file that is either whole or not there. Files are read
with `weights_only=True`: they hold tensors and plain values, never code.
"""

import os
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

PATTERN = re.compile(r"step-(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames: a kill or a full disk never leaves half a file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Saves `checkpoint` at `path`; an interrupted write leaves only a `.part` file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        try:
            with open(part, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            raise disk_error(error, path) from error
        os.replace(part, path)


def disk_error(error: Exception, path: Path) -> Exception:
    """Turns torch's failed write on a full disk into the OSError that it was."""
    if isinstance(error, OSError):
        return error
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < 1 << 20 or "file write failed" in str(error):
        return OSError(28, "No space left on device", str(path))
    return error


def newest(run_dir: str | Path) -> Path | None:
    """Returns the checkpoint with the highest step in a run folder, or None."""
    found = [p for p in Path(run_dir, "checkpoints").glob("*.ckpt") if PATTERN.fullmatch(p.name)]
    return max(found, key=step_of, default=None)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    match = PATTERN.fullmatch(path.name)
    assert match, path
    return int(match[1])


def load(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint on the CPU without running any code in it.

    Raises:
        ValueError: the file is no checkpoint, or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"there is no checkpoint {path}") from None
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); it may be cut off: "
            "delete it and resume from the one before"
        ) from error


class Checkpoints(pl.Callback):
    """Saves every `every_n_steps` steps, when the run stops, and at its end.

    Args:
        folder: where the files go.
        every_n_steps: distance between two files.
        keep: how many files stay; older ones are deleted after a new one is whole.
    """

    def __init__(self, folder: Path, every_n_steps: int, keep: int):
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.keep = keep

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Runs last among the callbacks, so that rows and counters of this step are written."""
        step = trainer.global_step
        if step % self.every_n_steps == 0 or trainer.should_stop or step == trainer.max_steps:
            self.save(trainer, step)

    def save(self, trainer: pl.Trainer, step: int) -> None:
        """Writes one checkpoint (collective) and prunes the oldest."""
        trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt", weights_only=False)
        if trainer.is_global_zero:
            files = sorted(p for p in self.folder.glob("*.ckpt") if PATTERN.fullmatch(p.name))
            for old in files[: -self.keep]:
                old.unlink()
