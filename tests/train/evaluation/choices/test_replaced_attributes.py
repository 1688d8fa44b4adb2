"""Captions with one attribute of another image, against a plain count of the right answers."""

import numpy as np
import pytest
from vector_model import Classes, features, run, texts

from counterpoint.train.evaluation.choices.replaced_attributes import ReplacedAttributes

COLORS = ("red", "blue", "green", "grey", "")


def painted(i, name):
    return {"color": COLORS[i % 5]}


DATA = Classes(83, noise=80, seed=4, fields=painted)
TEMPLATE = "{cls} in {color}"


def questions(**options):
    task = ReplacedAttributes(DATA, TEMPLATE, **options)
    task.prepare()
    return task._questions


def test_a_wrong_caption_has_one_value_of_another_image():
    found = questions(captions=3)
    said = {f"images{i}" for i in range(83) if i % 5 != 4}  # the others have no colour
    assert {question.key for question in found} == {
        f"{k}#{a}" for k in said for a in ("cls", "color")
    }
    for question in found:
        fields = DATA.items[question.item].fields
        assert question.right == f"{fields['cls']} in {fields['color']}"
        assert len(set(question.wrong)) == 2
        for text in question.wrong:
            name, color = text.split(" in ")
            assert color in COLORS[:4] and name in DATA.names
            changed = {"cls": name != fields["cls"], "color": color != fields["color"]}
            assert [a for a, is_changed in changed.items() if is_changed] == [question.category]


def test_accuracy_is_the_share_of_captions_that_beat_their_wrong_ones():
    results = run(ReplacedAttributes(DATA, TEMPLATE))
    image, found = features(DATA), questions()
    right = {"cls": [], "color": []}
    for question in found:
        own, *others = texts([question.right, *question.wrong]) @ image[question.item]
        right[question.category].append(own > max(others))
    parts = {name: np.mean(values) for name, values in right.items()}
    assert results["cls_accuracy"] == pytest.approx(parts["cls"])
    assert results["color_accuracy"] == pytest.approx(parts["color"])
    assert results["mean_category_accuracy"] == pytest.approx(np.mean(list(parts.values())))
    assert results["accuracy"] == pytest.approx(np.mean(right["cls"] + right["color"]))
    assert parts["cls"] > 0.5 > parts["color"]  # these features know nothing of colours


def test_questions_depend_on_the_image_and_not_on_the_others():
    few = ReplacedAttributes(DATA, TEMPLATE, attributes=["color"], where={"cls": ["Ant", "Bee"]})
    few.prepare()
    whole = {question.key: question for question in questions()}
    assert few._questions and all(whole[question.key] == question for question in few._questions)
    assert questions(seed=1) != questions(seed=0)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="attributes: size: name some of the template"):
        ReplacedAttributes(DATA, TEMPLATE, attributes=["size"])
    with pytest.raises(ValueError, match="whose fields stand in braces"):
        ReplacedAttributes(DATA, "a picture")
    with pytest.raises(ValueError, match="captions is 1; a choice takes two"):
        ReplacedAttributes(DATA, TEMPLATE, captions=1)
    with pytest.raises(ValueError, match="no image of the images has all of cls, size"):
        ReplacedAttributes(DATA, "{cls} {size}").prepare()
    with pytest.raises(ValueError, match="have the same color, 'red'"):
        ReplacedAttributes(DATA, TEMPLATE, where={"color": "red"}).prepare()
