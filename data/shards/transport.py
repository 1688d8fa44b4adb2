"""Copies remote files to this machine.

In: an address (http, s3, gs, hf, ...: any that fsspec has a driver for, or a command). Out: a
complete local file, or an error in one sentence. A server that drops, stalls, truncates or is
overloaded costs time: every attempt starts anew, after a growing pause, and none waits for ever.
"""

import contextlib
import errno
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..files import sync, whole_file
from ..urls import scheme, shown, without_secrets
from .transfer import Incomplete, check, check_arrived, copy_output, watched

Result = TypeVar("Result")

MAX_DELAY = 30.0
SLOWEST = 1e6  # bytes a second at which an upload is not given up
# Answers of a web server that may differ at the next attempt; so may those from 500 on.
PASSING_STATUS = (408, 416, 425, 429)
PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "abfs": "adlfs",
    "az": "adlfs",
}
# Drivers that fetch files from servers. fsspec has others, which read local files or archives; one
# of them is used when the user gives its settings.
REMOTE = {*PACKAGES, "abfss", "adl", "hdfs", "oci", "oss", "s3a", "sftp", "smb", "ssh", "tos"}
REMOTE |= {"webdav", "webhdfs", ""}  # the last: `file://`

# By process, protocol and settings. Drivers are never freed: collecting one that was inherited
# from the parent of a fork waits a second for an event loop that only the parent has, and then
# closes connections that are the parent's.
_systems: dict[tuple[int, str, float, str], Any] = {}


def _forget_parent() -> None:
    """Lets fsspec make its own lock and event loop in a forked process.

    A thread of the parent may have held the lock; it is not here to release it.
    """
    if "fsspec.asyn" in sys.modules:
        sys.modules["fsspec.asyn"].reset_lock()


os.register_at_fork(after_in_child=_forget_parent)


class FetchError(Exception):
    """A remote file cannot be read or written; the message names it and the reason."""


class Refused(FetchError):
    """The server refuses the file: another attempt is pointless."""


class NotThere(Refused):
    """The server has no such file."""


class Transport:
    """Fetches, lists and writes remote files.

    Args:
        num_attempts: attempts per file.
        stall_timeout: seconds without progress that end an attempt.
        first_delay: pause in seconds before the second attempt; it doubles from one to the next.
        options: arguments of fsspec's drivers, by protocol: `{"s3": {"anon": True}}`.
        allow_pipe: whether the commands of `pipe:` addresses may run. They come from the manifest,
            which then has to be trusted like a program.
    """

    def __init__(
        self,
        num_attempts: int = 6,
        stall_timeout: float = 60.0,
        first_delay: float = 0.5,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        allow_pipe: bool = False,
    ):
        if num_attempts < 1 or stall_timeout <= 0 or first_delay < 0:
            raise ValueError(
                f"num_attempts={num_attempts}, stall_timeout={stall_timeout:g}, "
                f"first_delay={first_delay:g}: give at least 1 attempt, a time-out above 0 and a "
                "delay of 0 or more"
            )
        self.num_attempts = num_attempts
        self.stall_timeout = stall_timeout
        self.first_delay = first_delay
        self.options = dict(options or {})
        self.allow_pipe = allow_pipe

    def require(self, url: str) -> None:
        """Raises a ValueError unless the address is allowed and its driver installed."""
        if scheme(url) != "pipe":
            self._system(url)
        elif not self.allow_pipe:
            raise ValueError(
                f"'{shown(url)}' is a command, and running commands from a manifest is not "
                "allowed by default; if you trust it, set data.allow_pipe=true (and give "
                "--allow_pipe to `counterpoint data index`), or name files or addresses instead"
            )

    def download(
        self,
        url: str,
        path: Path,
        num_bytes: int = 0,
        sha256: str = "",
        max_bytes: float = float("inf"),
    ) -> None:
        """Copies a remote file atomically and syncs it.

        Args:
            url: the address.
            path: the file to write.
            num_bytes: its size; 0: unknown.
            sha256: its checksum; "": unknown.
            max_bytes: an attempt ends when more have arrived, as it does after `num_bytes`.

        Raises:
            FetchError: the file cannot be read completely, however often it is tried.
            ValueError: the disk is full, the driver is missing, or commands are not allowed.
        """
        self.require(url)
        try:
            limit = num_bytes or max_bytes
            self._retried(url, lambda: self._attempt(url, path, num_bytes, sha256, limit))
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise full_disk(path.parent, url, num_bytes) from error

    @contextlib.contextmanager
    def temporary_copy(self, url: str, num_bytes: int = 0, sha256: str = "") -> Iterator[Path]:
        """Yields the path of a copy, which is removed at the end of the block; as `download`."""
        with tempfile.TemporaryDirectory(
            prefix="counterpoint-copy-", ignore_cleanup_errors=True
        ) as folder:
            path = Path(folder, "shard.tar")
            self.download(url, path, num_bytes, sha256)
            yield path

    def num_bytes(self, url: str) -> int:
        """Returns the size of a remote file, 0 if unknown; raises FetchError."""
        if scheme(url) == "pipe":
            return 0
        system = self._system(url)
        info = self._retried(url, lambda: watched(lambda: system.info(url), self.stall_timeout))
        return int(info.get("size") or 0)

    def content(self, url: str) -> bytes:
        """Returns a small remote file; raises FetchError."""
        system = self._system(url)
        return self._retried(url, lambda: watched(lambda: system.cat_file(url), self.stall_timeout))

    def listing(self, pattern: str) -> dict[str, int]:
        """Returns the addresses that fit a glob, sorted, with their bytes (0: unknown).

        Raises:
            ValueError: the listing cannot be read, or its driver is missing.
        """
        system = self._system(pattern)
        # A listing comes in many small answers, whose progress is not visible here.
        patience = 20 * self.stall_timeout
        try:
            files = self._retried(
                pattern, lambda: watched(lambda: system.glob(pattern, detail=True), patience)
            )
        except NotThere:
            return {}
        except FetchError as error:
            raise ValueError(f"{error}; check the address, or name the shards") from error
        sizes = {
            system.unstrip_protocol(name): int(info.get("size") or 0)
            for name, info in files.items()
            if info.get("type") != "directory"
        }
        return dict(sorted(sizes.items()))

    def tree(self, url: str) -> dict[str, int]:
        """Returns all files below a remote folder by their names there, with their bytes."""
        system, patience = self._system(url), 20 * self.stall_timeout
        system.invalidate_cache()
        root = system._strip_protocol(url).rstrip("/") + "/"
        try:
            files = self._retried(
                url, lambda: watched(lambda: system.find(root, detail=True), patience)
            )
        except NotThere:
            return {}
        sizes = {name.removeprefix(root): int(info["size"]) for name, info in files.items()}
        # A store may name anything; a name is a path to us.
        return {n: size for n, size in sizes.items() if not {"", ".", ".."} & {*n.split("/")}}

    def upload(self, path: Path, url: str) -> None:
        """Copies a local file to where it is whole or as it was before; raises FetchError."""
        system = self._system(url)
        patience = 20 * self.stall_timeout + path.stat().st_size / SLOWEST
        self._retried(
            url, lambda: watched(lambda: system.put_file(str(path), url), patience), "written"
        )

    def write(self, url: str, content: bytes) -> None:
        """Writes a small remote file; raises FetchError."""
        system = self._system(url)
        self._retried(
            url,
            lambda: watched(lambda: system.pipe_file(url, content), self.stall_timeout),
            "written",
        )

    def remove(self, url: str) -> None:
        """Removes a remote file, if it is there; raises FetchError."""
        system = self._system(url)
        with contextlib.suppress(NotThere):
            self._retried(
                url, lambda: watched(lambda: system.rm_file(url), self.stall_timeout), "removed"
            )

    def _attempt(self, url: str, path: Path, num_bytes: int, sha256: str, max_bytes: float) -> None:
        # Every attempt has its own file: an abandoned one may still write.
        with whole_file(path) as part:
            if scheme(url) == "pipe":
                copy_output(url, part, self.stall_timeout, max_bytes)
            else:
                self._copy(url, part, max_bytes)
            check(part, num_bytes, sha256)
            sync(part)

    def _copy(self, url: str, part: Path, max_bytes: float) -> None:
        from fsspec.callbacks import Callback

        class Bounded(Callback):
            """Ends a transfer of too many bytes: a body may have no end."""

            def relative_update(self, inc: int = 1) -> None:
                super().relative_update(inc)
                check_arrived(self.value, max_bytes)

            def absolute_update(self, value: int) -> None:
                super().absolute_update(value)
                check_arrived(self.value, max_bytes)

        system, progress = self._system(url), Bounded()
        watched(
            lambda: system.get_file(system._strip_protocol(url), str(part), callback=progress),
            self.stall_timeout,
            part,
        )
        if progress.size and part.stat().st_size != progress.size:
            raise Incomplete(f"{part.stat().st_size} of {progress.size} bytes arrived")

    def _retried(self, url: str, call: Callable[[], Result], done: str = "read") -> Result:
        """Calls until it works, an error is final, or the attempts are used up."""
        # Python's global generator may be seeded alike in every process; these pauses must differ.
        chance = random.SystemRandom()
        error: Exception = Incomplete("never tried")
        for attempt in range(self.num_attempts):
            if attempt:
                delay = min(MAX_DELAY, self.first_delay * 2 ** (attempt - 1))
                time.sleep(delay * chance.uniform(0.5, 1))
            try:
                return call()
            except Exception as caught:
                error = caught
                if is_disk_full(error):
                    raise
                if is_missing(error):
                    raise NotThere(f"'{shown(url)}' does not exist") from error
                if is_final(error):
                    raise Refused(f"'{shown(url)}' cannot be {done}: {brief(error)}") from error
        raise FetchError(
            f"'{shown(url)}' could not be {done} in {self.num_attempts} attempts: {brief(error)}"
        ) from error

    def _system(self, url: str) -> Any:
        """Returns fsspec's driver for an address: one a process, since none survives a fork."""
        protocol = scheme(url)
        settings = (self.stall_timeout, repr(self.options.get(protocol)))
        key = (os.getpid(), protocol, *settings)
        if key not in _systems:
            _systems.setdefault(key, self._new_system(protocol, url))
        return _systems[key]

    def _new_system(self, protocol: str, url: str) -> Any:
        import fsspec

        if protocol not in REMOTE | self.options.keys():
            raise ValueError(
                f"'{shown(url)}' cannot be fetched: {protocol}:// names no server or store that "
                "shards come from; use http, https, s3, gs, hf or az, or give fsspec's driver its "
                f"settings in the transport's options ({{{protocol}: {{}}}} for none)"
            )
        try:
            options = {**self._defaults(protocol), **self.options.get(protocol, {})}
            return fsspec.filesystem(protocol, skip_instance_cache=True, **options)
        except ImportError as error:
            package = PACKAGES.get(protocol, f"that fsspec names ({error})")
            raise ValueError(
                f"'{shown(url)}' needs the Python package {package}; install it with pip"
            ) from error
        except ValueError as error:
            reason = without_secrets(str(error))
            raise ValueError(f"'{shown(url)}' cannot be fetched: {reason}") from error

    def _defaults(self, protocol: str) -> dict[str, Any]:
        """Returns time-outs for the driver's own connections."""
        seconds = self.stall_timeout
        if protocol in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
            headers = {"Accept-Encoding": "identity"}
            return {"client_kwargs": {"timeout": timeout, "headers": headers, "trust_env": True}}
        if protocol == "s3":
            return {"config_kwargs": {"connect_timeout": seconds, "read_timeout": seconds}}
        return {} if protocol else {"auto_mkdir": True}


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is a full disk or a used-up quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def full_disk(folder: Path, url: str, num_bytes: int) -> ValueError:
    """Returns the error for a disk without room for a shard."""
    size = f" ({num_bytes} bytes)" if num_bytes else ""
    return ValueError(
        f"the disk of '{folder}' is full: '{shown(url)}'{size} does not fit; free space "
        "there, or name a folder on a larger disk"
    )


def is_missing(error: Exception) -> bool:
    """Whether the server has no such file."""
    # fsspec reports any failure to get a size as a missing file, with the reason as its cause.
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError):
        return False
    if cause is None or isinstance(cause, FileNotFoundError | KeyError):
        return True
    answer = getattr(cause, "response", None)  # of S3's client
    answer = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    return 404 in (getattr(cause, "status", 0), answer.get("HTTPStatusCode"))


def is_final(error: Exception) -> bool:
    """Whether another attempt is pointless."""
    status = getattr(error.__cause__ or error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in PASSING_STATUS
    return isinstance(error, PermissionError)


def brief(error: Exception) -> str:
    """Returns a short text of an error, without secrets."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return f"the server answers {status}"
    text = without_secrets(str(error).splitlines()[0])[:200] if str(error) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
