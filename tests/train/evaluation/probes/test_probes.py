"""Probes on features: nearest neighbours and logistic regression against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from vector_model import NAMES, Classes, features, run, unit

from counterpoint.train.evaluation.probes import linear_probe
from counterpoint.train.evaluation.probes.knn import NearestNeighbours
from counterpoint.train.evaluation.probes.labelled import Part
from counterpoint.train.evaluation.probes.linear_probe import (
    LinearProbe,
    fifth,
    fit,
    penalty_of,
    quality,
    search,
)

TRAIN, TEST = Classes(90, seed=1, name="train"), Classes(150, seed=2, name="test")


@pytest.mark.parametrize("form", [".pooled", ""])
def test_neighbours_vote_as_sklearns_do(form):
    results = run(NearestNeighbours(k=9, temperature=0.1, data=TEST, train=TRAIN, form=form))
    train, test = unit(features(TRAIN, form)), unit(features(TEST, form))
    model = KNeighborsClassifier(
        9, algorithm="brute", weights=lambda squares: np.exp((1 - squares**2 / 2) / 0.1)
    )  # of unit vectors, cosine = 1 - |x - y|^2 / 2
    scores = model.fit(train, TRAIN.labels).predict_proba(test)
    for k in (1, 5):
        expected = top_k_accuracy_score(TEST.labels, scores, k=k, labels=range(7))
        # Classes without a vote tie, which counts as a miss here.
        voted = (scores > 0)[np.arange(len(test)), TEST.labels]
        top = np.argsort(-scores, kind="stable")[:, :k]
        hits = voted & (top == TEST.labels[:, None]).any(1)
        assert hits.mean() <= expected
        assert results[f"top{k}"] == pytest.approx(hits.mean())
    assert results["mean_per_class_recall"] == pytest.approx(
        balanced_accuracy_score(TEST.labels, scores.argmax(1))
    )
    assert 0.3 < results["top1"] < 0.99


@pytest.mark.parametrize("penalty", [0.05, 3.0])
def test_the_solution_is_sklearns(penalty):
    x, y = features(TRAIN, ".pooled"), TRAIN.labels
    reference = LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=20_000).fit(x, y)
    linear = fit(Part(torch.from_numpy(x).float(), torch.from_numpy(y)), 7, penalty)
    # Features were rounded to float32; biases are only determined up to a constant.
    np.testing.assert_allclose(linear.weight.numpy().T, reference.coef_, atol=2e-4)
    bias = linear.bias.numpy()
    expected = reference.intercept_ - reference.intercept_.mean()
    np.testing.assert_allclose(bias - bias.mean(), expected, atol=2e-4)
    warm = fit(Part(torch.from_numpy(x).float(), torch.from_numpy(y)), 7, penalty, linear)
    torch.testing.assert_close(warm.weight, linear.weight, rtol=0, atol=1e-5)


def test_a_probe_of_a_given_penalty_is_sklearns():
    results = run(LinearProbe(penalty=0.5, data=TEST, train=TRAIN))
    model = LogisticRegression(C=2, tol=1e-10, max_iter=10_000)
    model.fit(features(TRAIN, ".pooled"), TRAIN.labels)
    accuracy = model.score(features(TEST, ".pooled"), TEST.labels)
    assert results["top1"] == pytest.approx(accuracy)
    assert results["penalty.decades"] == pytest.approx(np.log10(0.5))


def test_the_penalty_is_the_best_on_the_part_that_is_left_out(monkeypatch):
    monkeypatch.setattr(linear_probe, "MAX_ITERATIONS", 150)  # the ends of the search take long
    results = run(LinearProbe(data=TEST, train=TRAIN))
    x, y = features(TRAIN, ".pooled"), TRAIN.labels
    held_out = fifth([item.get("key") for item in TRAIN.items], y)

    def score(step):
        model = LogisticRegression(C=1 / penalty_of(step), tol=1e-6, max_iter=150)
        model.fit(x[~held_out], y[~held_out])
        probabilities = model.predict_proba(x[held_out])
        return model.score(x[held_out], y[held_out]), -log_loss(y[held_out], probabilities)

    best = search(score)
    assert results["penalty.decades"] == pytest.approx(np.log10(penalty_of(best)))
    assert 0 < best < 96
    model = LogisticRegression(C=1 / penalty_of(best), tol=1e-9, max_iter=5000).fit(x, y)
    assert results["top1"] == pytest.approx(model.score(features(TEST, ".pooled"), TEST.labels))


def test_the_search_finds_a_peak_in_few_steps():
    for peak in (0, 37, 96):
        seen = []

        def score(step, peak=peak, seen=seen):
            seen.append(step)
            return -abs(step - peak), 0.0

        assert search(score) == peak
        assert len(seen) == len(set(seen)) <= 7 + 2 * 4
    assert penalty_of(0) == pytest.approx(1e-6) and penalty_of(96) == pytest.approx(1e6)


def test_a_fifth_of_each_class_is_left_out_whatever_the_order():
    keys, targets = [f"k{i}" for i in range(60)], np.repeat([0, 1, 2, 3], [40, 12, 7, 1])
    chosen = fifth(keys, targets)
    assert np.bincount(targets[chosen], minlength=4).tolist() == [8, 2, 1, 0]
    order = np.random.default_rng(0).permutation(60)
    assert np.array_equal(fifth([keys[i] for i in order], targets[order]), chosen[order])
    scores = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert quality(scores, torch.tensor([1, 0]))[0] == 0.5  # a tie is a miss


def test_mistakes_are_one_sentence():
    def refuse(message, task):
        with pytest.raises(ValueError, match=message):
            task.prepare()

    few = Classes(40, name="few", classes=NAMES[:3])
    refuse("classes 'cls' of the test have no image in", LinearProbe(data=TEST, train=few))
    one = Classes(9, name="one", classes=NAMES[:1])
    refuse("the one have one class, 'Ant'", NearestNeighbours(data=TEST, train=one))
    refuse("150 images of the test are in the training split", LinearProbe(data=TEST, train=TEST))
