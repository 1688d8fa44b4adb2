"""Keys of keep-lists against those of the samples that they name, before training starts."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterpoint.data.shards.fields import sample_key
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.reader import ShardReader
from counterpoint.data.start_checks import check_keys


@pytest.fixture
def pool(make_tar, make_pairs, tmp_path):
    urls = {"web": [make_tar(tmp_path / f"{n}.tar", make_pairs(9 * n, 9)) for n in range(2)]}
    return index_shards(urls, tmp_path / "pool.parquet")


def checked(pool, path, keys, field="key"):
    """Checks a list of the last five samples of each shard with these keys (true ones, if None)."""
    reader, rows = ShardReader(pool.urls), [(s, i) for s in range(2) for i in range(4, 9)]
    names = pool.urls.names()
    if keys is None:
        keys = [sample_key(reader.read(s, i), "web", names[s], "key") for s, i in rows]
    columns = {"shard": [names[s] for s, _ in rows], "index": [i for _, i in rows], "key": keys}
    pq.write_table(pa.table(columns), path)
    check_keys([path], pool, reader, {"web": field})


def test_the_keys_of_the_pool_pass(pool, tmp_path):
    checked(pool, tmp_path / "keep.parquet", None)


def test_keys_of_another_kind_are_not_looked_at(pool, tmp_path):
    checked(pool, tmp_path / "keep.parquet", [str(n) for n in range(10)])


@pytest.mark.parametrize("keys, field", [(np.arange(10), "key"), (None, "uid")])
def test_a_list_of_other_samples_is_refused(pool, tmp_path, keys, field):
    with pytest.raises(ValueError, match=r"keep.parquet' is of other samples: none of 8 .*locate"):
        checked(pool, tmp_path / "keep.parquet", keys, field)
