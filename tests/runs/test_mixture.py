"""A run on several sources: proportions, losses and skipped samples of each are logged."""

import json
from collections import Counter
from pathlib import Path

import pytest
from mixed import SHARES, run_file, write_sources
from processes import fit

from counterpoint.data.order.mixed_plan import MixedPlan
from counterpoint.data.shards.manifest import Manifest


@pytest.fixture
def manifests(tmp_path):
    manifests = write_sources(tmp_path / "pairs")
    # One image of source b is cut: replaced and counted whenever its turn comes.
    tar = tmp_path / "pairs" / "b" / "00001.tar"
    content = bytearray(tar.read_bytes())
    start = content.index(b"\x89PNG")
    content[start + 60 : start + 90] = bytes(30)
    tar.write_bytes(content)
    return manifests


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_losses_and_counts_by_source(tmp_path, manifests, world_size):
    steps = 20
    run = tmp_path / "run"
    fit(run_file(run, manifests, steps), world_size, run / "log")
    rows = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    manifest = Manifest.load(manifests)
    plan = MixedPlan(manifest.counts, manifest.source_ids, manifest.sources, 0, 2, 8, SHARES)
    seen: Counter[str] = Counter()
    for row in rows:
        first = 12 * (row["step"] - 1)
        _, shards, _ = plan.locate(range(first, first + 12))  # type: ignore[arg-type]
        counts = Counter(manifest.sources[manifest.source_ids[shard]] for shard in shards)
        seen.update(counts)
        assert {f"samples/{name}": row[f"samples/{name}"] for name in SHARES} == {
            f"samples/{name}": seen[name] for name in SHARES
        }
        losses = {name: row[f"loss_by_source/{name}"] for name in counts}
        total = sum(counts[name] * loss for name, loss in losses.items())
        assert total / 12 == pytest.approx(row["loss"], rel=1e-5)
    assert [seen[name] for name in SHARES] == pytest.approx([168, 48, 24], abs=2)
    errors = rows[-1]["errors/bad_image/b"]
    (skipped,) = json.loads((run / "run" / "skipped.json").read_text())
    assert skipped["cause"] == "bad_image" and skipped["samples"] == errors > 0
    assert Path(skipped["shard"]).parts[-2:] == ("b", "00001.tar")
