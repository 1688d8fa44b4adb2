"""Gap, alignment, uniformity, ranks, CLIPScore and the Schur complement against float64."""

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from scipy.spatial.distance import pdist
from scipy.stats import entropy
from vector_model import NAMES, Classes, features, run, texts

from counterpoint.losses.components.similarity import Distance, Metric
from counterpoint.train.evaluation.geometry import modality
from counterpoint.train.evaluation.geometry.clip_score import ClipScore, harmonic_mean
from counterpoint.train.evaluation.geometry.conditional import (
    ConditionalDiversity,
    num_modes,
    split_covariance,
)
from counterpoint.train.evaluation.geometry.modality import (
    ModalityGeometry,
    effective_rank,
    uniformity,
)


def words(i, name):
    return {"said": f"a {name} {i % 20}", "said_before": [f"{name} number {i}", f"that {name}"]}


DATA = Classes(90, noise=80, seed=2, fields=words)
SAID = [f"a {NAMES[label]} {i % 20}" for i, label in enumerate(DATA.labels)]


def test_the_geometry_is_its_formulas():
    results = run(ModalityGeometry(data=DATA, captions="said"))
    image, distinct = features(DATA), texts(dict.fromkeys(SAID))
    own = texts(SAID)
    assert len(distinct) < len(own)
    gap = np.linalg.norm(image.mean(0) - own.mean(0))
    assert results["modality_gap.length"] == pytest.approx(gap, rel=1e-5)
    apart = ((image - own) ** 2).sum(1).mean()
    assert results["alignment.squared_distance"] == pytest.approx(apart, rel=1e-5)
    for name, rows in (("image", image), ("text", distinct)):
        even = np.log(np.exp(-2 * pdist(rows) ** 2).mean())
        assert results[f"{name}_uniformity.nats"] == pytest.approx(even, rel=1e-5)
        rank = np.exp(entropy(np.linalg.svd(rows, compute_uv=False)))
        assert results[f"{name}_rank.dimensions"] == pytest.approx(rank, rel=1e-5)
    lifted = run(ModalityGeometry(data=DATA, captions="said"), metric=Metric(Distance()))
    assert lifted == pytest.approx(results)


def test_pairs_are_limited_by_their_names_alone(monkeypatch):
    task = ModalityGeometry(max_pairs=30, data=DATA, captions="said")
    assert len(task.prepare()) == 30 == len(task.image_sets()[DATA])
    results = run(task)
    image = features(DATA)[task.prepare()]
    even = np.log(np.exp(-2 * pdist(image) ** 2).mean())
    assert results["image_uniformity.nats"] == pytest.approx(even, rel=1e-5)
    monkeypatch.setattr(modality, "CHUNK_PRODUCTS", 70)  # two rows at a time
    assert run(task) == pytest.approx(results, rel=1e-9)


def test_known_geometries():
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(6, 4)) == pytest.approx(1, abs=1e-3)
    square = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]], dtype=torch.float64)
    expected = np.log((4 * np.exp(-2 * 2) + 2 * np.exp(-2 * 4)) / 6)  # four sides, two diagonals
    assert uniformity(square) == pytest.approx(expected)
    assert np.isnan(uniformity(square[:1]))


@pytest.mark.parametrize("prefix", ["A photo depicts ", ""])
def test_clip_score_is_its_formula(prefix):
    task = ClipScore(DATA, "said", "said_before", prefix=prefix)
    results = run(task)
    image, own = features(DATA), texts(prefix + text for text in SAID)
    score = 2.5 * (image * own).sum(1).clip(0)
    assert results["clip_score.points"] == pytest.approx(score.mean(), rel=1e-5)
    near = np.array([
        (texts(prefix + text for text in item.fields["said_before"]) @ row).max()
        for row, item in zip(own, DATA.items, strict=True)
    ]).clip(0)  # fmt: skip
    both = np.where(score + near > 0, 2 * score * near / (score + near), 0).mean()
    assert results["ref_clip_score.points"] == pytest.approx(both, rel=1e-5)
    assert set(run(ClipScore(DATA, "said"))) == {"clip_score.points"}
    assert harmonic_mean(np.array([0.0, 1.0]), np.array([0.0, 3.0])).tolist() == [0, 1.5]


def test_conditional_diversity_is_its_formula():
    results = run(ConditionalDiversity(data=DATA, captions="said"))
    u, v = features(DATA), texts(SAID)
    explained = u.T @ v @ np.linalg.inv(v.T @ v) @ v.T @ u / len(u)
    rest = u.T @ u / len(u) - explained

    def modes(matrix):
        values = np.linalg.eigvalsh(matrix).clip(1e-300)
        return np.exp(-(values * np.log(values / values.sum())).sum())

    assert results["text_share"] == pytest.approx(np.trace(explained), rel=1e-4)
    assert results["scendi.modes"] == pytest.approx(modes(rest), rel=1e-4)
    assert results["text_scendi.modes"] == pytest.approx(modes(explained), rel=1e-4)
    assert 0.1 < results["text_share"] < 0.95


def test_what_texts_say_is_taken_out_of_images():
    rng = np.random.default_rng(0)
    text = torch.from_numpy(rng.normal(size=(20_000, 3)))
    noise = torch.from_numpy(rng.normal(size=(20_000, 3)))
    image = torch.cat([2 * text, 3 * noise], 1)
    rest, explained = split_covariance(image, torch.cat([text, text], 1))  # of rank 3
    np.testing.assert_allclose(explained, block_diag(4 * np.eye(3), np.zeros((3, 3))), atol=0.2)
    np.testing.assert_allclose(rest, block_diag(np.zeros((3, 3)), 9 * np.eye(3)), atol=0.3)
    assert num_modes(torch.eye(5) / 5) == pytest.approx(5)
    assert num_modes(torch.zeros(5, 5)) == 1
