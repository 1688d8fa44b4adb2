"""Evaluation in parts: which tasks at which step, whether a run was stopped or not."""

import json

import pytest
import tiny
import toy_evaluation as toy
import yaml
from PIL import Image

from counterpoint.launch.api.training import build
from counterpoint.launch.commands import data
from counterpoint.train.callbacks.evaluation import EvaluationConfig

TURNS = {2: {"a", "b"}, 4: {"a", "c"}, 6: {"b", "c"}, 8: {"a", "b"}, 9: {"a", "b", "c"}}


def test_all_have_their_turn_and_share_images():
    suite = toy.toy_suite()
    names = list(suite.tasks)
    assert len(names) == 4
    turns = [list(suite.turn(number, 3).tasks) for number in range(4)]
    assert turns == [[n for n in names if n != names[3 - i]] for i in range(4)]
    part = suite.turn(1, 3)
    assert part.cache is suite.cache and part.average is None
    assert suite.turn(5, 4) is suite.turn(0, 9) is suite
    toy.run(suite)
    loads = suite.tasks["all"].data.loads
    found = toy.run(part)
    assert suite.tasks["all"].data.loads == loads, "decoded images are used again"
    whole = toy.run(suite)
    assert found == {n: v for n, v in whole.items() if not n.startswith("toy/pairs")}
    assert len(found) < len(whole)


def test_a_number_below_one_is_refused():
    with pytest.raises(ValueError, match=r"evaluation\.tasks_at_once"):
        EvaluationConfig(tasks_at_once=0)


def rows(run_dir):
    """The tasks that each step's row has measures of."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    found = {}
    for row in lines:
        names = {name.split("/")[1] for name in row if name.startswith("mine/")}
        if names:
            found[row["step"]] = names
    return found


def test_turns_are_those_of_the_step(tmp_path):
    shards = tiny.write_shards(tmp_path / "pairs", 1, 13)
    assert data.main(["index", *map(str, shards), "--out", str(tmp_path / "train.parquet")]) == 0
    for i, name in enumerate(("blue", "red")):
        path = tmp_path / "images" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20, 20), (255 * i, 0, 255 - 255 * i)).save(path)
    (task,) = yaml.safe_load(tiny.COLOURS)["tasks"].values()
    suite = {"tasks": {"a": task, "b": task, "c": task}, "average": "top1"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(suite))
    values = tiny.config(tmp_path / "train.parquet", steps=9)
    values["data"]["num_workers"] = 0
    values["trainer"] |= {"logger": False, "peak_tflops": 1.0}
    values["checkpoint"] = {"every_n_steps": 3, "keep": 0}
    values["evaluation"] = {
        "suite": str(tmp_path / "mine.yaml"),
        "every_n_steps": 2,
        "tasks_at_once": 2,
    }
    run_file = tiny.write_config(tmp_path, values)
    run_dir = tmp_path / "run"
    module, pairs, trainer = build(run_file, run_dir=run_dir)
    trainer.fit(module, datamodule=pairs)
    turns = {step: set(names) for step, names in TURNS.items()}
    turns[9].add("average")
    assert rows(run_dir) == turns
    before = (run_dir / "metrics.jsonl").read_text()
    for step in (6, 9):
        (run_dir / f"checkpoints/step-{step:08d}.ckpt").unlink()
    module, pairs, trainer = build(run_file, run_dir=run_dir, resume="auto")
    trainer.fit(module, datamodule=pairs)
    assert rows(run_dir) == turns and (run_dir / "metrics.jsonl").read_text() != before
