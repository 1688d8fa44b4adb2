"""DynamiCS from a store to epochs: cluster, curate, and samples that are drawn anew."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.curated import key_of
from helpers.score_table import make_store, make_table

from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store
from counterpoint.data.curate.table import Table
from counterpoint.data.order.selection import Redrawn, Selection
from counterpoint.data.shards.manifest import SCHEMA, Manifest
from counterpoint.launch.cli import main
from counterpoint.launch.config.curations import load_curation

# Topics of very different sizes, far apart; and one that lies beside the largest.
SIZES = (400, 40, 20, 10, 30)
SHARDS = (200, 200, 100)


@pytest.fixture
def topics(tmp_path):
    """Writes a score table and a store of embeddings; returns the topic of each row."""
    draw = np.random.default_rng(0)
    centres = np.eye(16)[: len(SIZES)]
    centres[4] = 0.9 * centres[0] + 0.44 * centres[4]
    topic = np.repeat(np.arange(len(SIZES)), SIZES)
    rows = centres[topic] + 0.05 * draw.normal(size=(len(topic), 16))
    order = draw.permutation(len(topic))
    table = make_table(tmp_path / "table", {"width": [9] * len(topic)}, SHARDS, order)
    store = {key_of(row): {"image": rows[row].astype(np.float16)} for row in range(len(topic))}
    make_store(tmp_path / "dino", table, store)
    return topic


def test_large_topics_shrink_in_every_epoch(topics, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--clusters", "40", "--iterations", "10"]
    assert main(["cluster", "dino", "--out", "clusters", *settings]) == 0
    stores = {name: Store(Path(name)) for name in ("dino", "clusters")}
    table, out = Table(Path("table")), Path("dynamics")
    assert Curation(table, load_curation("dynamics"), stores, out).run()["kept"] == 500
    listed = pq.read_table("dynamics/keep.parquet").to_pydict()
    # Refined at 0.70 the clusters are the topics, and the one beside the largest is part of it.
    merged = np.where(topics == 4, 0, topics)
    counts = np.bincount(merged)
    expected = np.minimum(250 * counts**0.2 / (counts**0.2).sum() / counts, 1)[merged]
    row = (np.array(listed["key"]) + 10**6) // 7919
    np.testing.assert_allclose(listed["weight"], expected[row], rtol=1e-6)
    columns = {
        "source": ["web"] * 3,
        "url": [f"{number:05d}.tar" for number in range(3)],
        "num_samples": list(SHARDS),
        "num_bytes": [0] * 3,
        "sha256": [""] * 3,
    }
    manifest = Manifest(pa.table(columns, schema=SCHEMA), "/data")
    selection = Selection.compile(["dynamics/keep.parquet"], manifest, "cache", 0, Redrawn())
    epochs = [selection.counts.at(epoch) for epoch in range(3)]
    assert {int(counts.sum()) for counts in epochs} == {round(float(expected.sum()))}
    assert len({tuple(counts.tolist()) for counts in epochs}) > 1
