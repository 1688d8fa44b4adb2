"""Calibration, detection of other images, accuracy without labels, against other libraries."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score, roc_curve
from torchmetrics.functional.classification import multiclass_calibration_error
from vector_model import NAMES, Classes, Vectors, features, run, texts

from counterpoint.losses.components.similarity import Distance, Metric
from counterpoint.train.evaluation.confidence.calibration import (
    Calibration,
    calibration_error,
    temperature,
    temperatures,
)
from counterpoint.train.evaluation.confidence.detection import detection
from counterpoint.train.evaluation.confidence.label_free import MatrixNorm, matrix_norm
from counterpoint.train.evaluation.confidence.negated_prompts import NegatedPrompts
from counterpoint.train.evaluation.confidence.out_of_distribution import ConceptMatching
from counterpoint.train.evaluation.confidence.vim import VirtualLogit, principal_dimension
from counterpoint.train.evaluation.task import order_by_hash

TEST = Classes(120, noise=80, seed=2, name="test", classes=NAMES[:5])
OTHERS = Classes(70, noise=80, seed=3, name="others", classes=NAMES[5:])
PROMPTS = {"classes": NAMES[:5], "templates": "a {c}"}


def cosines(data):
    return features(data) @ texts(f"a {name}" for name in NAMES[:5]).T


@pytest.mark.parametrize("scale", [None, 8.0])
def test_calibration_is_torchmetrics(scale):
    model = Vectors()
    model.logit_scale = torch.nn.Parameter(torch.tensor([np.log(5.0)]))
    results = run(Calibration(scale, data=TEST, **PROMPTS), model)
    logits = (scale or 5.0) * cosines(TEST)
    probabilities = torch.from_numpy(softmax(logits, 1))
    labels = torch.from_numpy(TEST.labels)
    expected = multiclass_calibration_error(probabilities, labels, 5, n_bins=15, norm="l1")
    assert results["calibration_error"] == pytest.approx(float(expected), abs=1e-6)
    assert results["top1"] == pytest.approx((logits.argmax(1) == TEST.labels).mean())
    assert results["confidence"] == pytest.approx(float(probabilities.amax(1).mean()), rel=1e-5)
    assert results["log_loss.nats"] == pytest.approx(log_loss(TEST.labels, probabilities), rel=1e-4)
    assert 0 < results["scaled_error"] < 1 and results["calibration_error"] > 0.02


def test_a_bin_holds_its_upper_edge_and_gaps_count_by_images():
    confidence, is_right = np.array([0.5, 0.5, 0.6, 1.0]), np.array([1, 1, 0, 1])
    # Two bins: |1 - 0.5| of two images, |0.5 - 0.8| of two.
    assert calibration_error(confidence, is_right, 2) == pytest.approx(0.4)


def test_the_curve_of_a_calibration_is_the_accuracy_of_each_bin():
    details = {}
    run(Calibration(8.0, data=TEST, **PROMPTS), details=details)
    curve = details["s/t/reliability"].record()["curve"]
    logits = 8 * cosines(TEST)
    confidence, right = softmax(logits, 1).max(1), logits.argmax(1) == TEST.labels
    edges = np.linspace(0, 1, 16)
    rows = [
        (confidence[inside].mean(), right[inside].mean(), inside.sum())
        for low, high in pairwise(edges)
        if (inside := (confidence > low) & (confidence <= high)).any()
    ]
    x, y, sizes = (list(each) for each in zip(*rows, strict=True))
    assert len(rows) > 4 and curve["sizes"] == sizes and curve["kind"] == "shares"
    assert curve["x"] == pytest.approx(x, rel=1e-4) and curve["y"] == pytest.approx(y)


def test_the_temperature_has_the_lowest_loss():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 5)) * 9
    labels = (logits / 9 + rng.gumbel(size=(400, 5))).argmax(1)

    def loss(log_t):
        return -log_softmax(logits / np.exp(log_t), 1)[np.arange(400), labels].mean()

    best = np.exp(minimize_scalar(loss, bounds=(-3, 5), method="bounded").x)
    got = temperature(torch.from_numpy(logits), torch.from_numpy(labels))
    assert got == pytest.approx(best, rel=1e-3)
    assert 5 < got < 14  # near 9, with which the logits were made too large


def test_the_temperature_of_a_half_comes_from_the_other_half():
    data = Classes(400, noise=80, seed=5, classes=NAMES[:5])
    results = run(Calibration(100.0, data=data, **PROMPTS))
    assert results["scaled_error"] < 0.5 * results["calibration_error"]


def test_no_half_is_fitted_to_itself():
    rng = np.random.default_rng(0)
    keys = [f"k{i}" for i in range(300)]
    is_first = np.zeros(300, dtype=bool)
    is_first[order_by_hash(keys)[:150]] = True
    logits = rng.normal(size=(300, 5))
    labels = (logits + rng.gumbel(size=(300, 5))).argmax(1)
    logits[is_first] *= 6  # these are too sure, so the others are told to be less so
    found = temperatures(torch.from_numpy(logits), torch.from_numpy(labels), keys).numpy()
    assert len(set(found[is_first])) == len(set(found[~is_first])) == 1
    assert 4 < found[~is_first][0] < 9 and 0.7 < found[is_first][0] < 1.5


def test_probabilities_are_those_of_the_objectives_own_distance():
    metric = Metric(Distance())
    results = run(Calibration(3.0, data=TEST, **PROMPTS), metric=metric)
    image, text = features(TEST, ".raw"), texts([f"a {n}" for n in NAMES[:5]], ".raw")
    apart = np.linalg.norm(image[:, None] - text[None], axis=2) / 6**0.5
    expected = softmax(-3 * apart, 1).max(1).mean()
    assert results["confidence"] == pytest.approx(expected, rel=1e-4)


def reference(inside, outside):
    """AUROC and FPR95 by scikit-learn, images of the classes being positive."""
    labels = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    scores = np.r_[inside, outside]
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    return roc_auc_score(labels, scores), false[np.argmax(true >= 0.95)]


@pytest.mark.parametrize("num", [19, 20, 100])
def test_detection_is_sklearns(num):
    rng = np.random.default_rng(num)
    inside, outside = rng.normal(1, 1, num).round(1), rng.normal(0, 1, 57).round(1)  # with ties
    found = detection(inside, outside, range(num), range(57))
    auroc, fpr = reference(inside, outside)
    assert found["auroc"].value == pytest.approx(auroc)
    assert found["fpr95"].value == pytest.approx(fpr)


def test_a_diverged_model_detects_nothing():
    nothing = np.full(9, np.nan)
    found = detection(nothing, nothing, range(9), range(9))
    assert found["auroc"].value == 0 and found["fpr95"].value == 1


def test_concept_matching_is_its_formula():
    results = run(ConceptMatching(OTHERS, data=TEST, **PROMPTS))
    inside, outside = cosines(TEST), cosines(OTHERS)
    auroc, fpr = reference(softmax(inside, 1).max(1), softmax(outside, 1).max(1))
    assert results["auroc"] == pytest.approx(auroc) and results["fpr95"] == pytest.approx(fpr)
    auroc, fpr = reference(inside.max(1), outside.max(1))
    assert results["cosine_auroc"] == pytest.approx(auroc)
    assert results["cosine_fpr95"] == pytest.approx(fpr)
    assert results["auroc"] != results["cosine_auroc"]
    raw = run(ConceptMatching(OTHERS, data=TEST, **PROMPTS), metric=Metric(Distance()))
    assert raw == pytest.approx(results)


@pytest.mark.parametrize("scale", [None, 3.0])
def test_negated_prompts_are_the_two_scores_of_clipn(scale):
    model = Vectors()
    model.logit_scale = torch.nn.Parameter(torch.tensor([np.log(7.0)]))
    negated = ["no {c}", "{c} is absent"]
    results = run(NegatedPrompts(OTHERS, negated, scale, data=TEST, **PROMPTS), model)
    prompts = [texts(each.replace("{c}", name) for each in negated) for name in NAMES[:5]]
    denying = np.array([rows.mean(0) / np.linalg.norm(rows.mean(0)) for rows in prompts])
    wins, agrees = [], []
    for data in (TEST, OTHERS):
        affirmed = (scale or 7.0) * cosines(data)
        both = np.stack([affirmed, (scale or 7.0) * features(data) @ denying.T], 2)
        yes = softmax(both, 2)[:, :, 0]
        wins.append(yes[np.arange(len(yes)), affirmed.argmax(1)])
        agrees.append((softmax(affirmed, 1) * yes).sum(1))
    for name, scores in (("ctw", wins), ("atd", agrees)):
        auroc, fpr = reference(*scores)
        assert results[f"{name}_auroc"] == pytest.approx(auroc)
        assert results[f"{name}_fpr95"] == pytest.approx(fpr)
        assert 0.05 < auroc < 0.95
    assert results["ctw_auroc"] != results["atd_auroc"]
    distance = run(
        NegatedPrompts(OTHERS, negated, scale, data=TEST, **PROMPTS),
        model,
        metric=Metric(Distance()),
    )
    assert distance == pytest.approx(results)
    with pytest.raises(ValueError, match=r"needs \{c\} where the class name goes"):
        run(NegatedPrompts(OTHERS, ["nothing"], data=TEST, **PROMPTS))


def test_virtual_logit_matching_is_the_published_one():
    train = Classes(150, noise=80, seed=7, name="train", classes=NAMES[:5])
    results = run(VirtualLogit(OTHERS, dimension=4, penalty=0.2, data=TEST, train=train))
    x, test, others = (features(data, ".pooled") for data in (train, TEST, OTHERS))
    head = LogisticRegression(C=5, tol=1e-12, max_iter=10_000).fit(x, train.labels)
    weight, bias = head.coef_, head.intercept_ - head.intercept_.mean()
    origin = -np.linalg.pinv(weight) @ bias
    covariance = EmpiricalCovariance(assume_centered=True).fit(x - origin).covariance_
    values, vectors = np.linalg.eig(covariance)
    directions = vectors[:, np.argsort(-values)[4:]]

    def lengths(rows):
        return np.linalg.norm((rows - origin) @ directions, axis=1)

    alpha = (x @ weight.T + bias).max(1).mean() / lengths(x).mean()
    score = [logsumexp(r @ weight.T + bias, axis=1) - alpha * lengths(r) for r in (test, others)]
    auroc, fpr = reference(*score)
    assert results["auroc"] == pytest.approx(auroc, abs=1e-4)
    assert results["fpr95"] == pytest.approx(fpr, abs=0.02)
    energy = [logsumexp(rows @ weight.T + bias, axis=1) for rows in (test, others)]
    assert results["energy_auroc"] == pytest.approx(reference(*energy)[0], abs=1e-4)
    assert [principal_dimension(width) for width in (2048, 768, 512)] == [1000, 512, 256]
    with pytest.raises(ValueError, match="dimension is 10; features have 10"):
        run(VirtualLogit(OTHERS, dimension=10, penalty=0.2, data=TEST, train=train))


@pytest.mark.parametrize("divergence", [1.7, 4.8, 5.2])
def test_the_matrix_norm_is_its_formula(divergence):
    """Above 5 by the softmax, else by its expansion, as the published code decides it."""

    def excess(scale):
        return -log_softmax(scale * cosines(TEST), 1).mean() - divergence

    scale = brentq(excess, 0.1, 200)
    results = run(MatrixNorm(scale, data=TEST, **PROMPTS))
    logits = scale * cosines(TEST)
    expanded = 1 + logits + logits**2 / 2
    expanded -= expanded.min(1, keepdims=True)
    taylor = expanded / expanded.sum(1, keepdims=True)
    chosen, other = softmax(logits, 1), taylor
    if divergence < 5:
        chosen, other = other, chosen
    assert results["mano"] == pytest.approx(((chosen**4).mean()) ** 0.25, rel=1e-5)
    assert results["mano"] != pytest.approx(((other**4).mean()) ** 0.25, rel=1e-3)
    assert results["top1"] == pytest.approx((logits.argmax(1) == TEST.labels).mean())


def test_sure_logits_have_the_largest_matrix_norm():
    sure = torch.eye(4)[torch.arange(8) % 4] * 100
    assert matrix_norm(sure) == pytest.approx(0.25**0.25)
    assert matrix_norm(torch.rand(8, 4)) < matrix_norm(sure)
