"""The CLIP score is the cosine, however the rows are cut."""

import numpy as np
import pyarrow as pa
import pytest

from counterpoint.data.curate.base import vector_column
from counterpoint.data.curate.filters.embeddings.clip_score import ClipScore

RNG = np.random.default_rng(1)
IMAGE = RNG.normal(size=(300, 48)).astype(np.float16)
TEXT = (IMAGE + RNG.normal(size=IMAGE.shape)).astype(np.float16)


def batch(rows=slice(None), **columns):
    columns = {"clip.image": IMAGE, "clip.text": TEXT} | columns
    arrays = {name: vector_column(values[rows]) for name, values in columns.items()}
    return pa.RecordBatch.from_pydict({"key": np.arange(300)[rows], **arrays})


def expected(image=IMAGE, text=TEXT):
    image, text = image.astype(np.float64), text.astype(np.float64)
    lengths = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
    return (image * text).sum(1) / lengths


def test_it_is_the_cosine():
    columns = ClipScore().apply(batch(), {})
    assert set(columns) == {"clip_score"}
    np.testing.assert_allclose(columns["clip_score"], expected(), atol=2e-6)


def test_a_limit_keeps_those_above():
    each = ClipScore(min=0.7, column="score")
    columns = each.apply(batch(), {})
    assert set(columns) == set(each.writes) == {"score", "keep"}
    score = expected()
    assert 50 < columns["keep"].sum() < 250
    clear = np.abs(score - 0.7) > 1e-5
    np.testing.assert_array_equal(columns["keep"][clear], (score >= 0.7)[clear])


def test_a_score_that_is_the_limit_is_kept():
    image, text = np.zeros((2, 3, 48), dtype=np.float16)
    image[:, 0], text[:, 0], text[2, 1] = 2, [1, 1, 0], 1  # cosines 1, 1, 0
    rows = {"clip.image": vector_column(image), "clip.text": vector_column(text)}
    kept = ClipScore(min=1.0).apply(pa.RecordBatch.from_pydict(rows), {})["keep"]
    assert kept.tolist() == [True, True, False]


def test_variants_give_the_mean_of_their_cosines():
    """Two variants a sample, each of length one, as one long vector."""
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (IMAGE, TEXT, TEXT, IMAGE)]
    image, text = np.hstack(unit[:2]), np.hstack(unit[2:])
    found = ClipScore().apply(batch(**{"clip.image": image, "clip.text": text}), {})["clip_score"]
    np.testing.assert_allclose(found, expected(), atol=2e-3)
    parts = [(unit[0] * unit[2]).sum(1), (unit[1] * unit[3]).sum(1)]
    np.testing.assert_allclose(found, np.mean(parts, axis=0, dtype=np.float64), atol=2e-3)


@pytest.mark.parametrize("size", [1, 7, 299])
def test_no_bit_depends_on_how_rows_are_cut(size):
    whole = ClipScore().apply(batch(), {})["clip_score"]
    parts = [
        ClipScore().apply(batch(slice(first, first + size)), {})["clip_score"]
        for first in range(0, 300, size)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_embeddings_of_two_models_are_refused():
    with pytest.raises(ValueError, match=r"clip.image has 24 numbers a row and clip.text 48"):
        ClipScore().apply(batch(**{"clip.image": IMAGE[:, :24]}), {})
    with pytest.raises(ValueError, match="cosines end at 1"):
        ClipScore(min=28)
    with pytest.raises(ValueError, match=r"clip\.text has numbers that are not finite"):
        ClipScore().apply(batch(**{"clip.text": np.where(TEXT > 2, np.float16(np.nan), TEXT)}), {})
