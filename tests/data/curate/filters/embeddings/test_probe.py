"""Probes give the probabilities of their formulas; a fitted one is the optimum."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import LogisticRegression

from counterpoint.data.curate.base import vector_column
from counterpoint.data.curate.filters.embeddings.probe import Probe
from counterpoint.data.curate.numerics.logistic import fit_logistic

RNG = np.random.default_rng(2)
IMAGE = RNG.normal(size=(400, 24)).astype(np.float16)
UNIT = IMAGE / np.linalg.norm(IMAGE.astype(np.float64), axis=1, keepdims=True)


def probability(file, arrays, rows=slice(None), **options):
    np.savez(file, **arrays)
    columns = {"key": np.arange(400)[rows], "clip.image": vector_column(IMAGE[rows])}
    return Probe(file, **options).apply(pa.RecordBatch.from_pydict(columns), {})["probe"]


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@pytest.mark.parametrize("of", [0, 2])
def test_a_linear_probe_is_a_softmax(tmp_path, of):
    weight, bias = RNG.normal(size=(3, 24)), RNG.normal(size=3)
    found = probability(tmp_path / "a.npz", {"weight": weight, "bias": bias}, of=of)
    np.testing.assert_allclose(found, softmax(UNIT @ weight.T + bias)[:, of], rtol=1e-5)


def test_a_linear_probe_of_one_row_is_a_sigmoid(tmp_path):
    weight = 300 * RNG.normal(size=(1, 24))  # far into both ends
    found = probability(tmp_path / "a.npz", {"weight": weight, "bias": np.array([0.5])})
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-(UNIT @ weight[0] + 0.5)))
    assert found.min() < 1e-6
    assert found.max() > 1 - 1e-6
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-30)


def test_a_prompt_probe_compares_with_prompts(tmp_path):
    prompts = RNG.normal(size=(2, 24))
    found = probability(tmp_path / "a.npz", {"classes": prompts}, of=1, scale=20.0)
    prompts /= np.linalg.norm(prompts, axis=1, keepdims=True)
    np.testing.assert_allclose(found, softmax(20 * UNIT @ prompts.T)[:, 1], rtol=1e-5)


def test_no_bit_depends_on_how_rows_are_cut(tmp_path):
    arrays = {"weight": RNG.normal(size=(3, 24)), "bias": RNG.normal(size=3)}
    whole = probability(tmp_path / "a.npz", arrays)
    parts = [probability(tmp_path / "a.npz", arrays, slice(i, i + 7)) for i in range(0, 400, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_fitted_probe_is_scikit_learns(classes):
    """The same objective: scikit-learn's C is 1 / l2."""
    labels = (UNIT @ RNG.normal(size=(24, classes)) + 0.2 * RNG.normal(size=(400, classes))).argmax(
        1
    )
    weight, bias = fit_logistic(IMAGE.astype(np.float32), labels, l2=0.5)
    theirs = LogisticRegression(C=2.0, tol=1e-10, max_iter=10000).fit(UNIT, labels)
    ours = UNIT @ weight.T + bias
    probabilities = 1 / (1 + np.exp(-ours[:, 0])) if classes == 2 else softmax(ours)[:, 1]
    np.testing.assert_allclose(probabilities, theirs.predict_proba(UNIT)[:, 1], atol=1e-5)
    again, _ = fit_logistic(IMAGE.astype(np.float32), labels, l2=0.5)
    np.testing.assert_array_equal(weight, again)


def test_what_cannot_be_used_is_refused(tmp_path):
    arrays = {"weight": RNG.normal(size=(3, 24))}
    with pytest.raises(ValueError, match="has the classes 0 to 2"):
        probability(tmp_path / "a.npz", arrays, of=3)
    with pytest.raises(ValueError, match=r"has the shape \[3, 20\]"):
        probability(tmp_path / "b.npz", {"weight": arrays["weight"][:, :20]})
    with pytest.raises(ValueError, match="no row has the label 1"):
        fit_logistic(IMAGE.astype(np.float32), np.array([0, 2] * 200))
    with pytest.raises(ValueError, match="must be above 0"):
        fit_logistic(IMAGE.astype(np.float32), np.array([0, 1] * 200), l2=0)
