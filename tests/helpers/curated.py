"""What filters keep of a small table, however it is cut into shards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterpoint.data.curate.base import Filter
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store

from .score_table import kept, make_store, make_table


def key_of(row: int | np.ndarray) -> Any:
    """Returns the key that `make_table` gives a row."""
    return row * 7919 - 10**6


def keep(
    folder: Path,
    filters: Filter | Mapping[str, Filter],
    columns: Mapping[str, Sequence[Any]],
    stores: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> dict[int, float]:
    """Returns the rows that are kept with their weights.

    The same rows in other shards, in another order and through many small groups of files have to
    give the same.

    Args:
        folder: for tables and stores.
        filters: to run.
        columns: of the table.
        stores: columns of stores by name, a value for each row.
    """
    if isinstance(filters, Filter):
        filters = {"filter": filters}
    total = len(next(iter([*columns.values(), *next(iter((stores or {}).values()), {}).values()])))
    third = total // 3
    orders = {"one": (np.arange(total), [total])}
    orders["cut"] = (np.random.default_rng(1).permutation(total), [1, third, total - third - 1])
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for name, (order, shards) in orders.items():
            table = make_table(folder / name / "table", columns, shards, order)
            opened = {}
            for store, values in (stores or {}).items():
                rows = {key_of(row): {n: v[row] for n, v in values.items()} for row in range(total)}
                opened[store] = Store(make_store(folder / name / store, table, rows))
            Curation(table, filters, opened, folder / name / "out").run()
            results.append(kept(folder / name / "out"))
            patch.setattr("counterpoint.data.curate.runner.ROWS_A_BLOCK", 1)
            patch.setattr("counterpoint.data.curate.runner.BUCKET_BYTES", 1 << 12)
    assert results[0] == results[1]
    return {(key + 10**6) // 7919: weight for key, weight in results[0].items()}
