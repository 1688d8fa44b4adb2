"""What each item contributed to a measure: equal to hand-made outcomes, and kept by a run."""

import numpy as np
import pytest
import tiny
import torch
import yaml
from PIL import Image
from toy_evaluation import CLASSES, Toy, ToyImages, features, run, toy_suite, unit

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.train.evaluation.outcomes import (
    Outcomes,
    mean_of_groups,
    read_outcomes,
    write_outcomes,
)
from counterpoint.train.evaluation.suite import Suite
from counterpoint.train.evaluation.zero_shot.classification import ZeroShot


def test_outcomes_are_those_of_each_image_and_their_mean_is_the_measure():
    suite, found = toy_suite(), {}
    values = run(suite, outcomes=found)
    assert values == run(toy_suite())
    assert set(found) == set(values)  # all measures of ours are means over items
    for name, each in found.items():
        assert np.average(each.values, weights=each.weights) == pytest.approx(values[name])
        assert len(each.keys) == len(each.values) == len(set(each.keys))
    # Zero-shot outcomes, by a loop over images in float64.
    data = suite.tasks["all"].data
    image, text = features(Toy().eval(), data)
    prompts = [[c, f"a {c}", f"the {c}!"] for c in CLASSES]
    classifier = unit(unit_mean(text, prompts))
    scores = image @ classifier.T
    right = [int(scores[i].argmax() == CLASSES.index(c)) for i, c in enumerate(data.classes)]
    assert found["toy/all/top1"].values.tolist() == right
    assert list(found["toy/all/top1"].keys) == [f"k{i}" for i in range(23)]
    # A class counts as much as any other, and so does a group.
    weights = found["toy/all/mean_per_class_recall"].weights
    for name in set(data.classes):
        of_class = [w for w, c in zip(weights, data.classes, strict=True) if c == name]
        assert sum(of_class) == pytest.approx(1)
    groups = found["toy/style/top1"]
    assert groups.weights[:12].sum() == pytest.approx(groups.weights[12:].sum())  # 12 a, 11 b


def unit_mean(text, prompts):
    return torch.stack([text(names).mean(0) for names in prompts])


def test_a_measure_that_is_no_mean_over_items_has_no_outcomes():
    class Constant(ZeroShot):
        def measure(self, encoder, chosen):
            return {"half": 0.5}

    found = {}
    task = Constant(ToyImages(8), classes=CLASSES, templates="{c}", by="style")
    assert run(Suite("s", {"t": task}), outcomes=found)["s/t/half"] == 0.5
    assert found == {}
    assert mean_of_groups([0.25, Outcomes(0.75, np.ones(1), ["a"])]) == 0.5


def test_a_file_gives_back_what_was_written(tmp_path):
    right = Outcomes(0.5, np.array([True, False]), ["a", "b"])
    graded = Outcomes(0.4, np.array([0.1, 0.5]), ["b", "a"], np.array([1.0, 3.0]))
    write_outcomes(tmp_path / "o.npz", {"s/t/top1": right, "s/t_x/y": graded})
    read = read_outcomes(tmp_path / "o.npz")
    assert read["s/t/top1"].values.tolist() == [1, 0]
    assert read["s/t/top1"].weights.tolist() == [1, 1]
    assert read["s/t_x/y"].values.tolist() == [0.1, 0.5]
    assert read["s/t_x/y"].weights.tolist() == [1, 3]
    assert read["s/t/top1"].items != read["s/t_x/y"].items  # the same items, in another order


def test_a_run_keeps_the_outcomes_of_its_last_evaluation(tmp_path):
    for name in ("red", "green"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20, 20), name).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "suite.yaml").write_text(tiny.COLOURS)
    shards = tiny.write_shards(tmp_path / "pairs", 1)
    index_shards([str(p) for p in shards], str(tmp_path / "train.parquet"))
    config = tiny.config(tmp_path / "train.parquet", steps=2)
    config["evaluation"] = {"suite": str(tmp_path / "suite.yaml"), "every_n_steps": 1}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    run_dir = tmp_path / "run"
    assert main(["fit", "--config", str(tmp_path / "run.yaml"), "--run_dir", str(run_dir)]) == 0
    final = yaml.safe_load((run_dir / "summary.json").read_text())["final"]
    outcomes = read_outcomes(run_dir / "outcomes.npz")
    assert set(outcomes) == {"suite/colours/top1", "suite/colours/mean_per_class_recall"}
    for name, each in outcomes.items():
        assert len(each.values) == 6
        assert np.average(each.values, weights=each.weights) == pytest.approx(final[name])
