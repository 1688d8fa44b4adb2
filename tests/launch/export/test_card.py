"""The model card: what the run's folder says, and no more."""

import json

import export_run
import numpy as np
import pytest
import yaml

from counterpoint.launch.commands.export import main
from counterpoint.launch.export.card import normal_interval
from counterpoint.train.evaluation.outcomes import Outcomes, Stored, write_outcomes

RIGHT = np.array([1] * 30 + [0] * 10)


def finish(run_dir, step):
    """What `fit` and `evaluate` leave: results of a step, and of another one."""
    final = {"suite/task/top1": 0.75, "suite/task/top5": 0.9, "loss/infonce": 1.0}
    summary = {"final": final, "steps": step, "samples": 24_000, "epoch_size": 12_000}
    summary |= {"precision": "32-true", "world_size": 2, "machine": {"cpu": "A Processor"}}
    (run_dir / "metrics.jsonl").write_text(
        json.dumps({"step": step, "wall": 1.0, "samples": 24_000}) + "\n"
    )
    (run_dir / "summary.json").write_text(json.dumps(summary))
    outcomes = Outcomes(0.75, RIGHT, [str(i) for i in range(40)])
    write_outcomes(run_dir / "outcomes.npz", {"suite/task/top1": outcomes})
    (run_dir / "evaluation").mkdir()
    later = {"suite": "other", "step": step, "metrics": {"other/task/top1": 0.5}}
    later["intervals"] = {"other/task/top1": [0.4, 0.6]}
    old = {"suite": "old", "step": step + 1, "metrics": {"old/task/top1": 0.125}}
    for name, record in (("other", later), ("old", old)):
        (run_dir / "evaluation" / f"{name}.json").write_text(json.dumps(record))


def card_of(run_dir, tmp_path, *options):
    assert main([str(run_dir), str(tmp_path / "out.safetensors"), *options]) == 0
    return (tmp_path / "out.md").read_text()


def test_results_of_this_step_with_their_intervals(tmp_path):
    run_dir = export_run.write_run(tmp_path / "run", export_run.config())
    finish(run_dir, export_run.STEP)
    card = card_of(run_dir, tmp_path, "--license", "cc-by-4.0")
    # 0.75 +- 1.96 sqrt(0.75 * 0.25 / 40)
    assert "| `suite/task/top1` | 75.0% | 61.6% to 88.4% | 40 |" in card
    assert "| `suite/task/top5` | 90.0% | - |  |" in card
    assert "| `other/task/top1` | 50.0% | 40.0% to 60.0% |  |" in card
    assert "old/task" not in card and "loss/infonce" not in card
    assert "| Pairs seen | 24,000 (2 epochs) |" in card
    assert "| Devices | 2 x A Processor |" in card
    assert "/elsewhere" not in card and "`pairs.parquet`" in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "cc-by-4.0" and "clip" in metadata["tags"]


def test_a_folder_with_configuration_and_checkpoint_alone(tmp_path):
    card = card_of(export_run.write_run(tmp_path / "run", export_run.config()), tmp_path)
    assert "`counterpoint evaluate` writes some" in card
    assert "Not stated" in card and "license" not in yaml.safe_load(card.split("---")[1])
    assert "| train | 480 | 12 | 0.001 | 0 | cosine |" in card


def test_results_of_other_weights_are_not_the_averages(tmp_path):
    run_dir = export_run.write_run(tmp_path / "run", export_run.config(), average=0.5)
    finish(run_dir, export_run.STEP)
    card = card_of(run_dir, tmp_path, "--weights", "ema")
    assert "suite/task" not in card and "average was not evaluated" in card


def test_items_count_by_their_weights():
    """Shares 3/4 and 1/4, mean 3/4: variance (9/16 x 1/16) + (1/16 x 9/16) = 9/128."""
    low, high = normal_interval(Stored(np.array([1.0, 0.0]), np.array([3.0, 1.0]), ""))
    assert low == pytest.approx(0.75 - 1.96 * (9 / 128) ** 0.5) and high == 1.0
