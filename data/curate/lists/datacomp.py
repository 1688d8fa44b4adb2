"""Keep-lists in DataComp's format, both directions.

In: a list and a score table with a column of uids, or DataComp's array. Out: the other one.
DataComp's array is a `.npy` of `u8,u8`, sorted: the upper and the lower half of each sample's uid
of 128 bits; a sample that comes twice is in it twice (Gadre et al., "DataComp", 2023). Memory holds
the rows of a shard and a part of the array; other files lie beside the result while it is made.
"""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ...files import whole_file
from ..table import Table
from .keep_list import KeepList, Lookup, keys_of, table_rows, with_weights, write_list

# Its functions are made at import, where no type checker sees them.
pc: Any = pyarrow.compute

UID = np.dtype("u8,u8")
# Parts of the array that are sorted one by one, by the first bits of the uids.
BITS = 10
ROWS_AT_ONCE = 1 << 22


def write_subset(path: Path, table: Table, field: str, out: Path) -> int:
    """Writes a keep-list as DataComp's array.

    Args:
        path: the keep-list; its weights have to be whole numbers.
        table: with the uids of its samples.
        field: the column of the uids, such as `json:uid`.
        out: a `.npy` file.

    Returns:
        Its entries.

    Raises:
        ValueError: the table lacks samples of the list or their uids, or a weight is a fraction.
    """
    keep = KeepList(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".keep-", dir=out.parent) as folder:
        lookup = keep.lookup(Path(folder))
        sizes = np.zeros(1 << BITS, dtype=np.int64)
        seen = 0
        for uids, samples in _kept_uids(table, field, keep, lookup):
            sizes += np.bincount(_part(uids), minlength=len(sizes))
            seen += samples
        if seen < keep.num_rows:
            raise ValueError(
                f"{keep.num_rows - seen:,} of the {keep.num_rows:,} samples of '{keep.path}' are "
                f"not in the score table '{table.folder}'; give the table that it was made of"
            )
        starts = np.concatenate([[0], np.cumsum(sizes)])
        with whole_file(out) as part:
            array = np.lib.format.open_memmap(part, mode="w+", dtype=UID, shape=(int(starts[-1]),))
            free = starts[:-1].copy()
            for uids, _ in _kept_uids(table, field, keep, lookup):
                parts = _part(uids)
                order = np.argsort(parts, kind="stable")
                ranks = np.arange(len(order)) - np.searchsorted(parts[order], parts[order])
                array[free[parts[order]] + ranks] = uids[order]
                free += np.bincount(parts, minlength=len(free))
            for first, last in itertools.pairwise(starts.tolist()):
                rows = array[first:last]
                array[first:last] = rows[np.lexsort((rows["f1"], rows["f0"]))]
            array.flush()
        return int(starts[-1])


def read_subset(path: Path, table: Table, field: str, out: Path) -> tuple[int, int, int]:
    """Writes DataComp's array as a keep-list.

    Args:
        path: the array.
        table: of the samples, with their uids.
        field: the column of the uids, such as `json:uid`.
        out: the list to write; it has weights if a uid comes more than once.

    Returns:
        The samples of the list, the entries of the array that are theirs, and all entries.

    Raises:
        ValueError: the file is no such array, or is not sorted; or no sample is in it.
    """
    array = _load(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".keep-", dir=out.parent) as folder:
        upper = np.lib.format.open_memmap(
            Path(folder, "upper.npy"), mode="w+", dtype=np.uint64, shape=array.shape
        )
        repeats = _check_order(path, array, upper)
        entries = 0

        def found() -> Iterator[pa.RecordBatch]:
            nonlocal entries
            for batch in table_rows(table, [field]):
                batch = batch.filter(batch.column(field).is_valid())
                times = _times(uids_of(batch.column(field), field), upper, array)
                entries += int(times.sum())
                yield with_weights(batch, times).filter(pa.array(times > 0))

        empty = (
            f"none of the {len(array):,} uids of '{path}' is in {field} of the score table "
            f"'{table.folder}': it is of another pool, or --field is another"
        )
        return write_list(out, found(), repeats, empty), entries, len(array)


def uids_of(column: pa.Array, field: str) -> np.ndarray:
    """Returns hexadecimal numbers of at most 32 digits as `u8,u8` [n]."""
    texts = column.cast(pa.string())
    wrong = texts.filter(pc.invert(pc.match_substring_regex(texts, "^[0-9a-fA-F]{1,32}$")))
    if len(wrong):
        raise ValueError(
            f"{field} has '{wrong[0]}', which is no hexadecimal number of 128 bits; name the field "
            "of DataComp's uids"
        )
    digits = "".join(pc.ascii_lpad(texts, 32, "0").to_pylist())
    halves = np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64).reshape(-1, 2)
    uids = np.empty(len(halves), dtype=UID)
    uids["f0"], uids["f1"] = halves.T
    return uids


def _kept_uids(
    table: Table, field: str, keep: KeepList, lookup: Lookup
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields the uids of the list's samples, each as often as its weight, and their number."""
    for batch in table_rows(table, [field]):
        rows = lookup.find(keys_of(batch))
        weights = lookup.weights_at(rows)[rows >= 0]
        batch = batch.filter(pa.array(rows >= 0))
        if batch.column(field).null_count:
            raise ValueError(
                f"{batch.column(field).null_count:,} samples of '{keep.path}' in the shard "
                f"{batch.column('shard')[0]} have no {field}; leave them out first"
            )
        if (weights != np.floor(weights)).any():
            raise ValueError(
                f"the keep-list '{keep.path}' has the weight {weights[weights % 1 > 0][0]:g}; "
                "DataComp's format knows whole numbers only: take a list without weights"
            )
        yield np.repeat(uids_of(batch.column(field), field), weights.astype(np.int64)), len(batch)


def _part(uids: np.ndarray) -> np.ndarray:
    return (uids["f0"] >> np.uint64(64 - BITS)).astype(np.int64)


def _load(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' is no .npy file ({error})") from error
    if array.dtype != UID or array.ndim != 1 or not len(array):
        raise ValueError(
            f"'{path}' holds {array.dtype} {list(array.shape)}; DataComp's subsets are lists of "
            "u8,u8, the two halves of each uid"
        )
    return array


def _check_order(path: Path, array: np.ndarray, upper: np.ndarray) -> bool:
    """Copies the upper halves; returns whether a uid comes twice, and refuses other orders."""
    repeats = False
    for first in range(0, len(array), ROWS_AT_ONCE):
        rows = np.array(array[max(0, first - 1) : first + ROWS_AT_ONCE])
        upper[first : first + ROWS_AT_ONCE] = rows["f0"][min(first, 1) :]
        same = rows["f0"][1:] == rows["f0"][:-1]
        if (rows["f0"][1:] < rows["f0"][:-1]).any() or (
            same & (rows["f1"][1:] < rows["f1"][:-1])
        ).any():
            raise ValueError(f"'{path}' is not sorted; sort it once (array.sort()) and save it")
        repeats |= bool((same & (rows["f1"][1:] == rows["f1"][:-1])).any())
    return repeats


def _times(uids: np.ndarray, upper: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Returns how often each uid is in the array, int64 [n]."""
    first = np.searchsorted(upper, uids["f0"], side="left")
    last = np.searchsorted(upper, uids["f0"], side="right")
    times = np.zeros(len(uids), dtype=np.int64)
    # Hardly ever more than one: of uids with the same upper half.
    for step in range(int((last - first).max(initial=0))):
        inside = np.flatnonzero(first + step < last)
        lower = array["f1"][first[inside] + step]
        times[inside] += lower == uids["f1"][inside]
    return times
