"""Caption choice and the linear map of texts."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from vector_model import NAMES, Classes, Vectors, features, run, texts

from counterpoint.losses.components.similarity import Distance, Metric
from counterpoint.train.evaluation.choices.caption_choice import CaptionChoice
from counterpoint.train.evaluation.choices.linear_map import MappedCaptionChoice, contrastive_loss


def asked(i, name):
    other = NAMES[(NAMES.index(name) + 1 + i % 5) % 7]
    return {
        "right": f"a {name}",
        "wrong": [f"a {other}", f"no {name}"],
        "kind": f"k{int(name < 'C')}",
    }


DATA = Classes(90, noise=80, seed=2, fields=asked)
FIELDS = {"right": "right", "wrong": "wrong"}


def expected():
    image = features(DATA)
    right = []
    for row, item in zip(image, DATA.items, strict=True):
        own, *others = texts([item.fields["right"], *item.fields["wrong"]]) @ row
        right.append(all(own > other for other in others))
    return np.array(right)


def test_the_caption_has_to_beat_all_wrong_ones():
    results = run(CaptionChoice(DATA, category="kind", **FIELDS))
    right, kinds = expected(), np.array([item.fields["kind"] for item in DATA.items])
    assert results["accuracy"] == pytest.approx(right.mean())
    by_kind = [right[kinds == kind].mean() for kind in ("k0", "k1")]
    assert results["mean_category_accuracy"] == pytest.approx(np.mean(by_kind))
    assert 0.1 < results["accuracy"] < 0.9 and by_kind[0] != by_kind[1]


@pytest.mark.parametrize("form", ["sugar_crepe", "aro", "lines"])
def test_questions_may_stand_in_a_file(tmp_path, form):
    entries = [
        {"filename": item.fields["key"], "caption": item.fields["right"],
         "negative_caption": item.fields["wrong"]} for item in DATA.items[10:60]
    ]  # fmt: skip
    data = Classes(90, noise=80, seed=2, fields=asked)
    data.root = tmp_path
    name = "questions.jsonl" if form == "lines" else "questions.json"
    content = {
        "sugar_crepe": json.dumps({str(i): entry for i, entry in enumerate(entries)}),
        "aro": json.dumps(entries),
        "lines": "\n".join(map(json.dumps, entries)),
    }[form]
    (tmp_path / name).write_text(content)
    task = CaptionChoice(data, name)
    assert run(task)["accuracy"] == pytest.approx(expected()[10:60].mean())
    assert len(task.image_sets()[data]) == 50
    half = CaptionChoice(data, name, where={"cls": NAMES[:3]})
    chosen = [label < 3 for label in data.labels[10:60]]
    assert run(half)["accuracy"] == pytest.approx(expected()[10:60][chosen].mean())


def test_several_questions_may_be_about_one_image(tmp_path):
    data = Classes(9, noise=80, seed=2)
    data.root = tmp_path
    questions = [
        {"image": "images3", "yes": f"a {right}", "no": f"a {wrong}"}
        for right in NAMES
        for wrong in NAMES
        if right != wrong
    ]
    (tmp_path / "q.json").write_text(json.dumps(questions))
    results = run(CaptionChoice(data, "q.json", "image", "yes", ["no"]))
    assert results["accuracy"] == pytest.approx(0.5)  # of a < b and b < a one is right


def test_ties_and_diverged_models_are_misses():
    same = Classes(9, fields=lambda i, name: {"right": name, "wrong": name})
    assert run(CaptionChoice(same, **FIELDS))["accuracy"] == 0
    model = Vectors()
    model.projection.data.fill_(torch.nan)
    assert run(CaptionChoice(DATA, **FIELDS), model)["accuracy"] == 0


def test_the_objectives_own_distance_decides():
    results = run(CaptionChoice(DATA, **FIELDS), metric=Metric(Distance()))
    image, right = features(DATA, ".raw"), []
    for row, item in zip(image, DATA.items, strict=True):
        rows = texts([item.fields["right"], *item.fields["wrong"]], ".raw")
        apart = ((rows - row) ** 2).sum(1)
        right.append(apart[0] < apart[1:].min())
    assert results["accuracy"] == pytest.approx(np.mean(right))


def test_mistakes_are_one_sentence(tmp_path):
    data = Classes(9, fields=asked)
    data.root = tmp_path
    (tmp_path / "q.json").write_text(json.dumps([{"filename": "no.jpg", "caption": "x"}]))
    (tmp_path / "bad.json").write_text("[")

    def refuse(message, **options):
        with pytest.raises(ValueError, match=message):
            CaptionChoice(data, **options).prepare()

    refuse("is about the image 'no.jpg'", questions="q.json")
    refuse(r"bad.json is not JSON", questions="bad.json")
    refuse("none.json cannot be read", questions="none.json")
    refuse("question 'images0' has no true caption 'caption'")
    refuse("no wrong one in nothing", right="right", wrong="nothing")
    with pytest.raises(ValueError, match="are in the training questions"):
        MappedCaptionChoice(train=data, data=data, **FIELDS).prepare()
    with pytest.raises(ValueError, match="that the map is fitted to"):
        MappedCaptionChoice(data=data)


class Rotated(Vectors):
    """Texts are rotated: no caption is near its image until a linear map turns them back."""

    def encode_text(self, ids, lengths, form=""):
        return super().encode_text(ids, lengths, form) @ ROTATION


ROTATION = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]


def test_a_linear_map_finds_what_a_linear_map_took_away():
    train = Classes(140, noise=30, seed=5, name="train", fields=asked)
    test = Classes(90, noise=30, seed=2, fields=asked)
    plain = run(CaptionChoice(test, **FIELDS))["accuracy"]
    task = MappedCaptionChoice(train=train, learning_rate=0.05, steps=150, data=test, **FIELDS)
    results = run(task, Rotated())
    assert results["unmapped_accuracy"] < plain - 0.1
    assert results["accuracy"] > max(plain - 0.05, results["unmapped_accuracy"] + 0.2)
    none = MappedCaptionChoice(train=train, steps=0, data=test, **FIELDS)
    assert run(none)["accuracy"] == pytest.approx(plain)


def test_the_loss_is_that_of_all_captions_at_once():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, generator=generator, dtype=torch.float64) * 30
    hard = torch.randn(5, generator=generator, dtype=torch.float64) * 30
    row = torch.tensor([0, 0, 2, 3, 3])
    own = torch.arange(4)
    expected_loss = F.cross_entropy(logits.T, own)
    for i in range(4):
        mine = torch.cat([logits[i], hard[row == i]])
        expected_loss = expected_loss + F.cross_entropy(mine[None], own[i : i + 1]) / 4
    torch.testing.assert_close(contrastive_loss(logits, hard, row, own), expected_loss / 2)
