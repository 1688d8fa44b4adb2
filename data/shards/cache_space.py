"""How the files in a cache folder share its bytes.

In: the folder, a limit, what is about to be fetched. Out: room for it, made by removing the shards
that were used longest ago, and what killed processes left. The folder is the only state: every
process of the machine sees the same.

An entry NAME has the files NAME (the shard, complete), NAME.index (its members), NAME.lock (it is
being fetched; the file says how many bytes are reserved), NAME.part-* (what has arrived) and
NAME.bad (it could not be fetched). Whatever is called otherwise belongs to somebody else: it is
neither counted nor touched.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .locks import locked, tried

# What a killed process was writing is removed only when no living one can be at it any more.
OLD_SECONDS = 600.0
# NAME as `ShardCache` writes it, and what stands beside it; indices begin with a dot at first. A
# folder with other files in it may be named as the cache: a user's own tars must survive that.
OURS = re.compile(r"\.?[0-9a-f]{24}-.*\.tar(\..*)?")


@dataclass(frozen=True)
class Shelf:
    """A complete shard in the cache: its name, bytes (with its index) and time of last use."""

    name: str
    num_bytes: int
    used: float


class Room:
    """Accounts for the bytes of a cache folder.

    Args:
        folder: The cache.
        max_bytes: Limit of all its files together.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self.max_bytes = max_bytes

    def reserve(self, lock: int, num_bytes: int, used_before: float) -> bool:
        """Reserves bytes for a shard about to be fetched.

        Args:
            lock: Descriptor of the entry's lock, which the caller holds.
            num_bytes: Bytes to come.
            used_before: Only shards last used before this time (seconds since 1970) make room.

        Returns:
            Whether there is room.
        """
        # One at a time, else two would count on the same room.
        with locked(self.folder / "room.lock"):
            os.ftruncate(lock, 0)
            self.sweep()
            shelves, taken = self.contents()
            taken += num_bytes
            removed = [shelf for shelf in shelves if shelf.used < used_before]
            for shelf in sorted(removed, key=lambda shelf: shelf.used):
                if taken <= self.max_bytes:
                    break
                # Who has it open reads on; the disk gets the bytes back when it is closed.
                for suffix in ("", ".index"):
                    (self.folder / f"{shelf.name}{suffix}").unlink(missing_ok=True)
                taken -= shelf.num_bytes
            if taken > self.max_bytes:
                return False
            os.pwrite(lock, str(num_bytes).encode(), 0)
            return True

    def contents(self) -> tuple[list[Shelf], int]:
        """Returns the complete shards, and the bytes of these, of reservations and of the rest."""
        sizes: dict[str, int] = {}
        used: dict[str, float] = {}
        coming: dict[str, int] = {}
        for name, status in self._files():
            entry, _, kind = name.rpartition(".")
            if kind.startswith("part-"):
                coming[entry] = coming.get(entry, 0) + status.st_size
            elif kind == "index":
                sizes[entry] = sizes.get(entry, 0) + status.st_size
            elif kind == "tar":
                sizes[name] = sizes.get(name, 0) + status.st_size
                used[name] = status.st_atime
        for name in self._names(".lock"):
            entry = name.removesuffix(".lock")
            with contextlib.suppress(OSError, ValueError):
                reserved = int((self.folder / name).read_bytes() or b"0")
                coming[entry] = max(reserved, coming.get(entry, 0))
        shelves = [Shelf(name, sizes[name], used[name]) for name in used]
        # A shard that is complete while its lock is still there is not counted twice.
        arriving = sum(size for name, size in coming.items() if name not in used)
        return shelves, sum(sizes.values()) + arriving

    def sweep(self) -> None:
        """Removes what killed processes left; what a living one is at stays."""
        for name in self._names(".lock"):
            with tried(self.folder / name) as lock:
                if lock is not None:
                    self.remove(f"{name.removesuffix('.lock')}.part-")
        locks = set(self._names(".lock"))
        old = time.time() - OLD_SECONDS
        for name, status in self._files():
            entry, _, kind = name.rpartition(".")
            if f"{entry}.lock" in locks:
                continue
            orphan = kind == "index" and not (self.folder / entry).exists()
            # An attempt that was given up may still write; indices go to .NAME.index.PID first.
            lost = kind.startswith("part-") or name.startswith(".")
            if orphan or (lost and status.st_mtime < old):
                (self.folder / name).unlink(missing_ok=True)

    def remove(self, prefix: str) -> None:
        """Removes the files whose names begin so."""
        for name in os.listdir(self.folder):
            if name.startswith(prefix):
                (self.folder / name).unlink(missing_ok=True)

    def _names(self, suffix: str) -> list[str]:
        names = filter(OURS.fullmatch, os.listdir(self.folder))
        return [name for name in names if name.endswith(suffix)]

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yields names and states of our files; those that vanish meanwhile are left out."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if OURS.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.name, entry.stat()
