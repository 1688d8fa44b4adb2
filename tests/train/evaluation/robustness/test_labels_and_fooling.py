"""Lists of labels, and images that fit every caption."""

import numpy as np
import pytest
import torch
from vector_model import NAMES, Classes, Vectors, features, run, texts, unit

from counterpoint.train.evaluation.robustness.fooling import FoolingImages
from counterpoint.train.evaluation.robustness.label_design import LabelDesign

DATA = Classes(90, noise=80, seed=2, fields=lambda i, name: {"group": "abc"[i % 3]})
LABELS, HARMFUL, ADDED = NAMES[:2], NAMES[2:4], NAMES[4:]


def test_harmful_labels_by_group_with_and_without_further_ones():
    templates = ["a {c}", "one {c}"]
    task = LabelDesign(DATA, "group", LABELS, HARMFUL, ADDED, templates)
    results = run(task)
    weights = unit(np.array([texts(t.format(c=n) for t in templates).mean(0) for n in NAMES]))
    scores = features(DATA) @ weights.T
    for prefix, columns in (("", range(4)), ("added_", range(7))):
        answers = scores[:, list(columns)].argmax(1)
        harmful = np.isin(answers, (2, 3))
        groups = [harmful[i::3].mean() for i in range(3)]
        assert results[f"{prefix}harmful_error"] == pytest.approx(harmful.mean())
        assert results[f"{prefix}b_harmful_error"] == pytest.approx(groups[1])
        assert results[f"{prefix}mean_group_harmful_error"] == pytest.approx(np.mean(groups))
        assert results[f"{prefix}harmful_gap"] == pytest.approx(max(groups) - min(groups))
    assert 0 < results["added_harmful_error"] < results["harmful_error"] < 1
    assert not [
        name for name in run(LabelDesign(DATA, "group", LABELS, HARMFUL)) if "added" in name
    ]


def test_fooling_images_are_counted_by_caption():
    fooling = Classes(12, noise=90, seed=8, name="fooling")
    results = run(FoolingImages(fooling, data=DATA, captions="cls"))
    text = texts(NAMES[label] for label in DATA.labels)
    own = (features(DATA) * text).sum(1)
    fooled = text @ features(fooling).T >= own[:, None]
    assert results["fooled_error"] == pytest.approx(fooled.mean())
    assert results["best_fooled_error"] == pytest.approx(fooled.mean(0).max())
    assert 0 < results["fooled_error"] < results["best_fooled_error"] < 1
    part = run(FoolingImages(fooling, {"cls": "Bee"}, data=DATA, captions="cls"))
    assert part["fooled_error"] != results["fooled_error"]


def test_a_diverged_model_is_fooled_and_harmful():
    model = Vectors()
    model.projection.data.fill_(torch.nan)
    assert run(FoolingImages(DATA, data=DATA, captions="cls"), model)["fooled_error"] == 1
    assert run(LabelDesign(DATA, "group", LABELS, HARMFUL), model)["harmful_error"] == 1


def test_mistakes_are_one_sentence():
    for more in ({"labels": []}, {"harmful": ["Ant"]}, {"added": ["Ant"]}):
        options = {"labels": ["Ant"], "harmful": ["Bee"], "added": None} | more
        with pytest.raises(ValueError, match="give `labels` and `harmful` ones, each once"):
            LabelDesign(DATA, "group", **options)
    with pytest.raises(ValueError, match=r"templates need \{c\}"):
        LabelDesign(DATA, "group", ["x"], ["y"], templates=["z"])
