"""Engines: results in order, errors as sentences, the same bytes on each, workers that die."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import engine_tasks as tasks
from helpers.engine_pool import SHARDS, TESTS, content, curate, make_pool
from helpers.waiting import until

from counterpoint.data.curate.engine import AHEAD, Processes, RayTasks, Serial


@pytest.fixture(scope="module")
def processes():
    with Processes(2) as engine:
        yield engine


def test_results_come_in_order(processes):
    assert list(processes.map(tasks.square, range(100))) == [n * n for n in range(100)]
    assert list(processes.map(tasks.square, [])) == []
    assert set(processes.map(tasks.threads, range(4))) == {(1, 1)}


def test_workers_stay_from_call_to_call(processes):
    one, other = (set(processes.map(tasks.pid_of, range(40))) for _ in range(2))
    assert len(one | other) <= 2
    assert os.getpid() not in one


class Watched(Sequence):
    """Items that know how many of them were asked for."""

    def __init__(self, total):
        self.total, self.asked = total, 0

    def __len__(self):
        return self.total

    def __getitem__(self, at):
        if isinstance(at, slice):
            return (self[n] for n in range(*at.indices(self.total)))
        self.asked = max(self.asked, at + 1)
        return at


def test_results_that_nobody_fetches_do_not_pile_up():
    with Processes(1) as engine:
        items = Watched(10_000)
        results = engine.map(tasks.square, items)
        assert [next(results) for _ in range(3)] == [0, 1, 4]
        assert items.asked <= AHEAD + 3
        results.close()


def test_an_error_of_a_task_is_that_of_the_caller(processes):
    with pytest.raises(ValueError, match="is below 1") as caught:
        list(processes.map(tasks.refuse, range(20)))
    assert str(caught.value) == "max_aspect=0.5 is below 1, which no image is"
    with pytest.raises(ZeroDivisionError):
        list(processes.map(tasks.divide, range(20)))
    assert list(processes.map(tasks.square, [3])) == [9]


def test_a_killed_worker_is_reported_with_the_fix():
    with Processes(2) as engine:
        with pytest.raises(ValueError, match=r"worker was killed.*fewer --workers than 2"):
            list(engine.map(tasks.die, range(20)))
        assert list(engine.map(tasks.square, [3])) == [9]
    with pytest.raises(ValueError, match="at least one worker"):
        Processes(0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(number):
    code = (
        "from counterpoint.data.curate.engine import Processes\n"
        "from helpers import engine_tasks as tasks\n"
        "if __name__ == '__main__':\n"
        "    for pid in Processes(1).map(tasks.pid_of, range(10**9)):\n"
        "        print(pid, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        text=True,
    )
    assert process.stdout
    worker = int(process.stdout.readline())
    process.send_signal(number)
    process.stdout.close()
    process.wait()
    until(lambda: not running(worker))


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("killed", "workers"), [("groups", 1), pytest.param("map", 3, marks=pytest.mark.soak)]
)
def test_a_curation_is_the_same_and_goes_on_after_a_worker_was_killed(
    tmp_path, many_tasks, killed, workers
):
    make_pool(tmp_path)
    for place in ("map", "groups"):
        (tmp_path / f"x-{place}").touch()
    curate(tmp_path, "one", Serial(), "x")
    (tmp_path / f"x-{killed}").unlink()
    with Processes(workers) as processes:
        with pytest.raises(ValueError, match="worker was killed"):
            curate(tmp_path, "two", processes, "x")
        curate(tmp_path, "two", processes, "x")
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert len(one) > 2 * SHARDS
    assert one == two


def test_a_cluster_that_is_not_there():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no Ray cluster lets this process in at '{address}'"):
            RayTasks(address)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"counterpoint\[cluster\]"):
        RayTasks()
