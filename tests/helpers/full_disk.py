"""A device that is always full, in the place of a file that is being written."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from counterpoint.data import files


def fill_disk(name: str, monkeypatch: Any = None) -> None:
    """Lets every write to the file `name` fail with ENOSPC, in this process."""
    beside = files.beside

    def full(path: Path) -> Path:
        part = beside(path)
        if part.name.lstrip(".").startswith(name):
            part.symlink_to("/dev/full")
        return part

    monkeypatch.setattr(files, "beside", full) if monkeypatch else setattr(files, "beside", full)


class FullDisk(pl.Callback):
    """Fills the disk when the run begins.

    Args:
        name: the file that cannot be written.
    """

    def __init__(self, name: str):
        self.name = name

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The process ends with the run."""
        fill_disk(self.name)
