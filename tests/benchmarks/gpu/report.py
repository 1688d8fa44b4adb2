"""What a piece of the GPU benchmark has measured, in a file that is whole after every row.

In: rows of numbers; what goes wrong in one becomes a sentence in it. Out: the piece's part of
`DEVICE-DATE.json`, in which the other pieces' parts stay as they are.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from counterpoint.data.files import write_whole

Scale = Literal["full", "tiny"]
LONGEST = 300  # characters of an error's message


class Report:
    """A piece's rows.

    Args:
        path: of the file; what other pieces have written into it stays.
        piece: its name.
        scale: `full`; `tiny`: sizes at which nothing is learned about speed, but the code has run.
        seconds: after which no further row is begun.
        carried: folder of data that was made beforehand; None: there is none.
    """

    def __init__(
        self,
        path: Path,
        piece: str,
        scale: Scale = "full",
        seconds: float = 540.0,
        carried: Path | None = None,
    ):
        self.path, self.scale, self.carried = path, scale, carried
        self.piece: dict[str, Any] = {"scale": scale, "seconds": 0.0, "rows": []}
        self._name, self._start, self._seconds = piece, time.monotonic(), seconds
        self._write()

    @property
    def device(self) -> torch.device:
        """The GPU; without one the CPU, where a tiny scale runs, too."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def seconds_left(self) -> float:
        """Until no further row is begun."""
        return self._seconds - (time.monotonic() - self._start)

    def measure(self, measured: Callable[[], dict[str, Any]], **named: Any) -> dict[str, Any]:
        """Adds a row: what it is of (`named`), and what the function measures.

        An error, memory that does not suffice, and time that is used up are `failed` in the row.
        """
        row = dict(named)
        self.piece["rows"].append(row)
        try:
            if self.seconds_left < 0:
                raise TimeoutError("left out, since the time of this piece was used up")
            row |= measured()
        except Exception as error:
            row["failed"] = sentence(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._write()
        return row

    def fail(self, error: Exception | str) -> None:
        """Notes why the piece as a whole has ended early."""
        self.piece["failed"] = error if isinstance(error, str) else sentence(error)
        self._write()

    def _write(self) -> None:
        self.piece["seconds"] = round(time.monotonic() - self._start, 1)
        whole = json.loads(self.path.read_text()) if self.path.exists() else {"pieces": {}}
        whole |= {"machine": machine()}
        whole["pieces"][self._name] = self.piece
        write_whole(self.path, json.dumps(whole, indent=1) + "\n")


def sentence(error: Exception) -> str:
    """Returns an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"


def machine() -> dict[str, Any]:
    """Returns what the numbers were measured on."""
    has_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if has_gpu else "cpu",
        "driver": driver() if has_gpu else None,
        "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if has_gpu else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "commit": commit(),
    }


def driver() -> str | None:
    """Returns the version of the GPU's driver; None: the driver does not say."""
    return printed("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def commit() -> str | None:
    """Returns the commit that is measured; None: this is no clone."""
    return printed("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD")


def printed(*words: str) -> str | None:
    """Returns the first line that a command prints; None: there is no such command, or it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.splitlines() or [None])[0]
