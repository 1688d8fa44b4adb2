"""A copy of the run folder in an object store, for machines that are not there tomorrow.

In: the run folder on this machine's disk, and an address (`s3://bucket/run`). Out: while the run
goes on, whole files behind it there; at its end all of them; on another machine, the folder as it
was at the newest checkpoint that arrived.

An object is whole or absent, and the index of a checkpoint that is a folder is sent last. Stores
have no locks: a lease with a pulse tells who writes there, and two processes that start within the
same second may both take it.
"""

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ....data.files import whole_folder
from ....data.shards.transport import FetchError, NotThere, Transport
from ....data.urls import shown
from ....models.distributed_checkpoint import INDEX
from ....models.weights import damage
from ....train.checkpointing import checkpoint as checkpoints
from ....train.screen import log_line
from ..env import is_first_process, log, under_torchrun
from ..rendezvous import agreed

LEASE = ".lease.json"
PULSE = 15.0  # seconds
SILENCE = 4 * PULSE  # of the holder of a lease, after which it is taken for dead
INTERVAL = 20.0  # seconds between two looks at the run folder
CHECKPOINTS = "checkpoints/"
State = tuple[int, int]


class Mirror:
    """Copies a run folder to a store and back.

    Args:
        url: of the copy.
        run_dir: the folder.
    """

    def __init__(self, url: str, run_dir: Path):
        self.url, self.run_dir = url.rstrip("/"), run_dir
        self.transport = Transport()
        self.transport.require(url)
        self._sent: dict[str, State] = {}
        self._there: set[str] = set()
        self._lease: dict[str, str | int] = {}
        self._failure: str | None = None
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []

    def acquire(self) -> None:
        """Takes the lease.

        Raises:
            ValueError: another process has it, and lives.
        """
        held = self._holder()
        if held and not _is_dead(held):
            log(f"{shown(self.url)} was last written by {_text(held)}; waiting for its pulse")
            end = time.monotonic() + SILENCE
            while time.monotonic() < end:
                time.sleep(PULSE / 3)
                if (now := self._holder()) != held:
                    if not now:
                        break
                    raise ValueError(
                        f"{shown(self.url)} is being written by {_text(now)}; wait until that run "
                        "has ended, stop it, or choose another --mirror"
                    )
        self._lease = {"host": platform.node(), "process": os.getpid(), "pulse": 0}
        self._lease["since"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._write_lease()
        self._there = set(self.transport.tree(self.url))

    def holds_run(self) -> bool:
        """Whether a run has been saved there."""
        return bool(_steps(self.transport.tree(self.url)))

    def restore(self) -> None:
        """Brings the newest whole checkpoint here, and what lies beside it, if it is newer."""
        files = self.transport.tree(self.url)
        local = checkpoints.newest(self.run_dir)
        here = -1 if local is None else checkpoints.step_of(local)
        steps = {step: name for step, name in _steps(files).items() if step > here}
        for _, name in sorted(steps.items(), reverse=True):
            log(f"fetching {name} of {shown(self.url)}")
            self._fetch_checkpoint(name, files)
            if (reason := damage(self.run_dir / CHECKPOINTS / name)) is None:
                break
            log(f"{name} of {shown(self.url)} is damaged ({reason})")
        else:
            return
        for file in files:
            if not file.startswith((CHECKPOINTS, ".")):
                self._fetch(file, self.run_dir / file, files[file])
                self._remember(file)

    def start(self) -> None:
        """Copies what changes, from now on, and keeps the lease."""
        for work, seconds in ((self._push_once, INTERVAL), (self._beat, PULSE)):
            thread = threading.Thread(target=self._repeat, args=(work, seconds), daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Copies the rest, and gives the lease back.

        Raises:
            ValueError: not everything is there.
        """
        self._ends.set()
        for thread in self._threads:
            thread.join()
        self._threads = []
        try:
            self._check_lease()
            self.push()
        except (FetchError, OSError) as error:
            raise ValueError(
                f"not all of {self.run_dir} could be copied to its mirror: {error}; everything is "
                "in the folder: continue with --resume, or copy it by other means"
            ) from error
        self.transport.remove(f"{self.url}/{LEASE}")

    def push(self) -> None:
        """Copies every file that has changed, and removes checkpoints that are gone.

        Raises:
            FetchError: a file could not be written.
        """
        names = list(self._local_files())
        for name in names:
            path = self.run_dir / name
            try:
                state = _state(path)
                if self._sent.get(name) == state:
                    continue
                self.transport.upload(path, f"{self.url}/{name}")
            except (FileNotFoundError, NotThere):
                continue  # deleted meanwhile: an old checkpoint
            self._sent[name] = state
            self._there.add(name)
        here = set(names)
        gone = (n for n in self._there - here if n.startswith(CHECKPOINTS))
        # The index first: without it no folder is a checkpoint.
        for name in sorted(gone, key=lambda name: not name.endswith(INDEX)):
            self.transport.remove(f"{self.url}/{name}")
            self._there.discard(name)
            self._sent.pop(name, None)

    def _local_files(self) -> Iterator[str]:
        """Yields names of files below the run folder: an index last, checkpoints behind all else.

        So what a checkpoint needs, such as the rows of metrics before it, is there when it is.
        """
        files = [
            path.relative_to(self.run_dir) for path in self.run_dir.rglob("*") if path.is_file()
        ]
        seen = [file for file in files if not any(part.startswith(".") for part in file.parts)]
        seen.sort(key=lambda f: (f.parts[0] == CHECKPOINTS[:-1], f.name == INDEX, str(f)))
        yield from map(Path.as_posix, seen)

    def _fetch_checkpoint(self, name: str, files: dict[str, int]) -> None:
        path, prefix = self.run_dir / CHECKPOINTS / name, f"{CHECKPOINTS}{name}/"
        parts = [file for file in files if file.startswith(prefix)]
        if not parts:
            file = CHECKPOINTS + name
            self._fetch(file, path, files[file])
            self._remember(file)
            return
        with whole_folder(path) as part:
            for file in parts:
                self._fetch(file, part / file.removeprefix(prefix), files[file])
        for file in parts:
            self._remember(file)

    def _fetch(self, name: str, path: Path, num_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if num_bytes:
            self.transport.download(f"{self.url}/{name}", path, num_bytes)
        else:
            path.write_bytes(b"")

    def _remember(self, name: str) -> None:
        self._sent[name] = _state(self.run_dir / name)

    def _repeat(self, work: Callable[[], None], seconds: float) -> None:
        while not self._ends.wait(seconds):
            work()

    def _push_once(self) -> None:
        try:
            self._check_lease()
            self.push()
        # At the end it is tried again, and then said.
        except (FetchError, OSError) as error:
            if self._failure is None:
                log_line(f"{error}; the run goes on, and tries again")
            self._failure = str(error)
        else:
            self._failure = None

    def _beat(self) -> None:
        try:
            self._check_lease()
            self._write_lease()
        except (FetchError, OSError) as error:
            self._failure = self._failure or str(error)

    def _check_lease(self) -> None:
        held = self._holder()
        if held and (held["host"], held["process"]) != (
            self._lease["host"],
            self._lease["process"],
        ):
            raise OSError(f"{shown(self.url)} has been taken over by {_text(held)}")

    def _write_lease(self) -> None:
        self._lease["pulse"] = int(self._lease["pulse"]) + 1
        self.transport.write(f"{self.url}/{LEASE}", json.dumps(self._lease).encode())

    def _holder(self) -> dict[str, str | int]:
        try:
            held = json.loads(self.transport.content(f"{self.url}/{LEASE}"))
            return {name: held[name] for name in ("host", "process", "pulse", "since")}
        except NotThere:
            return {}
        except (ValueError, KeyError, TypeError):  # not ours
            return {}


def open_mirror(url: str, run_dir: Path, is_resumed: bool) -> Mirror | None:
    """Brings a run to each machine, before anything looks into its folder.

    Returns:
        What copies the folder from now on, in the first process.

    Raises:
        ValueError: another process writes there, or a new run would replace one.
    """
    mirror = Mirror(url, run_dir)

    def first() -> str:
        with store_errors():
            return begin()

    def begin() -> str:
        mirror.acquire()
        if is_resumed:
            mirror.restore()
            mirror.push()  # what this machine has and the others must get
        elif mirror.holds_run():
            mirror.transport.remove(f"{mirror.url}/{LEASE}")
            raise ValueError(
                f"{shown(url)} already holds a run: continue it with --resume auto, or choose "
                "another --mirror"
            )
        return "open"

    agreed("MIRROR", first)
    if is_first_process():
        mirror.start()
        return mirror
    if is_resumed and under_torchrun() is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        # One process of a machine at a time.
        with open(run_dir / ".mirror.lock", "w") as lock, store_errors():
            fcntl.flock(lock, fcntl.LOCK_EX)
            mirror.restore()
    return None


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turns an error of the store into a sentence for the user; raises ValueError."""
    try:
        yield
    except FetchError as error:
        raise ValueError(
            f"the run's mirror cannot be used: {error}; check its address and credentials, or "
            "leave mirror out"
        ) from error


def _steps(files: dict[str, int]) -> dict[int, str]:
    """Returns the names of checkpoints among files, by step; of folders those with an index."""
    found = {}
    for file in files:
        folder, _, rest = file.partition("/")
        name, _, inner = rest.partition("/")
        is_whole = inner in ("", INDEX)
        if folder == CHECKPOINTS[:-1] and is_whole and checkpoints.PATTERN.fullmatch(name):
            found[checkpoints.step_of(Path(name))] = name
    return found


def _state(path: Path) -> State:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _is_dead(held: dict[str, str | int]) -> bool:
    """Whether the holder of a lease was a process of this machine that has ended."""
    if held["host"] != platform.node():
        return False
    try:
        os.kill(int(held["process"]), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return int(held["process"]) == os.getpid()


def _text(held: dict[str, str | int]) -> str:
    return f"process {held['process']} on {held['host']} since {held['since']}"
