"""What filters have counted is written where users read it, and goes when the filter does."""

import pyarrow.parquet as pq
from helpers.score_table import kept, make_table

from counterpoint.data.curate.filters.general.random_subset import RandomSubset
from counterpoint.data.curate.filters.general.threshold import Threshold
from counterpoint.data.curate.runner import Curation


def test_tables_of_filters(tmp_path):
    table = make_table(tmp_path / "table", {"words": list(range(100))}, [30, 0, 50, 20])
    filters = {"half": RandomSubset(samples=50), "long": Threshold("words", 0.5)}
    Curation(table, filters, {}, tmp_path / "out").run()
    assert [path.name for path in (tmp_path / "out/tables").iterdir()] == ["long.parquet"]
    quantiles = pq.read_table(tmp_path / "out/tables/long.parquet").to_pydict()
    assert len(quantiles["value"]) == 101 and len(kept(tmp_path / "out")) == 25
    Curation(table, {"half": filters["half"]}, {}, tmp_path / "out").run()
    assert not (tmp_path / "out/tables").exists()
