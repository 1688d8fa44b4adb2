"""DynamiCS: refined clusters and their weights, by the formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.curated import keep
from safetensors.torch import save_file

from counterpoint.data.curate.filters.clusters import refine_clusters
from counterpoint.data.curate.filters.clusters.cluster_weights import ClusterWeights
from counterpoint.data.curate.filters.clusters.refine_clusters import RefineClusters
from counterpoint.launch.config.curations import load_curation

N, CLUSTERS, WIDTH = 600, 40, 12


def pool(folder):
    """Centres of which some are near others, and samples of the nearest one."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(CLUSTERS, WIDTH))
    centres[10:30] += 3 * centres[draw.integers(0, 10, 20)]
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = centres[draw.zipf(1.6, N) % CLUSTERS] + 0.1 * draw.normal(size=(N, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    save_file({"centres": torch.from_numpy(centres).float()}, folder / "centres.safetensors")
    return centres, rows


def refined(centres, rows, threshold):
    """The first of centres that are near stay; samples go to the nearest of them."""
    kept = []
    for number, centre in enumerate(centres):
        if all(centre @ centres[other] < threshold for other in kept):
            kept.append(number)
    return np.array(kept), np.array(kept)[(rows @ centres[kept].T).argmax(1)]


def scaled(cluster, alpha, share):
    """Expected times of each sample."""
    values, counts = np.unique(cluster, return_counts=True)
    targets = share * len(cluster) * counts**alpha / (counts**alpha).sum()
    return dict(zip(values, targets / counts, strict=True))


@pytest.mark.parametrize("variants", [1, 2])
def test_the_pipeline_is_the_papers(tmp_path, monkeypatch, variants):
    monkeypatch.setattr(refine_clusters, "BLOCK", 7)
    centres, rows = pool(tmp_path)
    kept, cluster = refined(centres, rows, 0.7)
    assert 10 < len(kept) < CLUSTERS - 10
    weights = scaled(cluster, 0.2, 0.5)
    embeddings = rows if variants == 1 else np.stack([rows, rows], axis=1)
    first = (rows @ centres.T).argmax(1)
    stores = {"clusters": {"id": first}, "dino": {"image": embeddings.astype(np.float32)}}
    filters = {
        "refine": RefineClusters(tmp_path / "centres.safetensors", 0.7),
        "weights": ClusterWeights(0.2, 0.5),
    }
    found = keep(tmp_path, filters, {"width": [9] * N}, stores)
    assert len(found) == N and sum(found.values()) == pytest.approx(N / 2, rel=1e-6)
    expected = [weights[number] for number in cluster]
    np.testing.assert_allclose([found[row] for row in range(N)], expected, rtol=1e-6)
    assert max(expected) > 1 > min(expected)


@pytest.mark.parametrize("block", [1, 8])
def test_centres_whose_cosine_is_the_threshold_are_one_cluster(monkeypatch, block):
    monkeypatch.setattr(refine_clusters, "BLOCK", block)
    centres = np.array([[2, 0, 0, 0], [1, 1, 1, 1], [0, 0, 3, 0]], dtype=np.float32)  # 1/2, 0, 1/2
    assert refine_clusters.distinct(centres, 0.5).tolist() == [0, 2]
    assert refine_clusters.distinct(centres, 0.5625).tolist() == [0, 1, 2]


def test_alpha_and_the_limit(tmp_path):
    cluster = np.repeat([5, 3, 8], [80, 15, 5])
    columns = {"cluster": cluster.tolist()}
    flat = keep(tmp_path / "flat", ClusterWeights(alpha=0, share=0.3), columns)
    assert [flat[0], flat[80], flat[95]] == pytest.approx([10 / 80, 10 / 15, 10 / 5])
    same = keep(tmp_path / "same", ClusterWeights(alpha=1, share=0.3), columns)
    assert list(same.values()) == pytest.approx([0.3] * 100)
    cut = keep(tmp_path / "cut", ClusterWeights(alpha=0, share=0.3, max_weight=1.5), columns)
    assert [cut[0], cut[80], cut[95]] == pytest.approx([10 / 80, 10 / 15, 1.5])


def test_the_packaged_curation_is_the_papers_recipe():
    filters = load_curation("dynamics")
    refine, weights = filters["refine"], filters["weights"]
    assert isinstance(refine, RefineClusters) and isinstance(weights, ClusterWeights)
    assert refine.threshold == 0.70
    assert (weights.alpha, weights.share, weights.max_weight) == (0.2, 0.5, 1.0)


def test_centres_of_something_else_are_refused(tmp_path):
    _, rows = pool(tmp_path)
    path = tmp_path / "centres.safetensors"
    stores = {"clusters": {"id": np.arange(N)}, "dino": {"image": rows.astype(np.float32)}}
    with pytest.raises(ValueError, match=r"has the cluster 599, and .* only 40 centres"):
        keep(tmp_path / "a", RefineClusters(path), {"width": [9] * N}, stores)
    stores = {
        "clusters": {"id": np.arange(N) % 40},
        "dino": {"image": rows[:, :7].astype(np.float32)},
    }
    with pytest.raises(ValueError, match=r"dino\.image has 7 dimensions, and the centres .* 12"):
        keep(tmp_path / "b", RefineClusters(path), {"width": [9] * N}, stores)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no centres of clusters"):
        keep(tmp_path / "c", RefineClusters(path), {"width": [9] * N}, stores)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ClusterWeights(alpha=1.2), "alpha=1.2: give 0"),
        (lambda: ClusterWeights(share=0), "share=0: give a number above 0"),
        (lambda: ClusterWeights(max_weight=0), "max_weight=0 leaves nothing"),
        (lambda: RefineClusters(Path("x"), threshold=1.5), "threshold=1.5 is no cosine"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
