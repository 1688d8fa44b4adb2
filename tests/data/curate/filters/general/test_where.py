"""Membership against Python's `in`."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.filter_run import batch_of, run_filter

from counterpoint.data.curate.filters.general.where import Where

SOURCES = ["web", "news", "web", "books", ""]
IDS = np.array([3, -1, 7, 2**40, 3])
ROWS = batch_of({"source": SOURCES, "clip.id": IDS})


@pytest.mark.parametrize("values", [["web"], ["news", "books", "none"], []])
def test_texts(values):
    wanted = [source in values for source in SOURCES]
    assert run_filter(Where("source", values), ROWS)["keep"] == wanted
    others = run_filter(Where("source", values, keep="others"), ROWS)["keep"]
    assert others == [not kept for kept in wanted]


@pytest.mark.parametrize("values", [[3], [2**40, -1, 5], []])
def test_numbers(values):
    assert run_filter(Where("clip.id", values), ROWS)["keep"] == [i in values for i in IDS.tolist()]


def test_files(tmp_path):
    (tmp_path / "sources.txt").write_text("books\nnews\n\n")
    each = Where("source", file=tmp_path / "sources.txt")
    assert run_filter(each, ROWS)["keep"] == [False, True, False, True, False]
    assert each.files() == [tmp_path / "sources.txt"]
    keys = ROWS["key"].to_pylist()
    pq.write_table(pa.table({"key": [keys[4], 5, keys[1]]}), tmp_path / "keep.parquet")
    each = Where("key", file=tmp_path / "keep.parquet")
    assert run_filter(each, ROWS)["keep"] == [False, True, False, False, True]


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="takes values or file"):
        Where("source")
    with pytest.raises(ValueError, match=r"\['web'\] does not fit the column clip.id"):
        run_filter(Where("clip.id", ["web"]), ROWS)
    with pytest.raises(ValueError, match=r"gone\.txt' does not fit"):
        run_filter(Where("source", file=tmp_path / "gone.txt"), ROWS)
