"""Runs with weighted keep-lists: in the loss, and drawn anew in each epoch."""

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mixed import SHARES, run_file, write_sources
from processes import fit
from recorder import read

from counterpoint.data.order.mixed_plan import MixedPlan
from counterpoint.data.order.selection import LossWeights, Redrawn, Selection
from counterpoint.data.shards.fields import sample_key
from counterpoint.data.shards.manifest import Manifest
from counterpoint.data.shards.reader import ShardReader
from counterpoint.launch.cli import main
from counterpoint.losses.infonce import InfoNCE

POLICY = "counterpoint.data.order.selection."


@pytest.fixture
def pool(tmp_path):
    """Manifests, and a list of all but the first sample of each shard, of weights 0.3 to 1.9."""
    manifests = write_sources(tmp_path / "pairs")
    manifest = Manifest.load(manifests)
    reader = ShardReader(manifest.urls)
    rows = [(s, i) for s, n in enumerate(manifest.counts.tolist()) for i in range(1, n)]
    columns = {
        "shard": ["/".join(manifest.urls[s].split("/")[-2:]) for s, _ in rows],
        "index": [i for _, i in rows],
        "weight": [0.3 + 0.8 * ((s + i) % 3) for s, i in rows],
        "key": [key_of(reader, manifest, s, i) for s, i in rows],
    }
    pq.write_table(pa.table(columns), tmp_path / "keep.parquet")
    return manifests, manifest, str(tmp_path / "keep.parquet")


def key_of(reader, manifest, shard, index):
    source, name = manifest.sources[manifest.source_ids[shard]], manifest.urls.names()[shard]
    return sample_key(reader.read(shard, index), source, name, "key")


def located(pool, policy, steps):
    """Selection, and (epochs, shards, ordinals) of all positions of a run."""
    _, manifest, keep = pool
    selection = Selection.compile([keep], manifest, f"{keep}.compiled", 0, policy)
    plan = MixedPlan(selection.counts, manifest.source_ids, manifest.sources, 0, 2, 8, SHARES)
    return selection, plan.locate(np.arange(12 * steps))


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_losses_by_source_add_up_by_weight(tmp_path, pool, world_size):
    steps, run = 4, tmp_path / "run"
    lists = {"keep_lists": [pool[2]], "keep_weights": {"class_path": POLICY + "LossWeights"}}
    fit(run_file(run, pool[0], steps, **lists), world_size, run / "log")
    rows = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    selection, places = located(pool, LossWeights(), steps)
    _, weights = selection.resolve(*places)
    sources = pool[1].source_ids[places[1]]
    assert len(rows) == steps and len(set(weights.tolist())) == 3
    for row in rows:
        step = slice(12 * (row["step"] - 1), 12 * row["step"])
        by_source = np.bincount(sources[step], weights[step], 3)
        losses = [row.get(f"loss_by_source/{name}", 0.0) for name in pool[1].sources]
        mean = (by_source * losses).sum() / weights[step].sum()
        assert mean == pytest.approx(row["loss"], rel=1e-5)


def test_a_resumed_run_on_other_ranks_goes_on_with_what_is_drawn(tmp_path, pool):
    steps, lists = 14, {"keep_lists": [pool[2]], "keep_weights": {"class_path": POLICY + "Redrawn"}}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    fit(run_file(whole, pool[0], steps, **lists), 2, whole / "log")
    fit(run_file(resumed, pool[0], 5, **lists), 1, resumed / "log")
    more = ["--resume", str(resumed / "run"), f"--phases.train.samples={12 * steps}"]
    fit(more, 1, resumed / "log")
    recorded = resumed / "keys.txt"

    def keys(path):
        """The keys of each step, of all ranks."""
        found: dict[int, list[str]] = {}
        for (step, _), entries in sorted(read(path).items()):
            (entry,) = entries
            found[step] = sorted([*found.get(step, []), *entry.split(" ")[0].split(",")])
        return found

    assert keys(whole / "keys.txt") == keys(recorded) and len(keys(recorded)) == steps
    # The sources' epochs have their drawn samples, and not the same ones.
    selection, (epochs, shards, ordinals) = located(pool, Redrawn(), 3 * steps)
    indices, _ = selection.resolve(epochs, shards, ordinals)
    of_a = pool[1].source_ids[shards] == 0
    drawn = [
        Counter(zip(shards[rows].tolist(), indices[rows].tolist(), strict=True))
        for rows in (of_a & (epochs == epoch) for epoch in range(3))
    ]
    assert drawn[0] != drawn[1] and sum(drawn[0].values()) == sum(drawn[1].values()) > 0


def test_a_loss_that_reads_no_weights_is_refused_before_training(
    tmp_path, pool, monkeypatch, capsys
):
    monkeypatch.setattr(InfoNCE, "reads_weight", False)
    lists = {"keep_lists": [pool[2]], "keep_weights": {"class_path": POLICY + "LossWeights"}}
    assert main(["fit", *run_file(tmp_path / "run", pool[0], 2, **lists)]) == 2
    text = capsys.readouterr().err
    assert "objective.terms.infonce is a InfoNCE, which does not read the weights" in text
    assert not (tmp_path / "run" / "run").exists()
