"""Texts that span what heads contribute, against projectors in numpy."""

import json

import numpy as np
import pytest
import torch
from toy_evaluation import tokenizer, transform
from vector_model import NAMES, Classes, Vectors, run, small_vit

from counterpoint.models.head_contributions import HeadContributions
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.geometry.text_span import TextSpan, row_space, span
from counterpoint.train.evaluation.suite import Suite

DATA = Classes(30, noise=60, seed=2)
TEXTS = [f"{first} {name}" for first in ("a", "no", "two") for name in NAMES]


def orthogonal(texts, chosen):
    """The projector to what is left beside the chosen texts."""
    basis = np.linalg.qr(texts[chosen].T)[0] if chosen else np.zeros((texts.shape[1], 0))
    return np.eye(texts.shape[1]) - basis @ basis.T


def reference(rows, texts, count):
    """Texts by the largest deviation of rows along what is left of them; the share explained."""
    chosen = []
    for _ in range(count):
        left = orthogonal(texts, chosen)
        chosen.append(int((rows @ left @ texts.T).std(0).argmax()))
    part = rows @ orthogonal(texts, chosen)
    return chosen, 1 - (part**2).sum() / (rows**2).sum()


@pytest.mark.parametrize("count", [1, 4])
def test_texts_are_chosen_by_the_variance_along_them(count):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 9)) * np.arange(1, 10)
    texts = rng.normal(size=(25, 9)) * rng.uniform(0.5, 2, size=(25, 1))
    rows -= rows.mean(0)
    found, explained, part = span(torch.from_numpy(rows), torch.from_numpy(texts), count)
    chosen, share = reference(rows, texts, count)
    assert found == chosen and explained == pytest.approx(share, rel=1e-9)
    np.testing.assert_allclose(part, rows - rows @ orthogonal(texts, chosen), atol=1e-9)


def test_texts_are_projected_to_the_heads_own_directions():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 9))
    texts = rng.normal(size=(5, 9))
    _, _, vh = np.linalg.svd(rows, full_matrices=False)
    for rank in (2, 80):
        basis = vh[: min(rank, 3)]
        got = row_space(torch.from_numpy(rows), torch.from_numpy(texts), rank)
        np.testing.assert_allclose(got, texts @ basis.T @ basis, atol=1e-9)
    # More texts than the head has directions: it is explained, and no text is left over.
    centred = torch.from_numpy(rows - rows.mean(0))
    found, explained, _ = span(centred, row_space(centred, torch.from_numpy(texts)), 5)
    assert len(found) == len(set(found)) == 3 and explained == pytest.approx(1)


def test_the_task_is_its_formula():
    model, details = small_vit(), {}
    task = TextSpan(DATA, TEXTS, layers=2, texts_per_head=3)
    results = run(task, model, details=details)
    found = HeadContributions(model.image, model.image_projection)(DATA.pixels)
    ids, lengths = tokenizer(TEXTS, Vectors.context_length)
    with torch.no_grad():
        texts = model.encode_text(ids, lengths).double().numpy()
        raw = model.encode_image(DATA.pixels, form=".raw").double().numpy()
    heads = found.heads[:, 1:].double().numpy()
    shares, spanned, expected = [], 0, {}
    for layer in (0, 1):
        for head in range(3):
            rows = heads[:, layer, head]
            _, lengths, vh = np.linalg.svd(rows, full_matrices=False)
            vh = vh[lengths > 1e-5 * lengths[0]]  # the others are the rounding of float32
            centred, mine = rows - rows.mean(0), texts @ vh.T @ vh
            chosen, share = reference(centred, mine, 3)
            shares.append(share)
            spanned = spanned + rows - centred @ orthogonal(mine, chosen)
            expected[f"layer {layer + 1} head {head}"] = [TEXTS[i] for i in chosen]
    assert results["explained"] == pytest.approx(np.mean(shares), rel=1e-4)
    assert details["s/t/texts"].record() == {"texts": expected}
    rest = raw.mean(0) - heads.sum((1, 2)).mean(0)
    for name, kept in (("ablated", heads.sum((1, 2))), ("spanned", spanned)):
        rows = rest + kept
        cosine = (rows * raw).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(raw, axis=1)
        assert results[f"{name}_cosine"] == pytest.approx(cosine.mean(), rel=1e-4)
    assert 0.2 < results["explained"] < 0.999


def test_texts_may_stand_in_a_file_and_images_be_fewer(tmp_path):
    data = Classes(30, noise=60, seed=2)
    data.root = tmp_path
    (tmp_path / "texts.txt").write_text("\n".join([*TEXTS, "", TEXTS[0]]))
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    options = {"texts_per_head": 2, "max_images": 12}
    ways = [TextSpan(data, each, **options) for each in ("texts.txt", "texts.json", TEXTS)]
    first, *others = (run(task, small_vit()) for task in ways)
    assert others == [first, first] and len(ways[0].prepare()) == 12
    assert first != run(TextSpan(data, TEXTS, texts_per_head=2), small_vit())


@pytest.mark.parametrize("kind", ["diverged", "zero"])
def test_a_useless_model_ends_nothing(kind):
    model = small_vit()
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan if kind == "diverged" else 0.0)
    suite = Suite("s", {"t": TextSpan(DATA, TEXTS, texts_per_head=2)})
    assert evaluate(model, suite, tokenizer, transform)["s/t/explained"] == 0


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="there are 7 different ones, and 10 are chosen"):
        TextSpan(DATA, NAMES).prepare()
    with pytest.raises(ValueError, match="there is no file"):
        TextSpan(DATA, "nowhere.txt").prepare()
    with pytest.raises(ValueError, match="layers is 0"):
        TextSpan(DATA, NAMES, layers=0)
    with pytest.raises(ValueError, match="the image tower is a Parameter"):
        run(TextSpan(DATA, NAMES, texts_per_head=2), Vectors())
