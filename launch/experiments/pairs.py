"""Runs (config, seed) pairs, each in a process of its own, until each has a result.

In: pairs. Out: one JSON file a pair. Pairs that have a result of the same configuration are
skipped and those that another process has claimed are left to it, so any number of processes and
machines that see the same folder share the work.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.files import write_json
from ..config.identity import Identity
from ..reporting.tables import duration
from ..run.provenance import commit
from .results import Pair, read_result, result, settings
from .work_claims import claimed

NUM_TAIL = 12  # lines of a failed run's output that are shown
STOP_SECONDS = 150.0  # for a run that is stopped, to save

Command = Callable[[Pair, Path], list[str]]


def fit_command(pair: Pair, run_dir: Path) -> list[str]:
    """Returns the command line that trains one pair."""
    command = [sys.executable, "-m", "counterpoint.launch.cli", "fit", "--config", pair.config]
    own = ["--seed", str(pair.seed), "--run_dir", str(run_dir)]
    return [*command, *own, *settings(pair.overrides)]


def start_anew(run_dir: Path) -> None:
    """Removes what an interrupted attempt left."""
    shutil.rmtree(run_dir, ignore_errors=True)


@contextlib.contextmanager
def stoppable(*signals: signal.Signals) -> Iterator[None]:
    """Turns signals into exceptions, which give claims back and stop the runs in progress."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    previous = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def keep_nothing(run_dir: Path, file: Path) -> dict[str, Any]:
    """A result without anything of its run's folder."""
    return {}


@dataclass
class Runner:
    """How pairs are run, and where their results go.

    Attributes:
        results: folder of the results.
        runs: folder of the runs' own folders and of what they print.
        limit: how many to run now, at most; None: all.
        jobs: how many at a time, each with its share of the cores and GPUs.
        command: the command line that trains a pair in a folder.
        further: arguments of every command line that are no part of the pairs.
        leftover: what to do about the folder before.
        keep: copies what is to survive of a run's folder beside the result, and returns further
            entries of it.
    """

    results: Path
    runs: Path
    limit: int | None = None
    jobs: int = 1
    command: Command = fit_command
    further: Sequence[str] = ()
    leftover: Callable[[Path], None] = start_anew
    keep: Callable[[Path, Path], dict[str, Any]] = keep_nothing
    _num_run: int = field(default=0, init=False)
    _stopping: bool = field(default=False, init=False)
    _live: set[subprocess.Popen] = field(default_factory=set, init=False)
    _lock: Any = field(default_factory=threading.Lock, init=False)

    def run(self, pairs: Sequence[Pair]) -> int:
        """Runs every pair that has no result yet; returns 1 when one failed, else 0."""
        shares: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for share in shares_of_machine(self.jobs):
            shares.put(share)

        def attempt(number: int, pair: Pair) -> str | None:
            share = shares.get()
            try:
                head = f"[{number}/{len(pairs)}] {pair.sweep}/{pair.name}"
                return None if self._attempt(pair, head, share) else pair.name
            finally:
                shares.put(share)

        with ThreadPoolExecutor(self.jobs) as pool:
            # Pairs are started in their order; the main thread is free for signals.
            futures = [pool.submit(attempt, n, pair) for n, pair in enumerate(pairs, start=1)]
            try:
                failed = [name for future in futures if (name := future.result())]
            except BaseException:
                self._stop()
                raise
        if failed:
            print(f"{len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
        return 1 if failed else 0

    def file(self, pair: Pair) -> Path:
        """The file of a pair's result."""
        return self.results / pair.sweep / f"{pair.name}.json"

    def folder(self, pair: Pair) -> Path:
        """The folder of a pair's run."""
        return self.runs / pair.sweep / f"{pair.name}-{pair.digest[:8]}"

    def known(self, pair: Pair) -> dict[str, Any] | None:
        """The result of exactly this pair, if there is one."""
        record = read_result(self.file(pair))
        return record if record and same(record, pair) else None

    def _attempt(self, pair: Pair, head: str, share: dict[str, str]) -> bool:
        """Runs a pair unless there is a reason not to; returns whether nothing failed."""
        file = self.file(pair)
        claim = file.with_suffix(".claim")
        if self._stopping:
            return True
        with claimed(claim) as ours:
            if not ours:
                print(f"{head}: another process works on it ({claim})")
                return True
            if self.known(pair):
                print(f"{head}: has a result")
                return True
            with self._lock:
                if self._num_run == self.limit:
                    print(f"{head}: left for later (--limit {self.limit})")
                    return True
                self._num_run += 1
            if file.is_file():
                print(f"{head}: the configuration has changed since its result; runs again")
            return self._train(pair, head, file, share)

    def _train(self, pair: Pair, head: str, file: Path, share: dict[str, str]) -> bool:
        run_dir = self.folder(pair)
        log = run_dir.with_name(run_dir.name + ".log")
        self.leftover(run_dir)
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        print(f"{head}: runs, output in {log}", flush=True)
        code, start = commit(), time.monotonic()
        status = self._call([*self.command(pair, run_dir), *self.further], log, share)
        if self._stopping:
            return True
        summary = run_dir / "summary.json"
        if status or not summary.is_file():
            why = f"exit status {status}" if status else "it wrote no summary.json"
            print(f"{head}: FAILED ({why}), the end of {log}:", file=sys.stderr)
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_TAIL:]
            print("\n".join(f"    {line}" for line in tail), file=sys.stderr)
            return False
        facts = json.loads(summary.read_text(encoding="utf-8"))
        write_json(file, result(pair, code, facts) | self.keep(run_dir, file))
        print(f"{head}: done in {duration(time.monotonic() - start)}", flush=True)
        return True

    def _call(self, command: list[str], log: Path, share: dict[str, str]) -> int:
        with log.open("wb") as output:
            environment = os.environ | share
            with self._lock:
                if self._stopping:
                    return 0
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, env=environment
                )
                self._live.add(process)
            status = process.wait()
            self._live.discard(process)
            return status

    def _stop(self) -> None:
        """Ctrl-C or a termination: runs get the time to save and to stop their own processes."""
        with self._lock:
            self._stopping = True
            live = list(self._live)
        for process in live:
            process.terminate()
        for process in live:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def shares_of_machine(jobs: int) -> list[dict[str, str]]:
    """Returns the environment of each of the runs that go on at a time.

    A single one has the machine; several have equal numbers of threads, and GPUs of their own where
    there are enough.
    """
    if jobs == 1:
        return [{}]
    import torch

    from ...data.workers import cores_of

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    devices = named.split(",") if named else [str(i) for i in range(count)]
    threads = os.environ.get("OMP_NUM_THREADS", str(cores_of(jobs)))
    shares = [{"OMP_NUM_THREADS": threads} for _ in range(jobs)]
    for i, share in enumerate(shares):
        if devices:
            own = devices[i::jobs] or [devices[i % len(devices)]]
            share["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return shares


def same(record: dict[str, Any], pair: Pair) -> bool:
    """Whether a result is one of this pair."""
    # Overrides count beside the identity: some (a manifest's path) are no part of it.
    if (record["config"], record["overrides"]) != (pair.config, pair.overrides):
        return False
    if record.get("inputs", {}) != pair.inputs:
        return False
    return pair.trained.agrees(Identity.from_json(record["identity"]))
