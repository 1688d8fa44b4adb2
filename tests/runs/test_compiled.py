"""Whole runs with compiled towers: the losses of eager ones, what the metrics say of compute."""

import json

import pytest
from processes import fit
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.train.checkpointing.checkpoint import load, newest

STEPS = 6


@pytest.mark.soak
def test_a_compiled_run_is_an_eager_one(tmp_path):
    path = tmp_path / "train.parquet"
    index_shards([str(p) for p in write_shards(tmp_path)], str(path))
    values = config(path, steps=STEPS)
    values["checkpoint"]["every_n_steps"] = 3
    values["ema"] = {"decay": 0.9}
    arguments = ["--config", str(write_config(tmp_path, values)), "--trainer.peak_tflops=0.001"]
    found = {}
    for name in ("null", "aot_eager"):
        run_dir, log = tmp_path / name, tmp_path / f"{name}.log"
        fit([*arguments, f"--trainer.compile={name}", "--run_dir", str(run_dir)], 1, log)
        assert ("compiled with aot_eager: " in log.read_text()) == (name != "null")
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        found[name] = rows, load(newest(run_dir))["state_dict"]
    (eager, weights), (compiled, others) = found.values()
    assert list(weights) == list(others)
    for row, like in zip(compiled, eager, strict=True):
        assert row["loss"] == pytest.approx(like["loss"], rel=1e-5)
        assert row["flops_per_pair"] == like["flops_per_pair"] > 0
        assert row["mfu"] == pytest.approx(row["flops_per_pair"] * row["pairs_per_s"] / 1e9)
    # Switched on and off by a resume.
    (tmp_path / "null" / "checkpoints" / f"step-{STEPS:08d}.ckpt").unlink()
    log = tmp_path / "again.log"
    fit(["--resume", str(tmp_path / "null"), "--trainer.compile=aot_eager"], 1, log)
    rows = (tmp_path / "null" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["loss"] == pytest.approx(eager[-1]["loss"], rel=1e-5)
