"""Who is blamed for a standstill."""

import sys
import threading
from types import SimpleNamespace

import pytest
from waiting import until

from counterpoint.train.callbacks import hang_watchdog
from counterpoint.train.callbacks.hang_watchdog import HangWatchdog, Standing, hung


def at(step, stage, meets=True):
    return Standing(beat=9, step=step, stage=stage, still=99.0, place="a.py:1", meets=meets)


@pytest.mark.parametrize(
    ("standings", "silent", "blamed"),
    [
        ([at(5, 1), at(5, 0), at(5, 1)], [], [1]),  # one waits for data
        ([at(5, 3), at(6, 1), at(6, 1)], [], [0]),
        ([at(5, 1), at(5, 1), at(5, 1, meets=False)], [], [2]),
        ([at(5, 1), at(5, 1)], [], [0, 1]),
        ([at(5, 0), at(5, 1), at(5, 1)], [2], [2]),  # who is not heard of comes first
        ([at(5, 1), at(5, 1)], [0, 1], [0]),  # the first rank serves the board
    ],
)
def test_who_hangs(standings, silent, blamed):
    assert hung(standings, [rank in silent for rank in range(len(standings))]) == blamed


def test_standing_still_is_measured_and_moving_is_not(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(
        "counterpoint.train.callbacks.hang_watchdog.time",
        SimpleNamespace(monotonic=lambda: clock[0]),
    )
    watch = HangWatchdog(timeout=60.0)
    gates = [threading.Lock(), threading.Lock()]
    for gate in gates:
        gate.acquire()

    def first():
        gates[0].acquire()

    def second():
        gates[1].acquire()

    def stands_in(function) -> bool:
        frame = sys._current_frames()[thread.ident]
        return (frame.f_code, frame.f_lineno) == (
            function.__code__,
            function.__code__.co_firstlineno + 1,
        )

    thread = threading.Thread(target=lambda: (first(), second()))
    thread.start()
    try:
        until(lambda: stands_in(first))
        watch._main = thread.ident
        assert watch._look().still == 0
        clock[0] += 7
        assert watch._look().still == 7
        gates[0].release()
        until(lambda: stands_in(second))
        clock[0] += 5
        assert watch._look().still == 0
        clock[0] += 5
        assert watch._look().still == 5
        watch._progress = (1, 0)
        assert watch._look().still == 0
    finally:
        for gate in gates:
            if gate.locked():
                gate.release()
        thread.join()


def test_what_hangs_is_written_down_before_the_end(tmp_path, monkeypatch):
    left = []

    def leave(status):
        until(lambda: last.exists() and last.read_bytes())
        left.append(status)
        watch._end.set()

    monkeypatch.setattr(hang_watchdog, "nccl_trace", lambda: b"collectives")
    monkeypatch.setattr(hang_watchdog.os, "_exit", leave)
    folder = tmp_path / "hang"
    last = folder / "nccl_rank_0"
    watch = HangWatchdog(0.01, folder)
    watch._watch()
    assert left == [75]
    stacks = (folder / "stacks_rank_0.txt").read_text()
    assert "test_what_hangs_is_written_down" in stacks and "_keep_evidence" in stacks
    assert last.read_bytes() == b"collectives"
