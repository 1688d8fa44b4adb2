"""A probe is fitted on the labelled rows of a store, and the filter reads it."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from counterpoint.data.curate.base import vector_column
from counterpoint.data.curate.filters.embeddings.probe import Probe
from counterpoint.data.sidecar import write_sidecar
from counterpoint.launch.cli import main

N, WIDTH = 400, 12
RNG = np.random.default_rng(5)
IMAGE = RNG.normal(size=(N, WIDTH)).astype(np.float16)
UNIT = IMAGE / np.linalg.norm(IMAGE.astype(np.float64), axis=1, keepdims=True)
LABEL = (UNIT[:, 0] + 0.05 * RNG.normal(size=N) > 0.1).astype(np.int64)


@pytest.fixture
def world(tmp_path):
    """A store of two shards, and the labels of most samples and of others that it lacks."""
    for number, rows in enumerate(np.array_split(np.arange(N), 2)):
        columns = {"key": torch.from_numpy(rows), "image": torch.from_numpy(IMAGE[rows])}
        write_sidecar(tmp_path / "store", "web", f"{number}.tar", columns)
    keys = RNG.permutation(np.append(np.arange(50, N), [9000, 9001]))
    labels = np.append(LABEL, np.zeros(9000, dtype=np.int64))[np.minimum(keys, N)]
    write(tmp_path / "labels.parquet", keys, labels)
    return tmp_path


def write(path, keys, labels):
    pq.write_table(pa.table({"key": keys, "label": labels}), path)


def fit(folder, *more, labels="labels.parquet", out="new/probe.safetensors"):
    paths = ["--labels", str(folder / labels), "--out", str(folder / out)]
    return main(["probe", str(folder / "store"), *paths, *more])


def test_the_probe_knows_rows_that_it_has_not_seen(world, capsys):
    assert fit(world, "--l2", "0.1") == 0
    said = capsys.readouterr().out
    assert "fitted on 350 samples" in said
    assert float(re.search(r"([\d.]+)% right", said)[1]) > 90
    rows = {"key": np.arange(50), "clip.image": vector_column(IMAGE[:50])}
    each = Probe(world / "new/probe.safetensors")
    probability = each.apply(pa.RecordBatch.from_pydict(rows), {})["probe"]
    clear = np.abs(UNIT[:50, 0] - 0.1) > 0.1
    assert clear.sum() > 20
    np.testing.assert_array_equal((probability > 0.5)[clear], LABEL[:50][clear])


def test_the_file_is_the_same_for_any_order_of_labels(world):
    assert fit(world) == 0
    table = pq.read_table(world / "labels.parquet")
    pq.write_table(table.take(pa.array(RNG.permutation(len(table)))), world / "other.parquet")
    assert fit(world, labels="other.parquet", out="other.safetensors") == 0
    files = [(world / name).read_bytes() for name in ("new/probe.safetensors", "other.safetensors")]
    assert files[0] == files[1]


def test_what_cannot_be_used_is_refused(world, capsys):
    write(world / "strange.parquet", np.arange(9000, 9005), np.arange(5))
    pq.write_table(pa.table({"key": np.arange(3)}), world / "none.parquet")
    write(world / "few.parquet", np.array([1, 2, 3]), np.array([0, 0, 1]))
    for name, said in [
        ("strange.parquet", "none of the 5 labelled keys is in the store"),
        ("none.parquet", "no parquet file with the columns key and label"),
        ("few.parquet", "3 labelled samples are too few to test a probe"),
    ]:
        assert fit(world, labels=name) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
