"""Causes of unusable samples, and the error budget of a run.

In: batches with `status`, `source` and `shard`. Out: counts by cause, source and shard, and a
`ValueError` once more samples were replaced than the budget allows. A loader worker never raises
for bad data: it replaces the sample and writes the cause into `status`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

from torch import Tensor

from .urls import shown

# The position is the value of `status` in a batch and in checkpoints: append, never reorder.
CAUSES = (
    "read",
    "shard_missing",
    "shard_truncated",
    "wrong_count",
    "no_image",
    "no_caption",
    "bad_image",
    "bad_text",
    "too_large",
    "no_row",
)


class SampleError(Exception):
    """One sample cannot be used.

    Args:
        cause: one of `CAUSES`.
        message: the details.
    """

    def __init__(self, cause: str, message: str = ""):
        assert cause in CAUSES[1:], cause
        # Both go to the base class, so that the error survives pickling.
        super().__init__(cause, message)
        self.cause = cause

    @property
    def code(self) -> int:
        """The value of `status` for this cause."""
        return CAUSES.index(self.cause)

    def __str__(self) -> str:
        return f"{self.cause}: {self.args[1]}"


class LedgerDelta(TypedDict):
    """Counts of one rank since its last report, picklable.

    `samples` maps a source index, `errors` (cause code, source index, shard index) to a number of
    samples.
    """

    samples: dict[int, int]
    errors: dict[tuple[int, int, int], int]


class ErrorLedger:
    """Counts replaced samples and stops the run past a budget.

    `update` counts on this rank alone; only `merge` changes the totals. Every rank takes its delta,
    the deltas are gathered, and every rank merges all of them, so that totals and the result of
    `check` are equal on all ranks. With one process: `merge(take_delta())`.

    Args:
        sources: names of the sources, in the order of the batch's `source` index.
        max_error_rate: accepted errors per sample.
        min_samples: samples before the rate is checked.
        urls: addresses of the shards, for messages and `table`; None: numbers.
    """

    def __init__(
        self,
        sources: Sequence[str],
        max_error_rate: float,
        min_samples: int = 1000,
        urls: Sequence[str] | None = None,
    ):
        if not 0 <= max_error_rate <= 1:
            raise ValueError(
                f"max_error_rate is a fraction of the samples between 0 and 1, not {max_error_rate}"
            )
        self.sources = list(sources)
        self.max_error_rate = max_error_rate
        self.min_samples = min_samples
        self.urls = urls
        self._samples: Counter[int] = Counter()
        self._errors: Counter[tuple[int, int, int]] = Counter()
        self._new_samples: Counter[int] = Counter()
        self._new_errors: Counter[tuple[int, int, int]] = Counter()

    @property
    def samples(self) -> int:
        """Number of samples in the totals."""
        return sum(self._samples.values())

    @property
    def errors(self) -> int:
        """Number of replaced samples in the totals."""
        return sum(self._errors.values())

    def update(self, batch: Mapping[str, Tensor]) -> None:
        """Counts this rank's batch by its `status`, `source`, `shard` [b], which are on the CPU."""
        status = batch["status"]
        counts = batch["source"].bincount(minlength=len(self.sources)).tolist()
        self._new_samples.update(dict(enumerate(counts)))
        bad = status.nonzero().flatten()
        if len(bad):
            columns = (status, batch["source"], batch["shard"])
            rows = zip(*(column[bad].tolist() for column in columns), strict=True)
            self._new_errors.update(rows)

    def count(self, rows: Tensor) -> None:
        """Counts samples that were left out: (cause, source, shard), int64 [n, 3], on the CPU."""
        self._new_errors.update(map(tuple, rows.tolist()))

    def take_delta(self) -> LedgerDelta:
        """Returns the counts since the last call, and clears them."""
        delta: LedgerDelta = {"samples": dict(self._new_samples), "errors": dict(self._new_errors)}
        self._new_samples, self._new_errors = Counter(), Counter()
        return delta

    def merge(self, delta: LedgerDelta) -> None:
        """Adds one rank's delta to the totals."""
        self._samples.update(delta["samples"])
        self._errors.update(delta["errors"])

    def check(self) -> None:
        """Raises a ValueError when errors per sample exceed the budget."""
        if self.samples < self.min_samples or self.errors <= self.max_error_rate * self.samples:
            return
        causes: Counter[str] = Counter()
        shards: Counter[int] = Counter()
        for (cause, _, shard), count in self._errors.items():
            causes[CAUSES[cause]] += count
            shards[shard] += count
        by_cause = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
        worst = ", ".join(f"{self._name(s)} ({count})" for s, count in shards.most_common(5))
        raise ValueError(
            f"{self.errors} of {self.samples} samples could not be used ({by_cause}), more than "
            f"data.max_error_rate={self.max_error_rate:g} allows; most are in the shards {worst}: "
            "repair or remove these, or raise data.max_error_rate"
        )

    def summary(self) -> dict[str, int]:
        """Returns totals such as `{"errors/bad_image/default": 3}`, and with several sources the
        number of samples of each (`samples/NAME`)."""
        table: Counter[str] = Counter()
        if len(self.sources) > 1:
            table.update({f"samples/{self.sources[s]}": n for s, n in self._samples.items()})
        for (cause, source, _), count in sorted(self._errors.items()):
            table[f"errors/{CAUSES[cause]}/{self.sources[source]}"] += count
        return dict(table)

    def table(self) -> list[dict[str, object]]:
        """Returns rows of cause, source, shard and number of samples, the most first."""
        return [
            {
                "cause": CAUSES[c],
                "source": self.sources[s],
                "shard": self._name(shard),
                "samples": n,
            }
            for (c, s, shard), n in self._errors.most_common()
        ]

    def _name(self, shard: int) -> str:
        return shown(self.urls[shard]) if self.urls else str(shard)

    def state_dict(self) -> dict[str, object]:
        """Returns the totals, without deltas that are not merged yet."""
        return {
            "samples": [[source, n] for source, n in sorted(self._samples.items())],
            "errors": [[*k, n] for k, n in self._errors.items()],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self._samples = Counter({s: n for s, n in state["samples"]})  # pyright: ignore
        rows: list[list[int]] = state["errors"]  # pyright: ignore[reportAssignmentType]
        self._errors = Counter({(c, source, shard): n for c, source, shard, n in rows})
