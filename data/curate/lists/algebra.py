"""Union, intersection, difference and mixtures of keep-lists.

In: keep-lists of one pool. Out: one keep-list. Samples are the same if their keys are. Memory holds
a batch and not the lists; see `keep_list`.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from .keep_list import KeepList, Lookup, keys_of, spots_of, weights_of, with_weights, write_list

Operation = Literal["union", "intersect", "minus"]


def combine(operation: Operation, paths: Sequence[Path], out: Path) -> int:
    """Writes the union, the intersection, or the first list without the samples of the others.

    A sample of several lists gets the largest of its weights in a union and the smallest in an
    intersection (1 in a list without weights); a difference leaves weights as they are.

    Returns:
        The samples of the result.

    Raises:
        ValueError: one is no keep-list, the lists of a union are of different shards, or nothing is
            left.
    """
    lists = [KeepList(path) for path in paths]
    weighted = any(each.weighted for each in (lists[:1] if operation == "minus" else lists))
    with _lookups(lists, out) as lookups:
        if operation == "union":
            rows = (
                with_weights(batch, weights.max(axis=0))
                for batch, weights in _union(lists, lookups)
            )
        else:
            rows = _of_first(lists[0], lookups[1:], operation)
        return write_list(out, rows, weighted)


def mix_lists(shares: dict[Path, float], out: Path, samples: int | None = None) -> int:
    """Writes the mixture of lists in which each has its share of the weight.

    A sample's weight is the sum over lists of share x (its weight / the list's sum of weights),
    times the samples of an epoch.

    Args:
        shares: of each list; made to sum to 1.
        out: the list to write.
        samples: of an epoch; as many as the mixture has different ones by default.

    Returns:
        The samples of the result.

    Raises:
        ValueError: a share is not above 0, or as in `combine`.
    """
    wrong = not all(0 < share < math.inf for share in shares.values())  # NaN too
    if not shares or wrong or (samples is not None and samples < 1):
        raise ValueError("a mixture needs shares above 0, such as A=0.7 B=0.3, and samples above 0")
    lists = [KeepList(path) for path in shares]
    with _lookups(lists, out) as lookups:
        sums = [sum(float(weights_of(b).sum()) for b in each.batches()) for each in lists]
        if not min(sums) > 0:
            raise ValueError(f"the weights of '{lists[sums.index(min(sums))].path}' sum to 0")
        if samples is None:
            samples = sum(len(batch) for batch, _ in _union(lists, lookups))
        factors = np.array(list(shares.values())) / sum(shares.values()) / sums * samples
        rows = (with_weights(batch, factors @ weights) for batch, weights in _union(lists, lookups))
        return write_list(out, rows, weighted=True)


@contextlib.contextmanager
def _lookups(lists: Sequence[KeepList], out: Path) -> Iterator[list[Lookup]]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".keep-", dir=out.parent) as folder:
        folders = [Path(folder, str(number)) for number in range(len(lists))]
        for each in folders:
            each.mkdir()
        yield [each.lookup(own) for each, own in zip(lists, folders, strict=True)]


def _union(
    lists: Sequence[KeepList], lookups: Sequence[Lookup]
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Yields every sample once, with its weights in all lists, float64 [lists, n]; 0: not in it."""
    shared = moved = 0
    for number, each in enumerate(lists):
        for batch in each.batches():
            keys = keys_of(batch)
            rows = [lookup.find(keys) for lookup in lookups]
            weights = np.stack([k.weights_at(r) for k, r in zip(lookups, rows, strict=True)])
            weights[number] = weights_of(batch)
            known = np.zeros(len(keys), dtype=bool)
            for lookup, row in zip(lookups[:number], rows, strict=False):
                found = row >= 0
                known |= found
                shared += int(found.sum())
                moved += int((lookup.spots[row[found]] != spots_of(batch)[found]).sum())
            yield batch.filter(pa.array(~known)), weights[:, ~known]
    # Some may lie in two places, if the pool has a sample twice.
    if 2 * moved > shared:
        raise ValueError(
            f"{moved:,} of the {shared:,} samples that are in two of the lists lie in different "
            "shards or at different places: bring the lists to the same shards first "
            "(counterpoint keep locate)"
        )


def _of_first(
    first: KeepList, others: Sequence[Lookup], operation: Operation
) -> Iterator[pa.RecordBatch]:
    for batch in first.batches():
        rows = [lookup.find(keys_of(batch)) for lookup in others]
        weights = weights_of(batch)
        if operation == "minus":
            keep = np.all([row < 0 for row in rows], axis=0)
        else:
            keep = np.all([row >= 0 for row in rows], axis=0)
            theirs = [k.weights_at(r) for k, r in zip(others, rows, strict=True)]
            weights = np.minimum.reduce([weights, *theirs])
        yield with_weights(batch, weights).filter(pa.array(keep))
