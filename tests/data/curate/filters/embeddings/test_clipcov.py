"""CLIPCov against dense matrices of similarities, in both forms."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.score_table import kept, make_store, make_table

from counterpoint.data.curate.filters.embeddings.clipcov import ClipCov
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store

N, CLASSES, WIDTH, EVERY, FRACTION = 500, 6, 16, 7, 0.3
RNG = np.random.default_rng(4)


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


PROMPTS = RNG.normal(size=(CLASSES, WIDTH))
PROMPTS[-1] = -unit(PROMPTS[:-1]).sum(0)  # to which no image lies nearest
OF = RNG.integers(0, CLASSES - 1, N)
IMAGE = unit(unit(PROMPTS)[OF] + 0.25 * RNG.normal(size=(N, WIDTH))).astype(np.float16)
TEXT = unit(unit(PROMPTS)[OF] + 0.25 * RNG.normal(size=(N, WIDTH))).astype(np.float16)
KEYS = np.arange(N) * 7919 - 10**6


def run(folder, shards=(N,), order=None, **options):
    table = make_table(folder / "table", {}, shards, order)
    rows = {
        int(key): {"image": image, "text": text}
        for key, image, text in zip(KEYS, IMAGE, TEXT, strict=True)
    }
    store = Store(make_store(folder / "store", table, rows))
    np.savez(folder / "classes.npz", classes=PROMPTS)
    options = {"every": EVERY, **options}
    each = ClipCov(folder / "classes.npz", fraction=FRACTION, **options)
    Curation(table, {"cov": each}, {"clip": store}, folder / "out").run()
    scores = {}
    for path, (source, shard, _) in zip(table.files, table.shards, strict=True):
        (file,) = (folder / "out/steps").glob(f"cov-*/{source}/{shard[:-4]}.parquet")
        scores |= zip(
            pq.read_table(path)["key"].to_pylist(),
            pq.read_table(file)["clipcov"].to_pylist(),
            strict=True,
        )
    return np.array([scores[key] for key in KEYS]), set(kept(folder / "out"))


def by_hand(positive, every=lambda wanted: EVERY):
    """Scores [n] and picked keys from whole matrices, float64."""
    image, text, prompts = (unit(v.astype(np.float64)) for v in (IMAGE, TEXT, PROMPTS))
    of = (image @ prompts.T).argmax(1)
    assert set(of) == set(range(CLASSES - 1))
    scores, picked = np.zeros(N), set()
    for k in set(of):
        own = np.flatnonzero(of == k)
        similar = image[own] @ text[own].T
        if positive:
            similar = similar * (similar > 0)
        score = (similar.sum(1) + similar.sum(0)) / len(own)
        score += 2 * (image[own] * text[own]).sum(1) + text[own] @ prompts[k] / 2
        others = [other for other in set(of) if other != k]
        for other in others:
            rows = of == other
            score -= image[own] @ text[rows].mean(0) / len(others)
            score -= text[own] @ image[rows].mean(0) / len(others)
        scores[own] = score
        left, score = list(range(len(own))), score.copy()
        chosen, new = [], []
        wanted = math.ceil(FRACTION * len(own))
        while len(chosen) < wanted:
            best = max(left, key=lambda i: score[i])
            left.remove(best)
            chosen.append(best)
            new.append(best)
            if len(new) == every(wanted):
                score -= (similar[:, new].sum(1) + similar[new].sum(0)) / len(own)
                new = []
        picked |= set(KEYS[own[chosen]].tolist())
    return scores, picked


@pytest.mark.parametrize("positive", [False, True])
def test_scores_and_picks_are_those_of_dense_matrices(tmp_path, positive):
    scores, picked = run(tmp_path, positive=positive)
    expected, chosen = by_hand(positive)
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert picked == chosen
    assert np.abs(expected - by_hand(not positive)[0]).max() > 1e-3


def test_taking_off_what_is_picked_makes_a_difference():
    """Else the test above would not see it."""
    scores, picked = by_hand(False)
    image = unit(IMAGE.astype(np.float64))
    of = (image @ unit(PROMPTS).T).argmax(1)
    at_once = set()
    for k in set(of):
        own = np.flatnonzero(of == k)
        best = own[np.argsort(-scores[own])][: math.ceil(FRACTION * len(own))]
        at_once |= set(KEYS[best].tolist())
    assert len(at_once) == len(picked)
    assert at_once != picked


def test_large_classes_are_gone_through_so_many_times(tmp_path):
    scores, picked = run(tmp_path, every=1, passes=2)
    expected, chosen = by_hand(False, lambda wanted: math.ceil(wanted / 2))
    np.testing.assert_allclose(scores, expected, atol=2e-5)
    assert picked == chosen != by_hand(False, lambda wanted: 1)[1]


def test_without_negative_similarities_both_forms_are_one(tmp_path, monkeypatch):
    """All vectors in one orthant: the cut at 0 cuts nothing."""
    for name in ("IMAGE", "TEXT"):
        monkeypatch.setitem(globals(), name, np.abs(globals()[name]))
    linear, one = run(tmp_path / "linear")
    dense, other = run(tmp_path / "dense", positive=True)
    np.testing.assert_allclose(linear, dense, atol=1e-5)
    assert one == other


@pytest.mark.parametrize("positive", [False, True])
def test_nothing_depends_on_shards(tmp_path, positive):
    one = run(tmp_path / "a", [50] * 10, positive=positive)
    order = np.random.default_rng(2).permutation(N)
    other = run(tmp_path / "b", [1, 99, 400], order, positive=positive)
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]


def test_what_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(ValueError, match="above 0 and not above 1"):
        ClipCov(tmp_path / "x.npz", fraction=30)
    np.savez(tmp_path / "classes.npz", classes=PROMPTS[:, :5])
    with pytest.raises(ValueError, match="both must come from the same model"):
        ClipCov(tmp_path / "classes.npz").prompts(WIDTH)
    np.savez(tmp_path / "others.npz", weight=PROMPTS)
    with pytest.raises(ValueError, match="no array 'classes'; it has weight"):
        ClipCov(tmp_path / "others.npz").prompts(WIDTH)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as arrays"):
        ClipCov(tmp_path / "bad.safetensors").prompts(WIDTH)
