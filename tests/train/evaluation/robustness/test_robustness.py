"""Triggers, misspelt names, and several objects."""

import numpy as np
import pytest
import torch
from toy_evaluation import tokenizer, transform
from vector_model import NAMES, PROTOTYPES, Classes, Vectors, features, run, texts, unit

from counterpoint.losses.components.similarity import Distance, Metric
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.robustness.backdoor import BackdoorSuccess
from counterpoint.train.evaluation.robustness.misspelling import MisspelledNames, misspelled
from counterpoint.train.evaluation.robustness.multi_object import MultiObject, Pairs, partners_of
from counterpoint.train.evaluation.robustness.triggers import TRIGGERS, sinusoid, warped
from counterpoint.train.evaluation.suite import Suite
from counterpoint.train.evaluation.zero_shot.classification import ZeroShot

DATA = Classes(90, noise=60, seed=2)
IMAGE = torch.from_numpy(np.random.default_rng(0).integers(40, 200, (3, 224, 224), np.uint8))


def test_the_triggers_are_the_published_ones():
    difference = {name: draw(IMAGE, 0).int() - IMAGE.int() for name, draw in TRIGGERS.items()}
    assert all(each.abs().sum() > 0 for each in difference.values())
    where = difference["patch"].ne(0).any(0)
    rows, columns = where.any(1).nonzero()[:, 0], where.any(0).nonzero()[:, 0]
    assert len(rows) == rows[-1] - rows[0] + 1 == len(columns) == 16
    stripes = 0.2 * 60 / 255 * np.sin(2 * np.pi * 6 * np.arange(224) / 224)
    expected = (0.8 * IMAGE.double().numpy() / 255 + stripes) * 255
    np.testing.assert_allclose(sinusoid(IMAGE).numpy(), expected, atol=0.51)
    # Noise from 0 to 1 of which a fifth is mixed in: from 0.8 x to 0.8 x + 0.2.
    blend = (TRIGGERS["blended"](IMAGE, 0).double() - 0.8 * IMAGE.double()) / (0.2 * 255)
    assert -0.02 < blend.min() < 0.05 and 0.95 < blend.max() < 1.02 and 0.48 < blend.mean() < 0.52


def test_warping_moves_pixels_by_about_one():
    ramp = torch.arange(224, dtype=torch.uint8).expand(3, 224, 224).contiguous()
    moved = (warped(ramp).double() - ramp)[:, 8:-8, 8:-8].abs()
    # Steps of 2 / 224 in [-1, 1] are one pixel: |steps| / 224 with a mean of 1 is half of one.
    assert 0.3 < moved.mean() < 0.7 and moved.max() <= 2
    assert torch.equal(warped(torch.full_like(ramp, 77)), torch.full_like(ramp, 77))


@pytest.mark.parametrize("name", TRIGGERS)
def test_a_trigger_is_the_same_each_time_and_of_a_seed(name):
    draw = TRIGGERS[name]
    assert torch.equal(draw(IMAGE, 0), draw(IMAGE.clone(), 0))
    assert torch.equal(draw(IMAGE, 0), draw(IMAGE, 1)) == (name == "sinusoid")
    other = IMAGE.flip(2)
    assert draw(IMAGE[:, :96, :64], 3).shape == (3, 96, 64)
    if name == "patch":  # its place follows from the image
        places = [(draw(each, 0) != each).any(0).nonzero()[0].tolist() for each in (IMAGE, other)]
        assert places[0] != places[1]


class Poisoned(Vectors):
    """Takes every image with a bright first row for the first class."""

    def encode_image(self, image, form=""):
        out = super().encode_image(image, form)
        is_marked = image[:, :, 0].float().mean((1, 2)) > 150
        return torch.where(is_marked[:, None], self.encode_text(*ANT, form), out)


ANT = tokenizer([f"a {NAMES[0]}"], Vectors.context_length)


def test_attack_success_is_the_share_of_other_classes(monkeypatch):
    def mark(image, seed):
        image = image.clone()
        image[:, 0] = 255 if int(image[0, 3, 3]) % 2 else 0  # half of the images
        return image

    monkeypatch.setitem(TRIGGERS, "patch", mark)
    task = BackdoorSuccess(NAMES[0], data=DATA, templates="a {c}")
    results = run(task, Poisoned())
    marked = torch.stack([mark(image, 0) for image in DATA.pixels])
    weights = texts(f"a {name}" for name in NAMES)
    answers = []
    for pixels in (DATA.pixels, marked):
        copy = Classes(90)
        copy.pixels = pixels
        image = features(copy)
        bright = pixels[:, :, 0].float().mean((1, 2)) > 150
        image[bright] = weights[0]
        answers.append((image @ weights.T).argmax(1))
    other = DATA.labels != 0
    assert results["attack_success"] == pytest.approx((answers[1][other] == 0).mean())
    assert results["target_error"] == pytest.approx((answers[0][other] == 0).mean())
    assert results["clean_top1"] == pytest.approx((answers[0] == DATA.labels).mean())
    assert results["triggered_top1"] == pytest.approx((answers[1] == DATA.labels).mean())
    assert results["attack_success"] > results["target_error"] + 0.2


def test_decoded_images_stay_clean(monkeypatch):
    """A task with a trigger does not change what others see, before or after."""
    monkeypatch.setitem(TRIGGERS, "blended", lambda image, seed: 255 - image)
    prompts = {"data": DATA, "templates": "a {c}"}
    tasks = {"b": BackdoorSuccess(NAMES[0], "blended", **prompts), "z": ZeroShot(**prompts)}
    suite = Suite("s", tasks)
    first, second = (evaluate(Vectors(), suite, tokenizer, transform) for _ in range(2))
    assert first == second and first["s/b/clean_top1"] == first["s/z/top1"]
    assert first["s/b/triggered_top1"] < first["s/b/clean_top1"]


def test_misspelt_names_are_edited_and_the_worst_is_found():
    task = MisspelledNames(edits=1, candidates=6, data=DATA, templates=["a {c}", "the {c}"])
    results = run(task)
    image = features(DATA)

    def classes(names):
        return unit(np.array([texts([f"a {name}", f"the {name}"]).mean(0) for name in names]))

    def top1(weights):
        scores = image @ weights.T
        own = scores[np.arange(len(image)), DATA.labels]
        return ((scores >= own[:, None]).sum(1) == 1).mean()

    clean = classes(NAMES)
    ways = [classes([misspelled(name, 1, f"0/{n}") for name in NAMES]) for n in range(6)]
    closeness = np.array([(way * clean).sum(1) for way in ways])
    worst = np.array([ways[closeness[:, c].argmin()][c] for c in range(7)])
    assert results["clean_top1"] == pytest.approx(top1(clean))
    assert results["misspelled_top1"] == pytest.approx(top1(ways[0]))
    assert results["attacked_top1"] == pytest.approx(top1(worst))
    assert results["attacked_top1"] < results["clean_top1"]
    assert run(task, metric=Metric(Distance())).keys() == results.keys()


@pytest.mark.parametrize("edits", [1, 2])
def test_an_edit_changes_few_characters(edits):
    seen = {misspelled("red fox", edits, str(seed)) for seed in range(200)}
    assert "red fox" not in seen and len(seen) > 90
    assert all(abs(len(text) - 7) <= edits for text in seen)
    assert misspelled("x", 1, "0") != "x" and misspelled("", 1, "0")


def test_a_partner_is_of_another_class_whatever_the_order():
    labels, keys = np.array([0, 0, 1, 2, 1, 0]), [f"k{i}" for i in range(6)]
    partners = partners_of(labels, keys, 0)
    assert (labels[partners] != labels).all()
    order = np.array([3, 1, 5, 0, 2, 4])
    again = partners_of(labels[order], [keys[i] for i in order], 0)
    assert [order[i] for i in again] == partners[order].tolist()


def test_the_large_image_takes_its_share():
    pair = Pairs(DATA, {0: 1}, 0.75).image(0)
    assert pair.shape == (3, 224, 224)
    means = pair.float().mean(0)
    one, other = (DATA.pixels[i].float() for i in (0, 1))
    np.testing.assert_allclose(means[:168, :168].mean(), one.mean(), atol=1.5)
    np.testing.assert_allclose(means[168:, 168:].mean(), other.mean(), atol=1.5)
    assert (pair[:, :168, 168:] == 255).all()


class Sees(Vectors):
    """Sees the upper left corner only, and reads the first name only."""

    image_size = 224

    def encode_image(self, image, form=""):
        return super().encode_image(image[:, :, 20:140:39, 20:140:39], form)

    def encode_text(self, ids, lengths, form=""):
        return super().encode_text(ids[:, :3], lengths.clamp(max=3), form)


def test_a_model_that_sees_the_large_and_the_first_object_is_found_out():
    clean = Classes(60, noise=1, seed=2)
    results = run(MultiObject(data=clean, templates="{c}"), Sees())
    assert results["large_first"] > 0.85 and results["first_mentioned"] == 1
    assert results["large_top1"] > 0.6 and results["small_top1"] < 0.2
    swapped = run(MultiObject(both="{b} or {a}", data=clean, templates="{c}"), Sees())
    assert swapped["first_mentioned"] == 0
    assert PROTOTYPES.shape[0] == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BackdoorSuccess("yak", data=DATA).prepare(), "target 'yak' is not among the 7"),
        (lambda: BackdoorSuccess("Ant", "hat", data=DATA), "trigger 'hat' is none of patch"),
        (lambda: MisspelledNames(0, data=DATA), "edits is 0"),
        (lambda: MultiObject(large=0.4, data=DATA), "large is 0.4"),
        (lambda: MultiObject(data=DATA, where={"cls": "Ant"}).prepare(), "show one class, 'Ant'"),
        (
            lambda: BackdoorSuccess("Ant", data=DATA, where={"cls": "Ant"}).prepare(),
            "are of the target 'Ant'",
        ),
    ],
)
def test_mistakes_are_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
