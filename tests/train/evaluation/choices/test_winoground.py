"""Two images and two captions, against the four products of each example."""

import json

import numpy as np
import pytest
import torch
from vector_model import NAMES, Classes, Vectors, features, run, texts

from counterpoint.losses.components.similarity import Distance, Metric
from counterpoint.train.evaluation.choices.winoground import Winoground

DATA = Classes(80, noise=80, seed=2)
EXAMPLES = [
    {
        "id": 100 + i,
        "image_0": f"images{2 * i}",
        "image_1": f"images{2 * i + 1}",
        "caption_0": f"a {DATA.items[2 * i].fields['cls']} here",
        # Every third example has one caption twice: a tie, which is a miss.
        "caption_1": f"a {DATA.items[2 * i + (i % 3 > 0)].fields['cls']} here",
    }
    for i in range(40)
]


def written(folder, entries=EXAMPLES):
    (folder / "examples.jsonl").write_text("\n".join(map(json.dumps, entries)))
    data = Classes(80, noise=80, seed=2)
    data.root = folder
    return data


def expected(form=""):
    image, right = features(DATA, form), []
    for i, example in enumerate(EXAMPLES):
        rows = texts([example["caption_0"], example["caption_1"]], form)
        apart = ((rows[:, None] - image[2 * i : 2 * i + 2][None]) ** 2).sum(2)
        s = {(c, k): -apart[c, k] for c in (0, 1) for k in (0, 1)}
        text = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
        pictures = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
        right.append((text, pictures, text and pictures))
    return dict(zip(("text", "image", "group"), np.mean(right, 0), strict=True))


@pytest.mark.parametrize("form", ["", ".raw"])
def test_the_three_scores_are_those_of_the_paper(tmp_path, form):
    metric = Metric(Distance()) if form else None
    results = run(Winoground(written(tmp_path), "examples.jsonl"), metric=metric)
    wanted = expected(form)
    assert results == pytest.approx({f"{name}_score": value for name, value in wanted.items()})
    assert 0 < wanted["image"] < 1 and wanted["text"] != wanted["image"]
    assert form or 0 < wanted["group"] < min(wanted["text"], wanted["image"])


def test_names_may_have_no_folder_and_no_ending(tmp_path):
    data = written(tmp_path)
    for item in data.items:
        item.fields["key"] = f"pictures/{item.fields['key']}.png"
    assert run(Winoground(data, "examples.jsonl")) == run(
        Winoground(written(tmp_path), "examples.jsonl")
    )
    data.items[9].fields["key"] = "elsewhere/images0.png"
    with pytest.raises(ValueError, match=r"'images0' \(image_0\), which is the name of several in"):
        Winoground(data, "examples.jsonl").prepare()


def test_only_examples_with_chosen_images_are_asked(tmp_path):
    task = Winoground(written(tmp_path), "examples.jsonl", where={"cls": NAMES[:4]})
    kept = [i for i in range(40) if max(DATA.labels[2 * i : 2 * i + 2]) < 4]
    assert len(task.prepare()) == 2 * len(kept) > 0
    with pytest.raises(ValueError, match=r"none of examples.jsonl is about the images"):
        Winoground(written(tmp_path), "examples.jsonl", where={"key": "images0"}).prepare()


def test_a_diverged_model_is_right_nowhere(tmp_path):
    model = Vectors()
    model.projection.data.fill_(torch.nan)
    assert set(run(Winoground(written(tmp_path), "examples.jsonl"), model).values()) == {0}


def test_mistakes_are_one_sentence(tmp_path):
    wrong = [{**EXAMPLES[0], "image_1": "nobody"}]
    with pytest.raises(ValueError, match=r"'nobody' \(image_1\), which is not in the images"):
        Winoground(written(tmp_path, wrong), "examples.jsonl").prepare()
    with pytest.raises(ValueError, match="example '0' has no captions text_a and text_b"):
        Winoground(written(tmp_path), "examples.jsonl", captions=("text_a", "text_b")).prepare()
    with pytest.raises(ValueError, match="an example has two of each"):
        Winoground(DATA, images=("image",))
