"""Descriptions, attributes and groups of zero-shot classification against float64."""

import json

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from vector_model import NAMES, Classes, features, run, texts

from counterpoint.train.evaluation.zero_shot.attributes import (
    AttributePrompts,
    class_log_probabilities,
)
from counterpoint.train.evaluation.zero_shot.descriptions import DescribedZeroShot, connected
from counterpoint.train.evaluation.zero_shot.groups import GroupAccuracy

GROUPS = {0: "snow", 1: "grass", 2: "sand"}
DATA = Classes(150, noise=80, seed=2, fields=lambda i, name: {"ground": GROUPS[i % 3]})


def top1(scores):
    own = scores[np.arange(len(scores)), DATA.labels]
    return (scores >= own[:, None]).sum(1) == 1


def test_a_class_is_the_mean_of_its_descriptions_scores(tmp_path):
    described = {name: [f"a {NAMES[k]}" for k in range(7 - i)] for i, name in enumerate(NAMES)}
    results = run(DescribedZeroShot(described, "{c}: {d}", data=DATA))
    image = features(DATA)
    means = np.array([
        texts(f"{name}: which is {each}" for each in described[name]).mean(0) for name in NAMES
    ])  # fmt: skip
    assert results["top1"] == pytest.approx(top1(image @ means.T).mean())
    again = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert results["top1"] != top1(image @ again.T).mean()  # an ensemble would be another one
    (tmp_path / "said.json").write_text(json.dumps(described))
    task = DescribedZeroShot(str(tmp_path / "said.json"), "{c}: {d}", data=DATA)
    assert run(task) == results


def test_beginnings_decide_what_connects_a_description():
    expected = {
        "a long tail": "which is a long tail",
        "antlers": "which has antlers",  # a word that only begins with an a
        "may have spots": "which may have spots",
        "used for cooking": "which is used for cooking",
    }
    assert {each: connected(each) for each in expected} == expected


def test_attributes_are_inferred_from_the_image():
    phrases, t = ["", " in the sea", " at night"], 0.7
    task = AttributePrompts(phrases, t, data=DATA, templates=["{c}{a}", "my {c}{a}"])
    results = run(task)
    scores = np.zeros((len(DATA), 7, 3))
    for c, name in enumerate(NAMES):
        for z, phrase in enumerate(phrases):
            mean = texts([f"{name}{phrase}", f"my {name}{phrase}"]).mean(0)
            scores[:, c, z] = 100 * features(DATA) @ (mean / np.linalg.norm(mean))
    of_z = log_softmax(logsumexp(scores / t, axis=1), axis=1)
    expected = logsumexp(log_softmax(scores, axis=1) + of_z[:, None], axis=2)
    assert results["top1"] == pytest.approx(top1(expected).mean())
    plain = top1(scores[:, :, 0]).mean()
    assert results["top1"] != plain


@pytest.mark.parametrize("t", [0.2, 1.0, 30.0])
def test_probabilities_of_classes_are_sums_over_attributes(t):
    scores = np.random.default_rng(0).normal(size=(9, 4, 3)) * 5
    exp = np.exp(scores / t)
    of_z = exp.sum(1) / exp.sum((1, 2))[:, None]
    given_z = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    expected = (given_z * of_z[:, None]).sum(2)
    found = class_log_probabilities(torch.from_numpy(scores), t).exp()
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(found.sum(1), 1)


def test_groups_the_worst_and_the_drop():
    task = GroupAccuracy("ground", "grass", "snow", data=DATA, templates="a {c}")
    results = run(task)
    right = top1(features(DATA) @ texts(f"a {name}" for name in NAMES).T)
    by_group = {name: right[i::3].mean() for i, name in GROUPS.items()}
    for name, accuracy in by_group.items():
        assert results[f"{name}_top1"] == pytest.approx(accuracy)
    assert results["top1"] == pytest.approx(right.mean())
    assert results["worst_group_top1"] == pytest.approx(min(by_group.values()))
    assert results["mean_group_top1"] == pytest.approx(np.mean(list(by_group.values())))
    assert results["accuracy_drop"] == pytest.approx(by_group["grass"] - by_group["snow"])
    assert len(set(by_group.values())) > 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DescribedZeroShot({}, "{c}", data=DATA), "template '{c}' needs"),
        (lambda: DescribedZeroShot({"Ant": ["x"]}, data=DATA).prepare(), "none of the class 'Bee'"),
        (lambda: DescribedZeroShot("no.json", data=DATA).prepare(), "there is no file no.json"),
        (lambda: AttributePrompts(["x"], data=DATA), "at least two phrases"),
        (lambda: AttributePrompts(["x", "y"], data=DATA).prepare(), "templates need {a}"),
        (lambda: GroupAccuracy("ground", "ice", "snow", data=DATA).prepare(), "has ground 'ice'"),
        (lambda: GroupAccuracy("ground", "snow", data=DATA), "both `common` and `counter`"),
    ],
)
def test_mistakes_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
