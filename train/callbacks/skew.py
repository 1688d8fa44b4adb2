"""Skew between ranks: who waits longest for data, whose forward pass takes longest, who is slow.

All ranks end a step together, since they meet in the losses and in the sums of gradients; so the
time of a step names nobody. What differs is the time before they meet: the wait for data, and the
towers' forward pass.

In: these times of every rank at log steps. Out: a sentence about ranks that are slower than the
others row after row.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 10  # in a row, until a rank is named; as many until it is forgotten
SHARE = 0.1  # of a step's time, by which it has to exceed the median of all ranks
WAIT, FORWARD = "wait", "forward"
KINDS = {
    WAIT: "waits for data {value:.3g} s in each step, the median rank {median:.3g} s: look at that "
    "machine's disk or network, its CPUs, and other processes there",
    FORWARD: "takes {value:.3g} s for the forward pass of each step, the median rank {median:.3g} "
    "s: look at that machine's GPU (nvidia-smi -q -d PERFORMANCE,TEMPERATURE: throttled?), its "
    "CPUs, and other processes there",
}


class ForwardClock:
    """Times forward passes of the towers, from the beginning of a step to that of its losses.

    On a GPU by events of its stream, so that no step waits. Where a strategy gathers parameters in
    the forward pass (FSDP2, ZeRO-3), ranks meet in it as well, and their times are alike.
    """

    def __init__(self, objective: nn.Module):
        self._begin: Any = None
        self._passes: list[tuple[Any, Any]] = []
        objective.register_forward_pre_hook(self._end)

    def start(self, device: torch.device) -> None:
        """Begins a step."""
        self._device = device
        self._begin = self._mark()

    def _end(self, *_: Any) -> None:
        if self._begin is not None:  # else the objective is called outside of a step
            self._passes.append((self._begin, self._mark()))
            self._begin = None

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def take(self) -> float:
        """Returns the seconds since the last call; the device has to be done with them."""
        passes, self._passes = self._passes, []
        if self._device.type == "cuda":
            return sum(begin.elapsed_time(end) for begin, end in passes) / 1000
        return sum(end - begin for begin, end in passes)


class Stragglers:
    """Finds ranks that are slower than the others in each of the last rows.

    A rank counts as slow in a row if its time exceeds the median of all ranks by a tenth of a
    step's time. Chance makes a rank slow in some rows, not in ten in a row.

    Args:
        names: of the ranks.
    """

    def __init__(self, names: Sequence[str]):
        self._names = names
        zeros = torch.zeros(len(names), dtype=torch.int64)
        # Positive: rows in which a rank was slow, without one in between; negative: was not.
        self._rows = {kind: zeros.clone() for kind in KINDS}
        self._named: dict[str, set[int]] = {kind: set() for kind in KINDS}

    def look(self, seconds: Mapping[str, Tensor], step: float) -> list[str]:
        """Returns sentences about ranks that have become slow.

        Args:
            seconds: of a step, by kind [ranks].
            step: duration of a step in seconds.
        """
        sentences = []
        for kind, times in seconds.items():
            rows, median = self._rows[kind], times.median()  # the lower one of two
            slow = times - median > SHARE * step
            rows.copy_(torch.where(slow, rows.clamp(min=0) + 1, rows.clamp(max=0) - 1))
            named = self._named[kind]
            streaks: list[int] = rows.tolist()
            named -= {rank for rank, streak in enumerate(streaks) if streak <= -ROWS}
            new = [r for r, streak in enumerate(streaks) if streak >= ROWS and r not in named]
            named.update(new)
            if new:
                worst = max(new, key=lambda rank: float(times[rank]))
                what = KINDS[kind].format(value=float(times[worst]), median=float(median))
                who = self._names[worst]
                if len(new) > 1:
                    others = ", ".join(self._names[r] for r in new[:8] if r != worst)
                    more = f" and {len(new) - 8} more" if len(new) > 8 else ""
                    what += f" (so are {others}{more})"
                sentences.append(f"{who} is slower than the others: it {what}")
        return sentences
