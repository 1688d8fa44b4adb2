"""A pool of gloo worker processes for multi-process tests (the fixture `gloo`).

    def total(rank, world_size, scale):
        value = torch.tensor(scale * (rank + 1.0))
        torch.distributed.all_reduce(value)
        return value

    def test_total(gloo):
        assert gloo(2, total, 10.0) == [torch.tensor(30.0)] * 2

torch, and Lightning if the tests use it, are imported once, by the process that forks the workers,
and they live as long as the pool. A worker first imports what the test's module imports. Every call
gets a process group of its own, of exactly `world_size` ranks, and the environment variables
torchrun would set. A call that hangs is ended after minutes, and the workers it leaves in an
unknown state are replaced at the next call.
"""

import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

NUM_WORKERS = 4
HANG_SECONDS = 900.0  # for a call: a busy machine takes its time
START_SECONDS = 900.0  # importing torch and Lightning
STACK_SECONDS = 60.0  # for a process to print its stack, before it is killed
PRELOADED = ("lightning.pytorch", "transformers", "timm", "deepspeed")
GRACE_SECONDS = 3.0  # how long the other ranks may take to notice that one has failed
SETUP_TRIES = 3


class WorkerError(AssertionError):
    """A rank raised; the message is its traceback. An assertion, so pytest calls it a failure."""


class WorkerTimeout(WorkerError):
    """At least one rank did not answer in time; the message names them and holds their stacks."""


class Nursery:
    """The process that has imported torch and forks the workers."""

    def __init__(self, folder: Path, environment: dict[str, str], preloaded: Sequence[str]):
        self.log = folder / "nursery.log"
        self.control, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(START_SECONDS)
        script = str(Path(__file__).with_name("worker.py"))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment
        if sys.platform == "linux":
            environment["GLOO_SOCKET_IFNAME"] = "lo"  # no look-up of the host's own name
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, script, str(child.fileno()), *preloaded],
                pass_fds=[child.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        child.close()

    def ask(self, message: str, *descriptors: int) -> str:
        """Sends a request and returns the answer."""
        try:
            socket.send_fds(self.control, [message.encode()], list(descriptors))
            answer = self.control.recv(4096).decode()
        except OSError as error:
            answer, reason = "", repr(error)
        else:
            reason = "it ended"
        if not answer:
            text = self.log.read_text(errors="replace")
            raise WorkerError(f"the process that starts workers does not answer: {reason}\n{text}")
        return answer

    def close(self) -> None:
        """Ends the process, and so the workers that are left."""
        self.control.close()
        self.process.kill()
        self.process.wait()


class Worker:
    """One worker process, its pipe and its log."""

    def __init__(self, nursery: Nursery, log: Path):
        self.nursery, self.log = nursery, log
        log.touch()
        self.pipe, child = Pipe()
        self.pid = int(nursery.ask(f"fork {log}", child.fileno()))
        child.close()
        self.status: str | None = None
        # DeepSpeed remembers the number of ranks, which in a real process never changes.
        self.bound_to: int | None = None

    def mark(self) -> int:
        """Returns the present length of the log, where `tail` is to start."""
        return self.log.stat().st_size

    def tail(self, start: int = 0) -> str:
        """Returns what was printed since `start`, at most the last 4000 characters."""
        return self.log.read_bytes()[start:].decode(errors="replace")[-4000:].strip()

    def where(self) -> str:
        """Returns the stack of the main thread of a process that does not answer."""
        start, end = self.mark(), time.monotonic() + STACK_SECONDS
        os.kill(self.pid, signal.SIGUSR1)
        while "in <module>" not in self.tail(start) and self.alive and time.monotonic() < end:
            time.sleep(0.01)
        return self.tail(start)

    def kill(self) -> None:
        """Ends the process; `alive` is False from here on."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        self.pipe.close()

    def wait(self) -> str:
        """Waits for the end of a process that is about to end; returns its exit status."""
        while self.alive:
            time.sleep(0.01)
        return str(self.status)

    @property
    def alive(self) -> bool:
        """Whether the process runs and may be given a call."""
        if self.status is None:
            answer = self.nursery.ask(f"status {self.pid}")
            self.status = None if answer == "running" else answer
        return self.status is None


class GlooPool:
    """Calls `fn(rank, world_size, *args)` on 1 to 4 processes; see the module's docstring.

    Attributes:
        backend: of the calls' process groups; None: they make their own.
    """

    backend: str | None = "gloo"

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="gloo-pool-")
        self._nursery: Nursery | None = None
        self._workers: list[Worker] = []
        self._num_started = 0
        self._num_calls = 0

    def __call__(self, world_size: int, fn: Callable, *args: Any) -> list:
        """Runs `fn` on `world_size` ranks and returns their results in the order of the ranks.

        Args:
            world_size: number of ranks, 1 to 4.
            fn: a top-level function of a test file (or of counterpoint).
            args: passed on to every rank; picklable, as must be the results.

        Raises:
            WorkerError: a rank raised or died; the message names the one that failed first.
            WorkerTimeout: a rank did not answer within `HANG_SECONDS`.
        """
        if not 1 <= world_size <= NUM_WORKERS:
            raise ValueError(f"world_size {world_size}: the pool has 1 to {NUM_WORKERS} workers")
        if "<" in fn.__qualname__ or "." in fn.__qualname__:
            raise ValueError(f"{fn.__qualname__}: workers can only import top-level functions")
        for _ in range(SETUP_TRIES):
            workers = self._claim(world_size)
            marks = [worker.mark() for worker in workers]
            self._send(workers, fn, args)
            answers = self._collect(workers, time.monotonic() + HANG_SECONDS)
            if not any(answer[0] == "setup" for answer in answers.values()):
                break
            # Gloo could not connect the processes, which happens on busy machines. Some count a
            # group more than the others now, so that none of them can be used again.
            for worker in workers:
                if worker.alive:
                    worker.kill()
        for rank, worker in enumerate(workers):
            if "deepspeed" in answers.get(rank, ())[3:]:
                worker.bound_to = world_size
        failed = [rank for rank, answer in answers.items() if answer[0] != "ok"]
        if failed:
            first = min(failed, key=lambda rank: answers[rank][2])
            printed = workers[first].tail(marks[first])
            raise WorkerError(
                f"rank {first} of {world_size} failed in {fn.__qualname__}\n{answers[first][1]}"
                + (f"\nprinted by rank {first}:\n{printed}" if printed else "")
            )
        if len(answers) < world_size:
            raise self._hang(workers, answers, fn)
        return [pickle.loads(answers[rank][1]) for rank in range(world_size)]

    def close(self) -> None:
        """Ends all processes."""
        if self._nursery is not None:
            self._nursery.close()
        for worker in self._workers:
            worker.pipe.close()
        self._workers.clear()
        self._folder.cleanup()

    def _claim(self, num: int) -> list[Worker]:
        """Returns `num` live workers, starting those that are missing."""
        self._nursery = self._nursery or self._start()
        for worker in self._workers:
            if worker.bound_to not in (None, num) and worker.alive:
                worker.kill()
        self._workers = [worker for worker in self._workers if worker.alive]
        while len(self._workers) < num:
            log = Path(self._folder.name, f"{self._num_started}.log")
            self._workers.append(Worker(self._nursery, log))
            self._num_started += 1
        return self._workers[:num]

    def _start(self) -> Nursery:
        preloaded = [name for name in PRELOADED if name in sys.modules]
        return Nursery(Path(self._folder.name), {}, preloaded)

    def _send(self, workers: list[Worker], fn: Callable, args: tuple) -> None:
        self._num_calls += 1
        call = {
            "module": fn.__module__,
            "path": fn.__code__.co_filename,
            "function": fn.__name__,
            "backend": self.backend,
            "folders": sys.path,
            "rendezvous": str(Path(self._folder.name, f"rendezvous-{self._num_calls}")),
            "world_size": len(workers),
            # Longer than ours, so that a rank that hangs still hangs when its stack is printed.
            "timeout": 2 * HANG_SECONDS,
        }
        arguments, port = pickle.dumps(args), free_port()
        for rank, worker in enumerate(workers):
            env = torchrun_environment(rank, len(workers), port)
            worker.pipe.send_bytes(pickle.dumps(call | {"rank": rank, "env": env}))
            worker.pipe.send_bytes(arguments)

    @staticmethod
    def _collect(workers: list[Worker], deadline: float) -> dict[int, tuple]:
        """Gathers answers by rank until all are in, time is up, or one failed and grace is over.

        Workers that have not answered by then are of no more use if another one has failed.
        """
        answers: dict[int, tuple] = {}
        ranks: dict[Connection, int] = {worker.pipe: i for i, worker in enumerate(workers)}
        while len(answers) < len(workers):
            pending = [pipe for pipe, rank in ranks.items() if rank not in answers]
            ready = wait(pending, max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = ranks[pipe]  # pyright: ignore[reportArgumentType]
                try:
                    answers[rank] = pickle.loads(workers[rank].pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    text = f"its process ended, exit status {workers[rank].wait()}"
                    answers[rank] = ("error", text, 0.0)
                if answers[rank][0] != "ok":
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if any(answer[0] != "ok" for answer in answers.values()):
            for rank, worker in enumerate(workers):
                if rank not in answers:
                    worker.kill()
        return answers

    @staticmethod
    def _hang(workers: list[Worker], answers: dict, fn: Callable) -> WorkerTimeout:
        """Ends the ranks that did not answer; returns the error with their stacks."""
        stacks = {r: w.where() for r, w in enumerate(workers) if r not in answers}
        for rank in stacks:
            workers[rank].kill()
        waiting = [rank for rank, stack in stacks.items() if "distributed_c10d.py" in stack]
        stuck = [rank for rank in stacks if rank not in waiting] or waiting
        lines = [f"{fn.__qualname__}: no answer from rank {stuck} within {HANG_SECONDS:g} s"]
        if waiting != stuck and waiting:
            lines.append(f"rank {waiting} waits in a collective")
        lines += [f"stack of rank {rank}:\n{stack}" for rank, stack in stacks.items()]
        return WorkerTimeout("\n".join(lines))


def torchrun_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Returns the variables torchrun sets, so that a Trainer finds the ranks it may use."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "gloo-pool",
    }


def free_port() -> int:
    """Returns a TCP port that was free a moment ago (the pool's own groups need none)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
