"""Outlier scores against loops over all neighbours, and what they are for: planted triggers."""

import math

import numpy as np
import pyarrow as pa
import pytest
from helpers.score_table import make_store, make_table

from counterpoint.data.curate.base import vector_column
from counterpoint.data.curate.filters.embeddings.outlier import Outlier, distances
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store

RNG = np.random.default_rng(3)
IMAGE = (5 * RNG.normal(size=(60, 12))).astype(np.float16)
IMAGE[40:46] = IMAGE[40]  # more equal ones than there are neighbours
TEXT = (IMAGE + RNG.normal(size=IMAGE.shape)).astype(np.float16)
K = 4


def batch(image=IMAGE, text=TEXT):
    columns = {"clip.image": vector_column(image), "clip.text": vector_column(text)}
    return pa.RecordBatch.from_pydict({"key": np.arange(len(image)), **columns})


def scored(sizes=(60,), **options):
    each = Outlier(**{"k": K, "batch": 100} | options)
    starts = np.cumsum([0, *sizes])
    return each.apply_groups(batch(), starts, {})["outlier_score"]


def apart(a, b):
    return math.sqrt(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def clean(value):
    if math.isnan(value) or value == math.inf:
        return 1000.0
    return 0.0 if value == -math.inf else value


def divide(a, b):
    return a / b if b else (math.nan if a == 0 else math.inf)


def dimension(near):
    logs = [math.log(divide(r, near[K]) + 1e-4) for r in near[:K]]
    total = sum(logs)
    return -K / total if total else -math.inf


def log(x):
    return math.nan if math.isnan(x) else (-math.inf if x == 0 else math.log(x))


def by_hand(method, image, text=None):
    """The corrected form: nothing is a neighbour of its own sample."""
    points = [*image] if text is None else [*image, *text]
    n = len(image)

    def neighbours(i):
        others = [(apart(points[i], p), j) for j, p in enumerate(points) if j % n != i % n]
        return sorted(others)[: K + 1]

    scores = []
    for i in range(n):
        near = neighbours(i)
        radius = near[K][0]
        of = [[d for d, _ in neighbours(j)] for _, j in near[:K]]
        if method == "k_dist":
            scores.append(radius)
        elif method == "lid":
            scores.append(clean(dimension([d for d, _ in near])))
        elif method == "slof":
            scores.append(clean(sum(divide(radius, o[K]) for o in of) / K))
        else:
            terms = [dimension(o) * log(divide(radius, o[K])) for o in of]
            scores.append(clean(sum(terms) / K))
    return np.array(scores)


def as_released(method, image, text=None):
    """Step by step as the authors' code does it: positions without the row, used with it."""
    n = len(image)
    points = [*image] if text is None else [*image, *text]
    full = [sorted(apart(p, q) for q in points) for p in points]
    scores = []
    for i in range(n):
        row = [apart(image[i], image[j]) for j in range(n) if j != i]
        if text is not None:
            row += [apart(image[i], text[j]) for j in range(n) if j != i]
        order = sorted(range(len(row)), key=lambda j: (row[j], j))
        radius = row[order[K]]
        terms = []
        for position in order[:K]:
            ratio = divide(radius, full[position][K])
            factor = dimension(full[position]) if method == "dao" else 1.0
            terms.append(factor * log(ratio) if method == "dao" else ratio)
        scores.append(clean(sum(terms) / K))
    return np.array(scores)


# Rows 40 to 45 are equal: 0 / 0 is met there by definition, and must not hang on rounding.
@pytest.mark.parametrize("text", [None, "clip.text"])
@pytest.mark.parametrize("method", ["k_dist", "slof", "lid", "dao"])
def test_scores_are_the_formulas(method, text):
    found = scored(method=method, text=text)
    expected = by_hand(method, IMAGE, TEXT if text else None)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("text", [None, "clip.text"])
@pytest.mark.parametrize("method", ["slof", "dao"])
def test_the_released_form(method, text):
    found = scored(method=method, text=text, as_released=True)
    expected = as_released(method, IMAGE, TEXT if text else None)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
    assert not np.allclose(found, scored(method=method, text=text), rtol=0.01)


def test_each_batch_is_judged_alone():
    parts = np.concatenate([by_hand("dao", IMAGE[:25]), by_hand("dao", IMAGE[25:])])
    np.testing.assert_allclose(scored((25, 35)), parts, rtol=2e-4, atol=1e-5)


def test_copies_have_no_distance_and_all_other_pairs_have():
    far = distances(IMAGE.astype(np.float32) * 37)
    assert (far[40:46, 40:46] == 0).all()
    far[40:46, 40:46] = 1
    np.fill_diagonal(far, 1)
    assert (far > 0).all()


POOL, POISONED = 4000, 12


def poisoned_pool(folder, shards, order=None):
    """Clean images in 20 clusters; some others near a point of their own, each a little off."""
    rng = np.random.default_rng(7)
    middles = rng.normal(size=(20, 24))
    images = middles[rng.integers(0, 20, POOL)] + 0.2 * rng.normal(size=(POOL, 24))
    images[:POISONED] = 3 * rng.normal(size=24) + 0.02 * rng.normal(size=(POISONED, 24))
    table = make_table(folder / "table", {}, shards, order)
    keys = np.arange(POOL) * 7919 - 10**6
    rows = {int(k): {"image": v} for k, v in zip(keys, images.astype(np.float16), strict=True)}
    store = Store(make_store(folder / "store", table, rows))
    filters = {"outlier": Outlier(batch=500)}
    Curation(table, filters, {"clip": store}, folder / "out").run()
    import pyarrow.parquet as pq

    scores = {}
    for path, (source, shard, _) in zip(table.files, table.shards, strict=True):
        (found,) = (folder / "out/steps").glob(f"outlier-*/{source}/{shard[:-4]}.parquet")
        column = pq.read_table(found)["outlier_score"].to_pylist()
        scores |= zip(pq.read_table(path)["key"].to_pylist(), column, strict=True)
    return scores, set(keys[:POISONED].tolist())


def test_planted_triggers_are_on_top_whatever_the_shards(tmp_path):
    scores, poisoned = poisoned_pool(tmp_path / "a", [1000] * 4)
    top = sorted(scores, key=scores.__getitem__)[-POISONED:]
    assert set(top) == poisoned
    order = np.random.default_rng(1).permutation(POOL)
    other, _ = poisoned_pool(tmp_path / "b", [700, 3300], order)
    assert other == scores


def test_too_small_batches_are_refused():
    with pytest.raises(ValueError, match="at least four times as large"):
        Outlier(k=64, batch=100)
    with pytest.raises(ValueError, match="a random batch has 4 rows, too few for 4 neighbours"):
        scored((56, 4))


def test_numbers_that_are_not_finite_are_refused():
    broken = np.where(np.arange(60)[:, None] == 7, np.float16(np.nan), IMAGE)
    with pytest.raises(ValueError, match=r"clip\.image has numbers that are not finite"):
        Outlier(k=K, batch=100).apply_groups(batch(broken), np.array([0, 60]), {})
