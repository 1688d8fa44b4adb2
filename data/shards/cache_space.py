"""Space in a cache folder.

In: the folder, a limit, the size of a shard to fetch. Out: room for it, made by removing the least
recently used shards and the leftovers of killed processes. The folder is the only state: every
process of the machine sees the same.

An entry NAME has the files NAME (the shard, complete), NAME.index (its members), NAME.checked (when
its checksum was last found right), NAME.lock (it is being fetched; the file holds the number of
reserved bytes), .NAME.part-* (what has arrived) and NAME.bad (it could not be fetched). Files with
other names are not the cache's: they are neither counted nor touched.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import OLD_SECONDS, remove_parts
from .locks import locked, tried

# NAME as `ShardCache` writes it, and the files beside it; parts begin with dots. The folder may
# hold other files: a user's own tars must survive.
OURS = re.compile(r"\.*([0-9a-f]{24}-.*\.tar)(\..*)?")


@dataclass(frozen=True)
class Shelf:
    """A complete shard in the cache: its name, bytes (with its index) and time of last use."""

    name: str
    num_bytes: int
    used: float


class Room:
    """Accounts for the bytes of a cache folder.

    Args:
        folder: the cache.
        max_bytes: limit of all its files together.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self.max_bytes = max_bytes

    def reserve(self, lock: int, num_bytes: int, used_before: float) -> bool:
        """Reserves bytes for a shard about to be fetched.

        Args:
            lock: descriptor of the entry's lock, which the caller holds.
            num_bytes: bytes to come.
            used_before: only shards last used before this time (seconds since 1970) make room.

        Returns:
            Whether there is room.
        """
        # One at a time, else two would reserve the same room.
        with locked(self.folder / "room.lock"):
            os.ftruncate(lock, 0)
            self.sweep()
            shelves, taken = self.contents()
            taken += num_bytes
            removed = [shelf for shelf in shelves if shelf.used < used_before]
            for shelf in sorted(removed, key=lambda shelf: shelf.used):
                if taken <= self.max_bytes:
                    break
                # Processes that have it open read on; the disk space is freed when they close it.
                for suffix in ("", ".index", ".checked"):
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
        for entry, kind, status in self._files():
            if kind.startswith(".part-"):
                coming[entry] = coming.get(entry, 0) + status.st_size
            elif kind in ("", ".index"):
                sizes[entry] = sizes.get(entry, 0) + status.st_size
            if not kind:
                used[entry] = status.st_atime
        for entry in self._being_fetched():
            with contextlib.suppress(OSError, ValueError):
                reserved = int((self.folder / f"{entry}.lock").read_bytes() or b"0")
                coming[entry] = max(reserved, coming.get(entry, 0))
        shelves = [Shelf(name, sizes[name], used[name]) for name in used]
        # A shard that is complete while its lock is still there is not counted twice.
        arriving = sum(size for name, size in coming.items() if name not in used)
        return shelves, sum(sizes.values()) + arriving

    def sweep(self) -> None:
        """Removes the leftovers of killed processes."""
        for entry in self._being_fetched():
            with tried(self.folder / f"{entry}.lock") as lock:
                if lock is not None:
                    remove_parts(self.folder, entry)
        # An attempt that was given up may still write.
        remove_parts(self.folder, older_than=OLD_SECONDS)
        being_fetched = set(self._being_fetched())
        for entry, kind, _ in self._files():
            orphan = kind in (".index", ".checked") and not (self.folder / entry).exists()
            if orphan and entry not in being_fetched:
                (self.folder / f"{entry}{kind}").unlink(missing_ok=True)

    def _being_fetched(self) -> list[str]:
        return [entry for entry, kind, _ in self._files() if kind == ".lock"]

    def _files(self) -> Iterator[tuple[str, str, os.stat_result]]:
        """Yields entry, kind and state of the cache's files; those that vanish are left out."""
        with os.scandir(self.folder) as files:
            for file in files:
                if match := OURS.fullmatch(file.name):
                    with contextlib.suppress(FileNotFoundError):
                        yield match[1], match[2] or "", file.stat()
