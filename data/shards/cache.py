"""Shards as open files of this machine.

In: an address. Out: an open local file. `LocalStore` opens files as they are; `ShardCache` keeps
copies of remote shards in a folder of bounded size that all processes of the machine share: each
shard is fetched once.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ..errors import SampleError
from ..files import remove_parts, whole_file
from ..urls import base_name, scheme, shown
from .cache_space import Room
from .locks import locked, tried
from .members import open_index
from .transfer import digest
from .transport import FetchError, Transport, full_disk, is_disk_full

# How often a shard in use is marked, and how long the mark protects it from prefetching.
TOUCH_SECONDS = 5.0
HOLD_SECONDS = 60.0
WAIT_SECONDS = 0.1


class OpenShard:
    """A local file, open for reading; closed with the object.

    Attributes:
        path: where the file was when it was opened.
        descriptor: readable even if the file is removed.
    """

    def __init__(self, path: str, descriptor: int):
        self.path = path
        self.descriptor = descriptor

    def __del__(self):
        os.close(self.descriptor)

    def touch(self) -> None:
        """Marks the shard as in use."""

    def is_removed(self) -> bool:
        """Whether the store has removed the file."""
        return False


class CachedShard(OpenShard):
    """A shard in a cache; shards in use are removed last."""

    def __init__(self, path: str, descriptor: int):
        super().__init__(path, descriptor)
        self._touched = 0.0

    def touch(self) -> None:
        now = time.monotonic()
        if now - self._touched > TOUCH_SECONDS:
            self._touched = now
            mark_used(self.descriptor)

    def is_removed(self) -> bool:
        return os.fstat(self.descriptor).st_nlink == 0


class ShardStore(Protocol):
    """Where a reader opens its shards."""

    def open(self, url: str, num_bytes: int = 0, sha256: str = "") -> OpenShard:
        """Opens a shard; size and checksum, where known, are those of the manifest.

        Raises:
            SampleError: the shard cannot be opened.
        """
        ...


class LocalStore:
    """Opens shards that are files of this machine."""

    def open(self, url: str, num_bytes: int = 0, sha256: str = "") -> OpenShard:
        if scheme(url):
            raise ValueError(
                f"the shard '{shown(url)}' is not a local file; give the data a cache folder "
                "(ShardCache), or copy the shards to a local folder and index them there"
            )
        return open_local(url)


class ShardCache:
    """A bounded folder of remote shards, shared by the processes of a machine.

    Local paths are opened where they are. A shard that cannot be fetched is marked, so that no
    process tries again before `quarantine_seconds` have passed or another run begins.

    Args:
        folder: the cache, on a disk of this machine; created if needed.
        max_bytes: limit of all files in it, such as 500e9.
        transport: fetches the shards.
        quarantine_seconds: how long a shard that could not be fetched is not tried again.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        max_bytes: float,
        transport: Transport | None = None,
        quarantine_seconds: float = 900.0,
    ):
        if max_bytes < 1:
            raise ValueError(f"a cache of {max_bytes:g} bytes holds no shard; give it more")
        self.folder = Path(folder).resolve()
        self.max_bytes = int(max_bytes)
        self.transport = transport or Transport()
        self.quarantine_seconds = quarantine_seconds
        self.started = time.time()
        self.room = Room(self.folder, self.max_bytes)
        self._ready = False
        self._checked: set[Path] = set()

    def _make(self) -> None:
        """Creates the folder at the first use: a run can be evaluated without it."""
        if self._ready:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder / "room.lock"):
                self.room.sweep()
        except OSError as error:
            raise self._unusable(error) from error
        self._ready = True

    def _unusable(self, error: OSError) -> ValueError:
        return ValueError(
            f"the cache folder '{self.folder}' cannot be used ({error}); name a folder on a "
            "disk of this machine that can be written"
        )

    def require(self, num_shards: int, num_bytes: int) -> None:
        """Raises a ValueError when the shards in use at one time do not fit.

        Args:
            num_shards: the plan's working set of a machine.
            num_bytes: their total size.
        """
        self._make()
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"the cache of {self.max_bytes} bytes in '{self.folder}' is too small: the order "
                f"of samples needs {num_shards} shards at hand on each machine, {num_bytes} bytes; "
                "give it that much, or use fewer lanes or a smaller block"
            )
        _, taken = self.room.contents()
        free = shutil.disk_usage(self.folder).free
        if num_bytes > free + taken:
            raise ValueError(
                f"the disk of the cache folder '{self.folder}' has {free + taken} bytes for it, "
                f"and the order of samples needs {num_shards} shards at hand, {num_bytes} bytes; "
                "free space there, or name a folder on a larger disk"
            )

    def open(self, url: str, num_bytes: int = 0, sha256: str = "") -> OpenShard:
        """Opens a shard: fetches it if needed, or waits for the process that does.

        Raises:
            SampleError: the shard cannot be read, now or before (`shard_missing`).
            ValueError: the disk is full, the cache is smaller than the shard, the driver is missing
                or commands are not allowed.
        """
        if not scheme(url):
            return open_local(url)
        with self._disk_errors(url, num_bytes):
            path = self._path(url, num_bytes, sha256)
            shard = self._open_whole(path, num_bytes, sha256)
            if shard is None:
                self._check_quarantine(path)
                with locked(self._beside(path, "lock")) as lock:
                    shard = self._open_whole(path, num_bytes, sha256)
                    if shard is None:
                        self._check_quarantine(path)
                        self._check_fits(url, num_bytes)
                        while not self.room.reserve(lock, num_bytes, float("inf")):
                            # Others are fetching; their shards can be removed once complete.
                            time.sleep(WAIT_SECONDS)
                        shard = self._fetch(url, path, lock, num_bytes, sha256)
            shard.touch()
            return shard

    def prefetch(self, url: str, num_bytes: int = 0, sha256: str = "") -> bool:
        """Fetches a shard that will be needed, or marks a cached one as in use.

        It removes no shard in use and does not wait.

        Returns:
            False while another process fetches the shard or there is no room yet.

        Raises:
            ValueError: see `open`.
        """
        if not scheme(url):
            return True
        with self._disk_errors(url, num_bytes):
            path = self._path(url, num_bytes, sha256)
            with contextlib.suppress(FileNotFoundError):
                mark_used(path)
                return True
            if self._quarantined(path):
                return True
            with tried(self._beside(path, "lock")) as lock:
                if lock is None:
                    return False
                if path.exists() or self._quarantined(path):
                    return True
                self._check_fits(url, num_bytes)
                if not self.room.reserve(lock, num_bytes, time.time() - HOLD_SECONDS):
                    return False
                with contextlib.suppress(SampleError):
                    self._fetch(url, path, lock, num_bytes, sha256)
            return True

    def _open_whole(self, path: Path, num_bytes: int, sha256: str) -> OpenShard | None:
        """Opens a shard of the cache; None if it is absent, or not the one of the manifest.

        Where its checksum is known, the copy of an earlier run is read once in this one.
        """
        shard = open_cached(path, num_bytes)
        if shard is None or not sha256 or path in self._checked:
            return shard
        mark = self._beside(path, "checked")
        with contextlib.suppress(FileNotFoundError):
            if mark.stat().st_mtime >= self.started:
                self._checked.add(path)
                return shard
        if digest(path) != sha256:
            path.unlink(missing_ok=True)
            return None
        self._mark_checked(path)
        return shard

    def _mark_checked(self, path: Path) -> None:
        self._checked.add(path)
        with contextlib.suppress(PermissionError):  # another user's
            self._beside(path, "checked").touch()

    def _fetch(self, url: str, path: Path, lock: int, num_bytes: int, sha256: str) -> OpenShard:
        """Fetches a shard whose lock is held and whose room is reserved."""
        # The process that had the lock before may have been killed.
        remove_parts(self.folder, path.name)
        try:
            with whole_file(path) as part:
                self.transport.download(url, part, num_bytes, sha256, self.max_bytes)
                if not num_bytes:
                    # Only now its size is known.
                    self.room.reserve(lock, 0, float("inf"))
                # Opened before it can be removed again; its members are listed once for all.
                shard = CachedShard(str(path), os.open(part, os.O_RDONLY))
                open_index(shard.path, shard.descriptor)
            if sha256:
                self._mark_checked(path)
        except FetchError as error:
            self._beside(path, "bad").write_text(str(error), encoding="utf-8")
            raise SampleError("shard_missing", str(error)) from error
        return shard

    def _path(self, url: str, num_bytes: int, sha256: str) -> Path:
        """Returns the path of a shard in the cache; a rewritten shard gets another one."""
        words = f"{url}\0{num_bytes}\0{sha256}".encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(words, digest_size=12).hexdigest()
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in base_name(url))
        name = safe.removesuffix(".tar").encode("ascii", "replace").decode().replace("?", "_")
        return self.folder / f"{digest}-{name[-80:]}.tar"

    def _beside(self, path: Path, kind: str) -> Path:
        return path.with_name(f"{path.name}.{kind}")

    def _quarantined(self, path: Path) -> str:
        """Returns why a shard is in quarantine, "" if it is not."""
        mark = self._beside(path, "bad")
        try:
            since = mark.stat().st_mtime
            reason = mark.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        # A mark from before this run does not count: the cause may be repaired.
        if since < self.started - 1 or since < time.time() - self.quarantine_seconds:
            mark.unlink(missing_ok=True)
            return ""
        return reason

    def _check_quarantine(self, path: Path) -> None:
        reason = self._quarantined(path)
        if reason:
            raise SampleError("shard_missing", reason)

    def _check_fits(self, url: str, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"the shard '{shown(url)}' has {num_bytes} bytes, more than the whole cache of "
                f"{self.max_bytes} bytes in '{self.folder}'; give it room for the shards in use"
            )

    @contextlib.contextmanager
    def _disk_errors(self, url: str, num_bytes: int) -> Iterator[None]:
        """Makes the folder if need be; turns errors of the disk into a ValueError with the fix."""
        self._make()
        try:
            yield
        except OSError as error:
            if not is_disk_full(error):
                raise self._unusable(error) from error
            raise full_disk(self.folder, url, num_bytes) from error


def open_local(path: str) -> OpenShard:
    """Opens a file of this machine; raises SampleError."""
    try:
        return OpenShard(path, os.open(path, os.O_RDONLY))
    except OSError as error:
        raise SampleError("shard_missing", f"'{path}': {error.strerror}") from error


def open_cached(path: Path, num_bytes: int) -> OpenShard | None:
    """Opens a shard of the cache; None if it is absent or has another size."""
    try:
        shard = CachedShard(str(path), os.open(path, os.O_RDONLY))
    except FileNotFoundError:
        return None
    if num_bytes and os.fstat(shard.descriptor).st_size != num_bytes:
        return None
    return shard


def mark_used(file: int | Path) -> None:
    """Sets the time of the last use of a file; raises FileNotFoundError."""
    modified = os.stat(file).st_mtime_ns
    # Another user's file cannot be marked: it is merely removed earlier.
    with contextlib.suppress(PermissionError):
        os.utime(file, ns=(time.time_ns(), modified))
