"""Who is blamed for a standstill."""

import threading
import time

import pytest

from counterpoint.train.watch import Standing, Watch, hung


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


def test_standing_still_is_measured_and_moving_is_not():
    watch = Watch(timeout=60.0)
    inside, go_on, end = (threading.Event() for _ in range(3))

    def main():
        inside.set()
        go_on.wait()
        end.wait()

    thread = threading.Thread(target=main)
    thread.start()
    inside.wait()
    watch._main = thread.ident
    watch._look()
    time.sleep(0.2)
    assert watch._look().still >= 0.2
    go_on.set()
    while watch._look().still >= 0.2:
        time.sleep(0.01)
    watch._look()
    time.sleep(0.1)
    assert watch._look().still >= 0.1
    watch._progress = (1, 0)
    assert watch._look().still < 0.1
    end.set()
    thread.join()
