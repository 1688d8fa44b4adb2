"""Where the tasks of a curation run: in this process, in several, or on a Ray cluster.

In: a pure function over files and the items to call it with. Out: its results in the order of the
items, however many processes or machines work on them. Tasks leave their results in files, so
an engine carries little: what brings rows together is `shuffle.py`, the same for every engine.
"""

import contextlib
import functools
import logging
import os
import pickle
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..refusals import Refusal, is_refusal

Item = TypeVar("Item")
Result = TypeVar("Result")

# Results that wait for an earlier one, by worker: a slow task holds up the others only beyond this.
AHEAD = 8
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
RETRIES = 3
WORKER_KILLED = (
    "a worker was killed, for want of memory perhaps; what is done is kept: start the command "
    "again, with fewer --workers than {} if memory is short"
)
NO_CLUSTER = (
    "no Ray cluster lets this process in at '{}'; start one (ray start --head, and ray start "
    "--address=HOST:PORT on the other machines), give this process the RAY_AUTH_MODE and token of "
    "the cluster, or run on this machine alone (--workers)"
)


class Engine(Protocol):
    """Calls a function with many items."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yields the results in the order of the items; an error of the function is raised."""
        ...


class Serial:
    """One after the other in this process."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        return map(function, items)


@dataclass
class Processes:
    """Processes of this machine, each with one thread; they start at the first `map`.

    To be closed, or used as a context manager. A script needs `if __name__ == "__main__":` around
    what calls it, since workers import the script.

    Args:
        num_workers: how many; the cores that this process may use by default.

    Raises:
        ValueError: fewer than one.
    """

    num_workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def __post_init__(self):
        if self.num_workers < 1:
            raise ValueError(f"num_workers={self.num_workers}: there has to be at least one worker")
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, whatever they are doing."""
        if self._pool is not None:
            self._alive.close()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yields the results in the order of the items.

        Raises:
            ValueError: a task refuses its input, or a worker was killed.
        """
        # Workers read the function from a file once, instead of getting it with every item: that of
        # a large pool lists all its shards.
        with tempfile.TemporaryDirectory(prefix="counterpoint-") as folder:
            path = Path(folder, "function.pkl")
            path.write_bytes(pickle.dumps(function))
            try:
                pool = self._open()

                def submit(item: Item) -> Future[Any]:
                    return pool.submit(_call_from_file, path, item)

                with _one_thread():  # workers start at the first items, and inherit this
                    waiting = deque(map(submit, items[: AHEAD * self.num_workers]))
                for item in items[len(waiting) :]:
                    yield _checked(waiting.popleft().result())
                    waiting.append(submit(item))
                while waiting:
                    yield _checked(waiting.popleft().result())
            except BrokenExecutor as error:
                self.close()
                raise ValueError(WORKER_KILLED.format(self.num_workers)) from error
            except BaseException:  # also Ctrl-C, and a caller that wants no more
                self.close()
                raise

    def _open(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = get_context("spawn")
            watched, self._alive = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.num_workers, context, _start_worker, (watched,))
        return self._pool


@dataclass
class RayTasks:
    """Tasks on an existing Ray cluster, one core each.

    Every machine of the cluster needs this package and the folders of the table, the stores and the
    results under the same paths, on a file system that all of them share. The task of a lost worker
    or machine runs again on another.

    Args:
        address: of the cluster; `auto` is the one that this machine belongs to.
        memory: bytes that Ray sets apart for a task, so that a machine runs only as many as it has
            room for; by default it counts cores alone.
    """

    address: str = "auto"
    memory: int | None = None

    def __post_init__(self):
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                "the engine on a Ray cluster needs the package ray: pip install 'counterpoint"
                "[cluster]'"
            ) from error
        self._own = not ray.is_initialized()
        if self._own:
            _check_address(self.address)
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ValueError(NO_CLUSTER.format(self.address)) from error
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._cores = sum(int(machine.get("CPU", 0)) for machine in machines)
        fits = [m.get("memory", 0) >= (self.memory or 0) and m.get("CPU", 0) >= 1 for m in machines]
        if not any(fits):
            self.close()
            raise ValueError(
                f"no machine of the Ray cluster at '{self.address}' has a core and "
                f"{(self.memory or 0) / 2**30:.1f} GiB for a task; add machines, or ask for less "
                "memory a task"
            )

    def __enter__(self) -> "RayTasks":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the cluster."""
        if self._own:
            import ray

            ray.shutdown()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yields the results in the order of the items.

        Raises:
            ValueError: a task refuses its input, or its workers were lost again and again.
        """
        import ray
        from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

        # Put into the cluster's store once, and loaded once a worker.
        where = ray.put(pickle.dumps(function))
        task = ray.remote(_call_from_store).options(
            num_cpus=1, memory=self.memory, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )
        sender = _Sender(secrets.token_hex(8), [where], os.getcwd(), tuple(_search_path()))
        submit = functools.partial(task.remote, sender)  # type: ignore[attr-defined]
        waiting = deque(map(submit, items[: AHEAD * self._cores]))
        try:
            for item in items[len(waiting) :]:
                yield _checked(ray.get(waiting.popleft()))
                waiting.append(submit(item))
            while waiting:
                yield _checked(ray.get(waiting.popleft()))
        except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
            raise ValueError(
                f"a task was lost with its worker {RETRIES + 1} times, for want of memory perhaps; "
                "what is done is kept: start the command again, with more --task_memory"
            ) from error
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


@dataclass(frozen=True)
class _Sender:
    """What a task on another machine needs of the process that sent it."""

    name: str
    function: list[Any]  # a reference; in a list, since Ray would fetch it for every task
    folder: str
    search_path: tuple[str, ...]


def _check_address(address: str) -> None:
    """Refuses an address that nobody serves, which Ray would ask for many minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ValueError(NO_CLUSTER.format(address)) from error


def _checked(result: Any) -> Any:
    """Returns a result; raises the refusal of a task as an error of this process."""
    if isinstance(result, Refusal):
        raise ValueError(result.message)
    return result


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    """Calls the function; a message to the user becomes a result, so that it keeps its form."""
    try:
        return function(item)
    except ValueError as error:
        if is_refusal(error):
            return Refusal(str(error))
        raise


@functools.lru_cache(maxsize=1)
def _from_file(path: Path) -> Callable[[Any], Any]:
    return pickle.loads(path.read_bytes())


def _call_from_file(path: Path, item: Any) -> Any:
    return _call(_from_file(path), item)


_loaded: dict[str, Callable[[Any], Any]] = {}


def _call_from_store(sender: _Sender, item: Any) -> Any:
    """The task of `RayTasks`: goes to the sender's folder, and loads the function once a worker."""
    if sender.name not in _loaded:
        import ray

        if not os.path.isdir(sender.folder):
            return Refusal(
                f"a machine of the Ray cluster has no folder '{sender.folder}'; run the command in "
                "a folder that all machines share"
            )
        os.chdir(sender.folder)
        sys.path.extend(path for path in sender.search_path if path not in sys.path)
        _loaded.clear()
        _loaded[sender.name] = pickle.loads(ray.get(sender.function[0]))
    return _call(_loaded[sender.name], item)


def _search_path() -> list[str]:
    """Returns where the classes of a user's own filters may be."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _start_worker(watched: Connection) -> None:
    """Prepares a worker.

    Args:
        watched: ends when the parent closes the engine or dies; the worker ends with it. Ctrl-C is
            the parent's affair.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        watched.poll(None)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Lets processes that start in the block compute with one thread, unless the user says more.

    NumPy, torch and pyarrow read these variables when they are imported.
    """
    missing = [name for name in THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(missing, "1"))
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
