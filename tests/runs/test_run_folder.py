"""What a run leaves about itself, in one process that starts twice: log, starts, rows, summary."""

import json
import logging
import re
import resource

import pytest
import torch
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.launch.run.collapse import collapse
from counterpoint.launch.run.provenance import commit

BATCH = 12


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of four steps that is resumed for three more; rows are written every second step."""
    folder = tmp_path_factory.mktemp("pairs")
    manifest = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder)], str(manifest))
    values = config(manifest, steps=4)
    values["data"]["num_workers"] = 0
    values["trainer"] |= {"logger": False, "log_every_n_steps": 2, "peak_tflops": None}
    values["phases"]["train"]["batch_size"] = BATCH
    values["phases"]["train"]["samples"] = 4 * BATCH
    run = folder / "run"
    assert main(["fit", "--config", str(write_config(folder, values)), "--run_dir", str(run)]) == 0
    assert main(["fit", "--resume", str(run), f"--phases.train.samples={7 * BATCH}"]) == 0
    return run


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_holds_both_starts(run_dir):
    text = (run_dir / "log.txt").read_text()
    first, second = text.removeprefix("==== ").split("\n==== ")
    assert second.splitlines()[0].endswith(", after step 4")
    steps = [re.findall(r"^\d\d:\d\d:\d\d  step (\d)/", part, re.M) for part in (first, second)]
    assert steps == [["2", "4"], ["6", "7"]]
    size = (run_dir / "checkpoints" / "step-00000006.ckpt").stat().st_size / 1e6
    assert f"checkpoint step-00000006.ckpt: {size:,.0f} MB" in second
    for part in (first, second):
        assert part.count("MB, one every") == 1  # once a start
        assert "epoch" in part and " GiB" in part


def test_rows_have_epochs_and_memory(run_dir):
    (start, _) = read(run_dir / "starts.jsonl")
    rows = read(run_dir / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [
        round(step * BATCH / start["epoch_size"], 4) for step in (2, 4, 6, 7)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert all(0.1 < row["peak_memory_gib"] <= peak + 0.001 for row in rows)


def test_the_summary_has_the_mean_and_what_produced_it(run_dir):
    rows = read(run_dir / "metrics.jsonl")
    summary = json.loads((run_dir / "summary.json").read_text())
    pairs = [2 * BATCH, 2 * BATCH, 2 * BATCH, BATCH]
    seconds = [n / row["pairs_per_s"] for n, row in zip(pairs, rows, strict=True)]
    mean = summary["mean"]
    assert mean["pairs_per_s"] == pytest.approx(7 * BATCH / sum(seconds))
    mfu = sum(row["mfu"] * s for row, s in zip(rows, seconds, strict=True)) / sum(seconds)
    assert mean["mfu"] == pytest.approx(mfu)
    final = summary["final"]
    assert final["pairs_per_s"] == rows[-1]["pairs_per_s"]
    assert final["mean_cosine/text"] == rows[-1]["mean_cosine/text"]
    assert final["collapsed"] == bool(collapse(rows))
    assert summary["steps"] == 7 and summary["samples"] == 7 * BATCH
    assert summary["epochs"] == rows[-1]["epoch"]
    assert summary["code"]["revision"] == commit()["revision"]
    assert summary["machine"]["torch"] == torch.__version__
    assert summary["world_size"] == 1 and summary["device"] == "cpu"


def test_parameters_are_those_of_the_checkpoint(run_dir):
    (start, _) = read(run_dir / "starts.jsonl")
    path = run_dir / "checkpoints" / "step-00000007.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    sizes = {n: t.numel() for n, t in state.items() if n.startswith("model.")}
    buffers = ("mean", "std")  # not learned
    learned = {n: size for n, size in sizes.items() if not n.endswith(buffers)}
    counts = start["parameters"]
    sides = {s: sum(v for n, v in learned.items() if n.startswith(f"model.{s}")) for s in
             ("image", "text")}  # fmt: skip
    assert {side: counts[side] for side in sides} == sides
    assert counts["total"] == counts["trainable"] == sum(learned.values())
    assert "phases.train.batch_size" in start["chosen"]
    assert "checkpoint.max_failures" not in start["chosen"]


def test_lightning_does_not_announce_every_rank():
    logger = logging.getLogger("lightning.fabric.utilities.distributed")
    assert not logger.isEnabledFor(logging.INFO)
