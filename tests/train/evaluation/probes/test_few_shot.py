"""Few-shot heads against their formulas in float64, settings chosen apart from the test split."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from vector_model import NAMES, Classes, Vectors, features, run, texts

from counterpoint.models.image import ImageTower
from counterpoint.train.evaluation.probes.few_shot import FewShot, Shots
from counterpoint.train.evaluation.probes.gaussian import GaussianDiscriminant, discriminant
from counterpoint.train.evaluation.probes.logit_bias import LogitBias, certainty, standardized
from counterpoint.train.evaluation.probes.tip_adapter import TipAdapter
from counterpoint.train.evaluation.task import order_by_hash

TRAIN, TEST = Classes(140, noise=90, seed=1, name="train"), Classes(99, 90, seed=2, name="test")
HEADS = [GaussianDiscriminant, TipAdapter, LogitBias]


def split(shots, seed=0):
    """Items of the training split that are shots, and those that settings are chosen on."""
    order = order_by_hash([item.get("key") for item in TRAIN.items], seed)
    first, second = [], []
    for label in range(7):
        mine = [i for i in order if TRAIN.labels[i] == label]
        num = min(4, shots)
        second += mine[:num]
        first += mine[num : num + shots]
    return np.sort(first), np.sort(second)


def zero_shot(data):
    return 100 * features(data) @ texts(f"a {name}" for name in NAMES).T


def gaussian(x, y, queries):
    means = np.array([x[y == c].mean(0) for c in range(7)])
    centred = x - means[y]
    covariance = np.cov(centred.T)
    d = x.shape[1]
    inverse = d * np.linalg.inv((len(x) - 1) * covariance + np.trace(covariance) * np.eye(d))
    return queries @ inverse @ means.T - np.einsum("cd,de,ce->c", means, inverse, means) / 2


def choose(grid, score):
    """The setting with the most right answers, then the lowest loss."""
    return max(grid, key=score)


def quality(logits, labels):
    own = logits[np.arange(len(labels)), labels]
    right = (logits >= own[:, None]).sum(1) == 1
    return right.mean(), np.log(softmax(logits, 1)[np.arange(len(labels)), labels]).mean()


def test_gaussian_discriminant_is_its_formula():
    task = GaussianDiscriminant(data=TEST, train=TRAIN, shots=5, templates="a {c}")
    results = run(task)
    first, second = split(5)
    x, y, labels = features(TRAIN), TRAIN.labels, TRAIN.labels[second]

    def logits(alpha, data, items):
        return zero_shot(data)[items] + alpha * gaussian(x[first], y[first], features(data)[items])

    alpha = choose(
        [10.0**k for k in range(-4, 3)], lambda a: quality(logits(a, TRAIN, second), labels)
    )
    everything = np.arange(len(TEST))
    expected, _ = quality(logits(alpha, TEST, everything), TEST.labels)
    assert results["top1"] == pytest.approx(expected)
    assert results["zero_shot_top1"] == pytest.approx(quality(zero_shot(TEST), TEST.labels)[0])
    assert results["top1"] != results["zero_shot_top1"]


def test_scores_of_few_shots_are_those_of_the_shrunk_covariance():
    first, second = split(5)
    x, y = features(TRAIN), TRAIN.labels
    weight, bias = discriminant(torch.from_numpy(x[first]), torch.from_numpy(y[first]), 7)
    expected = gaussian(x[first], y[first], x[second])
    np.testing.assert_allclose(x[second] @ weight.numpy() + bias.numpy(), expected, rtol=1e-8)


def test_without_shrinkage_the_discriminant_is_sklearns():
    """With many images the shrinkage vanishes, and what is left is classical LDA."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 20_000)
    x = rng.normal(size=(60_000, 3)) @ np.diag([1, 2, 0.5]) + np.eye(3)[y]
    weight, bias = discriminant(torch.from_numpy(x), torch.from_numpy(y), 3)
    reference = LinearDiscriminantAnalysis("lsqr", priors=[1 / 3] * 3).fit(x, y)
    # Ours is (d / (N - 1)) times the precision matrix: scores differ by that factor.
    scores = (x @ weight.numpy() + bias.numpy()) * (len(x) - 1) / 3
    expected = reference.decision_function(x)
    np.testing.assert_allclose(scores - scores.mean(1, keepdims=True),
        expected - expected.mean(1, keepdims=True), rtol=2e-3, atol=2e-3)  # fmt: skip


def test_tip_adapter_is_its_formula():
    results = run(TipAdapter(data=TEST, train=TRAIN, shots=5, templates="a {c}"))
    first, second = split(5)
    x, one_hot, labels = features(TRAIN), np.eye(7)[TRAIN.labels], TRAIN.labels[second]

    def logits(setting, data, items):
        alpha, beta = setting
        affinities = np.exp(-beta * (1 - features(data)[items] @ x[first].T))
        return zero_shot(data)[items] + alpha * affinities @ one_hot[first]

    grid = [(a, b) for a in np.linspace(0.1, 3, 20) for b in np.linspace(0.1, 7, 20)]
    setting = choose(grid, lambda s: quality(logits(s, TRAIN, second), labels))
    expected, _ = quality(logits(setting, TEST, np.arange(len(TEST))), TEST.labels)
    assert results["top1"] == pytest.approx(expected)
    assert results["top1"] > results["zero_shot_top1"]


def test_votes_of_the_cache_fall_with_distance():
    first, second = split(5)
    x, one_hot = features(TRAIN), np.eye(7)[TRAIN.labels]
    shots, queries = (
        Shots(
            torch.from_numpy(x[items]).float(), torch.empty(0), torch.from_numpy(y), torch.empty(0)
        )
        for items, y in ((first, TRAIN.labels[first]), (second, TRAIN.labels[second]))
    )
    task = TipAdapter(data=TEST, train=TRAIN)
    found = task.bias(task.fit(shots, 7), queries, (1.5, 4.0))
    expected = 1.5 * np.exp(-4.0 * (1 - x[second] @ x[first].T)) @ one_hot[first]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


class Tower(ImageTower):
    """Pixels, halved: auxiliary features that are not the model's."""

    def __init__(self):
        super().__init__()
        self.image_size, self.width = 4, 48
        self.num_loads = 0

    def forward(self, image, keep=None):
        return image.flatten(1).float() / 2 - 60

    def load_pretrained(self):
        self.num_loads += 1
        return "halved"


def standard(logits):
    return (logits - logits.mean(1, keepdims=True)) / logits.std(1, ddof=1, keepdims=True)


@pytest.mark.parametrize("own", [True, False])
def test_the_logit_bias_before_training_is_its_formula(own):
    tower = None if own else Tower()
    task = LogitBias(tower, steps=0, data=TEST, train=TRAIN, shots=5, templates="a {c}")
    results = run(task)
    first, second = split(5)
    y = TRAIN.labels

    def auxiliary(data):
        pixels = data.pixels.numpy().reshape(len(data), -1) / 2.0 - 60
        rows = features(data, ".pooled") if own else pixels
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    means = np.array([auxiliary(TRAIN)[first][y[first] == c].mean(0) for c in range(7)])

    def logits(alpha, data, items):
        s = zero_shot(data)[items]
        kappa = ((standard(softmax(s, 1)) ** 4).mean(1, keepdims=True) / 250) ** -0.4
        return s + alpha * kappa * standard(auxiliary(data)[items] @ means.T)

    alpha = choose(
        [0.1, 0.2, 0.5, 1, 2, 5, 10], lambda a: quality(logits(a, TRAIN, second), y[second])
    )
    expected, _ = quality(logits(alpha, TEST, np.arange(len(TEST))), TEST.labels)
    assert results["top1"] == pytest.approx(expected)
    assert own or tower.num_loads == 1


def test_training_the_logit_bias_lowers_its_loss():
    first, _ = split(5)
    x = torch.from_numpy(features(TRAIN, ".pooled")[first]).float()
    logits = torch.from_numpy(zero_shot(TRAIN)[first]).float()
    targets = torch.from_numpy(TRAIN.labels[first])
    shots = Shots(x, logits, targets, torch.nn.functional.normalize(x, dim=1))

    def loss(steps):
        task = LogitBias(steps=steps, learning_rate=0.01, data=TEST, train=TRAIN)
        with torch.no_grad():
            bias = task.bias(task.fit(shots, 7), shots, (1.0,))
        return float(torch.nn.functional.cross_entropy(logits + bias, targets))

    assert loss(100) < 0.9 * loss(0)


def test_logits_are_standardized_as_torch_does_it():
    rows = np.random.default_rng(0).normal(size=(4, 5))
    np.testing.assert_allclose(standardized(torch.from_numpy(rows)), standard(rows), rtol=1e-12)
    expected = ((standard(softmax(rows, 1)) ** 4).mean(1, keepdims=True) / 250) ** -0.4
    np.testing.assert_allclose(certainty(torch.from_numpy(rows)), expected, rtol=1e-12)


def test_a_sure_image_listens_less():
    sure, unsure = certainty(torch.tensor([[50.0, 0, 0, 0, 0], [1.0, 0.5, 0, 0.2, 0.9]]))
    assert sure < unsure


@pytest.mark.parametrize("head", HEADS)
def test_the_test_split_decides_nothing(head):
    """Settings and head stay the same when the test split is another one."""
    task = head(data=TEST, train=TRAIN, shots=3, templates="a {c}", where={"cls": NAMES})
    other = head(data=TEST, train=TRAIN, shots=3, templates="a {c}", where={"cls": NAMES[:6]},
                 classes=NAMES)  # fmt: skip
    heads = []
    for each in (task, other):
        assert isinstance(each, FewShot)
        each.measure, measure = None, each.measure

        def keep(encoder, chosen, each=each, measure=measure):
            values = measure(encoder, chosen)
            heads.append(each._head)
            return values

        each.measure = keep
        run(each)
    assert heads[0][1] == heads[1][1]


def test_all_images_but_a_fifth_are_shots_unless_a_number_is_given():
    task = GaussianDiscriminant(data=TEST, train=TRAIN, shots=None, templates="a {c}")
    task.prepare()
    shots, validation = task._parts
    assert not set(shots) & set(validation) and len(shots) + len(validation) == len(TRAIN)
    counts = np.bincount(TRAIN.labels[validation]), np.bincount(TRAIN.labels)
    assert (counts[0] == counts[1] // 5).all()
    lonely = Classes(7, name="lonely")
    with pytest.raises(ValueError, match="1 images of the class 'Ant', and two are needed"):
        GaussianDiscriminant(data=TEST, train=lonely).prepare()
    with pytest.raises(ValueError, match="shots is 0"):
        TipAdapter(data=TEST, train=TRAIN, shots=0)


def test_only_drawn_images_are_encoded():
    task = TipAdapter(data=TEST, train=TRAIN, shots=2, templates="a {c}")
    task.prepare()
    sets = task.image_sets()
    assert len(sets[TRAIN]) == 7 * (2 + 2) and len(sets[TEST]) == len(TEST)
    assert isinstance(Vectors(), torch.nn.Module)
