"""Waiting for an event. The deadline ends a hang on any machine; it is no verdict on speed."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

PATIENCE = 900.0  # seconds


def until(
    condition: Callable[[], Result],
    alive: Callable[[], bool] = lambda: True,
    report: Callable[[], str] = lambda: "",
) -> Result:
    """Waits until `condition()` is true and returns its value.

    Args:
        condition: called every 5 ms.
        alive: whether the event can still come; called before the condition, so that what happened
            before an end is seen.
        report: text of the error if it cannot, or does not within `PATIENCE`.
    """
    end = time.monotonic() + PATIENCE
    while True:
        can_come = alive()
        if value := condition():
            return value
        assert can_come, f"it cannot come any more: {report()}"
        assert time.monotonic() < end, f"it did not come within {PATIENCE:g} s: {report()}"
        time.sleep(0.005)
