"""Time, processor time and peak memory of a command and of all that it starts.

In: a command. Out: a `Usage`. Processes are found by a mark in their environment, which they
inherit: servers that leave their session or lose their parent are counted, too.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MARK = "COUNTERPOINT_BENCHMARK_MARK"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """What a command needed; `peak` is the highest sum of proportional set sizes, in bytes."""

    returncode: int
    seconds: float
    cpu_seconds: float
    peak: int
    output: str


def watch(command: list[str], timeout: float, every: float = 0.3, **env: str) -> Usage:
    """Runs a command to its end; what it has started is ended with it.

    Args:
        command: the command.
        timeout: seconds after which it is killed.
        every: seconds between two looks at memory.
        env: further environment variables.
    """
    mark = secrets.token_hex(8)
    known: dict[int, bool] = {}
    ticks: dict[int, int] = {}
    peak = 0
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        variables = os.environ | env | {MARK: mark}
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output)
        while process.poll() is None and time.perf_counter() - start < timeout:
            size = 0
            for pid in marked(mark, known):
                size += proportional_size(pid)
                ticks[pid] = max(ticks.get(pid, 0), cpu_ticks(pid))
            peak = max(peak, size)
            time.sleep(every)
        seconds = time.perf_counter() - start
        for pid in marked(mark, known):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    return Usage(code, seconds, sum(ticks.values()) / TICK, peak, text)


def marked(mark: str, known: dict[int, bool]) -> list[int]:
    """Returns the processes with the mark; `known` spares looks at those that cannot have it."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    for pid in pids:
        if pid not in known:
            environment = read(pid, "environ")
            if environment:  # empty while a process starts
                known[pid] = f"{MARK}={mark}".encode() in environment
    return [pid for pid in pids if known.get(pid)]


def proportional_size(pid: int) -> int:
    """Returns bytes of a process's memory; shared pages are divided among those who share them."""
    for line in read(pid, "smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def cpu_ticks(pid: int) -> int:
    """Returns clock ticks of a process's threads and of its ended children."""
    fields = read(pid, "stat").rpartition(b")")[2].split()
    return sum(map(int, fields[11:13])) if fields else 0


def read(pid: int, name: str) -> bytes:
    """Returns a file of /proc, empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
