"""Evaluation: metrics against brute force, equality over world sizes, no trace in the training."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from toy_evaluation import (
    CLASSES,
    Toy,
    ToyImages,
    features,
    run,
    tokenizer,
    toy_suite,
    transform,
    unit,
)

import counterpoint.configs
from counterpoint.losses.components.similarity import Distance
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.train.callbacks.evaluation import screen_line
from counterpoint.train.evaluation.encode import ByteCache, Encoder
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.ranks import ranks, recall_at
from counterpoint.train.evaluation.suite import Suite
from counterpoint.train.evaluation.zero_shot.classification import ZeroShot

SUITES = sorted((Path(counterpoint.configs.__path__[0]) / "suite").glob("*.yaml"))


def brute_recall(scores, positives, k):
    """A query hits when fewer than k wrong candidates reach its best right one."""
    hits = []
    for row, right in zip(scores.tolist(), positives, strict=True):
        best = max(row[j] for j in right)
        hits.append(sum(s >= best for j, s in enumerate(row) if j not in right) < k)
    return sum(hits) / len(hits)


def test_zero_shot_equals_sklearn():
    suite, model = toy_suite(), Toy()
    results = run(suite, model, batch_size=5)
    data = suite.tasks["all"].data
    image, text = features(model, data)
    prompts = ["{c}", "a {c}", "the {c}!"]
    weights = torch.stack([unit(text([p.format(c=c) for p in prompts]).mean(0)) for c in CLASSES])
    scores = (image @ weights.T).numpy()
    truth = [CLASSES.index(name) for name in data.classes]
    labels = list(range(len(CLASSES)))
    for k in (1, 5):
        expected = top_k_accuracy_score(truth, scores, k=k, labels=labels)
        assert results[f"toy/all/top{k}"] == pytest.approx(expected)
    assert results["toy/all/mean_per_class_recall"] == pytest.approx(
        balanced_accuracy_score(truth, scores.argmax(1))
    )
    assert 0 < results["toy/all/top1"] < results["toy/all/top5"] < 1


def test_a_class_is_the_normalised_mean_of_its_own_prompts():
    data, model = ToyImages(60), Toy()
    prompts = {name: [f"{name}{j * k}" for j in range(1, k + 2)] for k, name in enumerate(CLASSES)}
    results = run(Suite("s", {"t": ZeroShot(data, classes=CLASSES, templates=prompts)}), model)
    image, text = features(model, data)
    means = torch.stack([text(prompts[name]).mean(0) for name in CLASSES])
    truth = torch.tensor([CLASSES.index(name) for name in data.classes])
    accuracy = [((image @ w.T).argmax(1) == truth).double().mean() for w in (unit(means), means)]
    assert results["s/t/top1"] == pytest.approx(accuracy[0])
    assert accuracy[0] != accuracy[1]  # else the test would not notice a missing normalisation


def test_groups_are_measured_apart_and_averaged():
    suite, model = toy_suite(), Toy()
    results = run(suite, model)
    data = suite.tasks["style"].data
    image, text = features(model, data)
    right = (image @ text(CLASSES).T).argmax(1).numpy() == [CLASSES.index(c) for c in data.classes]
    even, odd = right[::2].mean(), right[1::2].mean()
    assert results["toy/style_a/top1"] == pytest.approx(even)
    assert results["toy/style_b/top1"] == pytest.approx(odd)
    assert results["toy/style/top1"] == pytest.approx((even + odd) / 2)
    assert even != odd


def test_retrieval_equals_brute_force():
    suite, model = toy_suite(), Toy()
    results = run(suite, model, batch_size=4)
    data = suite.tasks["pairs"].data
    image, text = features(model, data)
    texts = sorted({c for item in data.items for c in item.fields["captions"]})
    assert len(texts) == 12 + 23  # equal captions are one text
    of_image = [{texts.index(c) for c in item.fields["captions"]} for item in data.items]
    of_text = [{i for i, found in enumerate(of_image) if j in found} for j in range(len(texts))]
    scores = image @ text(texts).T
    for k in (1, 5, 10):
        expected = brute_recall(scores, of_image, k)
        assert results[f"toy/pairs/image_to_text_recall@{k}"] == pytest.approx(expected)
        expected = brute_recall(scores.T, of_text, k)
        assert results[f"toy/pairs/text_to_image_recall@{k}"] == pytest.approx(expected)
    assert {name for name in results if "/half/" in name} == {
        "toy/half/image_to_text_recall@2",
        "toy/half/text_to_image_recall@2",
    }


class Raw(Toy):
    """Features of different lengths, so that the nearest is not the one of the smallest angle."""

    def encode_image(self, image, form):
        assert form == ".raw"
        return self.image(image.flatten(1).float() / 255 - 0.5)

    def encode_text(self, ids, lengths, form):
        assert form == ".raw"
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return (self.text(ids) * mask[..., None]).sum(1)


def test_the_nearest_is_found_by_the_objectives_own_distance():
    suite, model = toy_suite(60), Raw()
    metric = Objective({"near": InfoNCE(Distance())}).metric()
    results = run(suite, model, metric=metric, batch_size=7)
    data = suite.tasks["all"].data
    with torch.no_grad():
        image = model.encode_image(data.pixels, ".raw").double()

        def text(texts):
            return model.encode_text(*tokenizer(texts, model.context_length), ".raw").double()

        prompts = [[p.format(c=c) for p in ("{c}", "a {c}", "the {c}!")] for c in CLASSES]
        classes = torch.stack([text(names).mean(0) for names in prompts])
        truth = torch.tensor([CLASSES.index(name) for name in data.classes])
        texts = sorted({c for item in data.items for c in item.fields["captions"]})
        of_image = [{texts.index(c) for c in item.fields["captions"]} for item in data.items]
        distances = torch.cdist(image, text(texts))
    right = torch.cdist(image, classes).argmin(1) == truth
    assert results["toy/all/top1"] == pytest.approx(right.double().mean())
    assert results["toy/pairs/image_to_text_recall@10"] == pytest.approx(
        brute_recall(-distances, of_image, 10)
    )
    cosine = (unit(image) @ unit(classes).T).argmax(1) == truth
    assert cosine.sum() != right.sum()  # else the test would not notice the wrong measure


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_ranks_equal_brute_force_with_ties(data):
    integers = st.integers(-2, 2)  # small integers tie often and are exact in float32
    num, others = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    row = st.lists(integers, min_size=2, max_size=2)
    queries = torch.tensor(data.draw(st.lists(row, min_size=num, max_size=num))).float()
    candidates = torch.tensor(data.draw(st.lists(row, min_size=others, max_size=others))).float()
    right = st.sets(st.integers(0, others - 1), min_size=1)
    positives = data.draw(st.lists(right, min_size=num, max_size=num))
    found = ranks(queries, candidates, [sorted(p) for p in positives], data.draw(integers) + 3)
    for k in range(1, others + 1):
        expected = brute_recall(queries @ candidates.T, positives, k)
        assert recall_at(found, k) == pytest.approx(expected)


def test_a_collapsed_or_diverged_model_scores_nothing():
    candidates = torch.ones(9, 4)
    for query in (torch.ones(3, 4), torch.full((3, 4), torch.nan)):
        assert ranks(query, candidates, [[0], [4], [8]]).tolist() == [8, 8, 8]
    candidates[2] = torch.nan  # one broken candidate is never right, and counts against all others
    assert ranks(torch.ones(2, 4), candidates, [[2], [3]]).tolist() == [8, 8]


def distributed(rank, world_size, batch_size, num):
    model = Toy()
    results = run(toy_suite(num), model, batch_size=batch_size)
    return results, [kind for kind, _ in model.calls]


@pytest.mark.parametrize(("batch_size", "num"), [(4, 23), (64, 23), (5, 7)])
def test_any_number_of_processes_gives_the_same_values(gloo, batch_size, num):
    [(expected, _)] = gloo(1, distributed, batch_size, num)
    for world_size in (2, 3):
        answers = gloo(world_size, distributed, batch_size, num)
        assert [results for results, _ in answers] == [expected] * world_size
        # Sharded strategies hang unless every rank makes the same calls in the same order.
        assert all(calls == answers[0][1] for _, calls in answers)


def encoded(rank, world_size, num):
    data = ToyImages(num)
    encoder = Encoder(
        Toy().eval(), tokenizer, transform, torch.device("cpu"), batch_size=4, rank=rank,
        world_size=world_size,
    )  # fmt: skip
    with torch.no_grad():
        return encoder.images(data, range(num)), encoder.texts([f"t{i}" for i in range(num)])


@pytest.mark.parametrize("num", [3, 9])
def test_features_are_the_same_bits(gloo, num):
    [expected] = gloo(1, encoded, num)
    for answer in gloo(3, encoded, num):
        assert all(torch.equal(a, b) for a, b in zip(answer, expected, strict=True))


def failing(rank, world_size, kind):
    try:
        if kind == "data differ":
            run(toy_suite(10 + rank))
        elif kind == "missing on one":
            suite = toy_suite(10)
            if rank == 1:
                suite.tasks["all"].where = {"style": "c"}
            run(suite)
        else:
            run(toy_suite(9, broken=(7,)), batch_size=2)
    except ValueError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("data differ", "see different data"),
        ("missing on one", "task 'all' of suite 'toy': .* no image where style is c"),
        ("broken image", r"1 of 9 images of .* cannot be read, such as k7 \(disk on fire\)"),
    ],
)
def test_an_error_of_one_rank_stops_all(gloo, kind, message):
    answers = gloo(2, failing, kind)
    assert len(set(answers)) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(answers[0])


def test_training_goes_on_as_if_nothing_had_been():
    suite, model = toy_suite(), Toy().train()
    model.frozen.eval()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(4), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(3), random.seed(3), np.random.seed(3)  # noqa: NPY002
    run(suite, model)
    assert torch.equal(torch.rand(4), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002
    assert model.training and model.dropout.training and not model.frozen.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    with pytest.raises(ValueError, match="cannot be read"):
        run(toy_suite(broken=(2,)), model)
    assert model.training and model.dropout.training and not model.frozen.training


def test_images_are_encoded_once_and_decoded_once():
    suite, model = toy_suite(num=23), Toy()
    data = suite.tasks["all"].data
    first = run(suite, model, batch_size=10)
    assert [call for call in model.calls if call[0] == "image"] == [
        ("image", 10),
        ("image", 10),
        ("image", 3),
    ]
    assert data.loads == 23
    assert run(suite, model, batch_size=10) == first
    assert data.loads == 23
    evaluate(model, suite, tokenizer, lambda *args: transform(*args), batch_size=10)
    assert data.loads == 46  # another transform: nothing kept may be used


def test_only_items_that_a_task_needs_are_decoded():
    suite = toy_suite(num=20)
    suite.tasks = {"half": suite.tasks["half"]}
    run(suite)
    assert suite.tasks["half"].data.loads == 10


def test_the_cache_is_bounded():
    cache = ByteCache(max_bytes=10)
    cache.enter(0)
    cache.put("a", (torch.zeros(6, dtype=torch.uint8),))
    cache.put("b", (torch.zeros(6, dtype=torch.uint8),))
    assert cache.get("a") is not None and cache.get("b") is None and cache.num_bytes == 6
    cache.enter(0)
    assert cache.get("a") is not None
    cache.enter(1)
    assert cache.get("a") is None and cache.num_bytes == 0


def test_labels_may_be_positions_and_classes_files(tmp_path):
    data = ToyImages(12)
    by_name = ZeroShot(data, classes=CLASSES, templates="{c}")
    expected = run(Suite("s", {"t": by_name}))
    (tmp_path / "names.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "templates.txt").write_text("{c}\n")
    numbers = ToyImages(12)
    numbers.root = tmp_path
    numbers.classes = [name[1:] for name in data.classes]
    mapping = {str(i): name for i, name in enumerate(CLASSES)}
    for classes in (CLASSES, mapping, "names.txt"):
        task = ZeroShot(numbers, classes=classes, templates="templates.txt")
        assert run(Suite("s", {"t": task})) == expected
    own = {name: [name] for name in CLASSES}
    assert run(Suite("s", {"t": ZeroShot(data, classes=CLASSES, templates=own)})) == expected


def test_a_mistake_in_a_task_is_one_sentence():
    data = ToyImages(8)
    for arguments, message in [
        ({"classes": ["c0"]}, "labels 'cls' of .* are not among the 1 classes, such as"),
        ({"templates": "a photo"}, "`templates`: there is no file"),
        ({"templates": ["a photo"]}, r"`templates` needs \{c\} where the class name goes"),
        ({"classes": [*CLASSES, "c1"]}, "the class 'c1' is listed twice"),
        ({"templates": {"c0": ["x"]}}, "`templates` has no prompts for the class"),
        ({"label": "colour"}, "has no field 'colour'"),
        ({"by": "colour"}, "has no field 'colour'"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(Suite("s", {"t": ZeroShot(data, **arguments)}))
    with pytest.raises(ValueError, match="batch_size"):
        run(toy_suite(), batch_size=0)


def test_the_screen_shows_what_a_task_of_ones_own_measures():
    values = {"s/names/top1": 0.5, "s/names/top5": 0.75, "s/own/text_to_image_map": 0.25}
    assert screen_line(values) == "s/names/top1 50.0%  s/own/text_to_image_map 25.0%"
