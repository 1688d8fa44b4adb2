"""The batch's weights: every term is the weighted mean of its samples' losses, on any ranks."""

import pytest
import torch
from term_case import all_cases, pairs, unit

from counterpoint.losses.base import SampleTerm, Term
from counterpoint.losses.distillation.soft_contrastive import SoftContrastive
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.siglip import SigLIP

ROWS = 9
SPLITS = {1: [[9]], 2: [[5, 4], [9, 0]], 4: [[3, 2, 2, 2], [4, 0, 5, 0]]}
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.25, 0.125, 1.5, 0.75, 1.0])
CASES = all_cases()


def softmax_pairs(u, v, scale):
    """The mean of both directions of each pair."""
    logits = scale * u @ v.T
    own = logits.diagonal()
    return ((logits.logsumexp(1) - own) + (logits.logsumexp(0) - own)) / 2


def sigmoid_pairs(u, v, scale, bias):
    signs = 2 * torch.eye(len(u), dtype=u.dtype) - 1
    return -torch.log(torch.sigmoid(signs * (scale * u @ v.T + bias))).sum(0)


def soft_pairs(u, v, scale, their_u, their_v):
    logits, theirs = scale * u @ v.T, 8.0 * their_u @ their_v.T
    rows = -(theirs.softmax(1) * logits.log_softmax(1)).sum(1)
    columns = -(theirs.softmax(0) * logits.log_softmax(0)).sum(0)
    return (rows + columns) / 2


REFERENCES = {
    "infonce": (InfoNCE, lambda f: softmax_pairs(f["image"], f["text"], f["logit_scale"])),
    "siglip": (
        SigLIP,
        lambda f: sigmoid_pairs(f["image"], f["text"], f["logit_scale"], f["logit_bias"]),
    ),
    "soft_contrastive": (
        lambda: SoftContrastive(["teacher"], [8.0]),
        lambda f: soft_pairs(
            f["image"], f["text"], f["logit_scale"], f["teacher.image"], f["teacher.text"]
        ),
    ),
}


def features_of(rows=slice(None)):
    generator = torch.Generator().manual_seed(3)
    features, _ = pairs(generator, ROWS)
    features["logit_bias"] = torch.tensor([-2.0], dtype=torch.float64)
    features |= {f"teacher.{side}": unit(generator, ROWS, 5) for side in ("image", "text")}
    rows_of = {k: t[rows] if len(t) == ROWS else t for k, t in features.items()}
    return {k: t.clone().requires_grad_("teacher" not in k) for k, t in rows_of.items()}


def gradients(value, features):
    leaves = {k: t for k, t in features.items() if t.requires_grad}
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        k: torch.zeros_like(t) if g is None else g
        for (k, t), g in zip(leaves.items(), found, strict=True)
    }


def of_rank(rank, world_size, name, splits):
    first = sum(splits[:rank])
    rows = slice(first, first + splits[rank])
    features = features_of(rows)
    (value,) = REFERENCES[name][0]()(features, {"weight": WEIGHTS[rows]}).values()
    return value.item(), gradients(value, features)


@pytest.mark.parametrize("world_size", SPLITS)
@pytest.mark.parametrize("name", REFERENCES)
def test_value_and_gradients_are_those_of_one_process(gloo, name, world_size):
    features = features_of()
    weights = WEIGHTS.double()
    losses = REFERENCES[name][1](features)
    wanted = (weights * losses).sum() / weights.sum()
    assert abs(float((losses.mean() - wanted).detach())) > 0.01, "weights matter here"
    expected = gradients(wanted, features)
    for splits in SPLITS[world_size]:
        ranks = gloo(world_size, of_rank, name, splits)
        value = sum(value for value, _ in ranks) / world_size
        assert value == pytest.approx(float(wanted.detach()), rel=1e-12)
        for leaf, gradient in expected.items():
            parts = [found[leaf] for _, found in ranks]
            joined = torch.cat(parts) if len(gradient) == ROWS else torch.stack(parts).sum(0)
            torch.testing.assert_close(joined / world_size, gradient, rtol=1e-10, atol=1e-12)


def value_of(name, weights, rows=slice(None)):
    """The sum of a term's values, for some rows of the global batch."""
    case = CASES[name]
    torch.manual_seed(11)
    term = case.make().double()
    features, batch = inputs_of(name)
    cut = [{k: t[rows] if len(t) == ROWS else t for k, t in x.items()} for x in (features, batch)]
    if weights is not None:
        cut[1]["weight"] = weights[rows]
    leaves = leaves_of(cut[0])
    value = sum(term(leaves, cut[1]).values())
    learned = [t for t in leaves.values() if t.requires_grad]
    found = torch.autograd.grad(value, learned, allow_unused=True)
    return value.detach(), [torch.zeros(()) if g is None else g for g in found]


def inputs_of(name):
    """A case's inputs, without weights of its own."""
    features, batch = CASES[name].inputs(torch.Generator().manual_seed(5), ROWS)
    return features, {entry: rows for entry, rows in batch.items() if entry != "weight"}


def leaves_of(features):
    return {k: t.clone().requires_grad_(t.is_floating_point()) for k, t in features.items()}


def values_of_rank(rank, world_size, splits, weights):
    first = sum(splits[:rank])
    return {n: value_of(n, weights, slice(first, first + splits[rank]))[0] for n in CASES}


def counted(name) -> torch.Tensor:
    """Which samples have what the term reads: the mean is over these."""
    _, batch = CASES[name].inputs(torch.Generator().manual_seed(5), ROWS)
    file, _, variant = name.partition("/")
    if file == "clusters" and "clusters.id" in batch:
        return (batch["clusters.id"].view(-1) >= 0).double()
    if file == "present":
        return batch["teacher.present"].double()
    if file == "regression" and variant in ("squared", "none_valid", "map", "map_cosine"):
        return batch["present"].double()
    return torch.ones(ROWS, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_every_term_is_the_weighted_mean_of_its_samples(name):
    """By the formula of the whole: the losses of single samples are those of all weight on one."""
    case = CASES[name]
    term = case.make()
    assert term.reads_weight
    features, batch = inputs_of(name)
    single = torch.stack([value_of(name, row)[0] for row in torch.eye(ROWS, dtype=torch.float64)])
    present = counted(name)
    if name.startswith("inmodal/") and "text.augmented.present" in batch:
        return  # test_in_modal_pairs_weigh_those_present
    if name.startswith("captioning/locca"):
        return  # a mean for each task: its cases have weights
    torch.manual_seed(11)
    leaves = leaves_of(features)
    formula = case.formula(leaves, batch, case.make().double())
    total = present.sum().clamp_min(1)
    assert float((present * single).sum() / total) == pytest.approx(
        float(formula.detach()), abs=1e-9
    )
    weights = WEIGHTS.double() * present
    wanted = (weights * single).sum() / weights.sum().clamp_min(1e-300)
    assert float(value_of(name, WEIGHTS)[0]) == pytest.approx(float(wanted), abs=1e-9)


@pytest.mark.parametrize("splits", [[4, 5], [9, 0]])
def test_every_term_on_two_ranks(gloo, splits):
    ranks = gloo(2, values_of_rank, splits, WEIGHTS)
    for name in CASES:
        found = float(sum(values[name] for values in ranks) / 2)
        assert found == pytest.approx(float(value_of(name, WEIGHTS)[0]), abs=1e-9), name


@pytest.mark.parametrize("name", CASES)
def test_weights_of_1_change_no_bit(name):
    value, grads = value_of(name, None)
    same, same_grads = value_of(name, torch.ones(ROWS))
    assert torch.equal(value, same)
    for one, other in zip(grads, same_grads, strict=True):
        # CyCLIP adds the same products up in another order.
        close = torch.allclose(one, other, rtol=1e-12, atol=1e-14)
        assert close if name.startswith("cyclip/") else torch.equal(one, other)


def test_in_modal_pairs_weigh_those_present():
    """Each pair of views has a mean of its own, over the samples that have both."""
    (name,) = [n for n in CASES if n.startswith("inmodal/") and "present" in str(batch_of(n))]
    features, batch = CASES[name].inputs(torch.Generator().manual_seed(5), ROWS)
    weights = WEIGHTS.double()

    def one_sided(anchors, augmented, kept):
        logits = features["logit_scale"] * anchors[kept] @ augmented[kept].T
        losses = logits.logsumexp(1) - logits.diagonal()
        return (weights[kept] * losses).sum() / weights[kept].sum()

    every = torch.ones(ROWS, dtype=torch.bool)
    sides = [
        one_sided(features["image"], features["image.strong_1"], every),
        one_sided(features["text"], features["text.augmented"], batch["text.augmented.present"]),
    ]
    assert float(value_of(name, WEIGHTS)[0]) == pytest.approx(float(sum(sides) / 2), rel=1e-10)


def batch_of(name):
    return list(CASES[name].inputs(torch.Generator().manual_seed(5), ROWS)[1])


def test_weights_of_0_have_no_loss():
    for name in CASES:
        assert value_of(name, torch.zeros(ROWS))[0] == 0, name


class Own(SampleTerm):
    """A `forward` of its own, which forgets the weights."""

    name = "own"

    def forward(self, features, batch):
        return {"own": self.per_sample(features, batch).mean()}

    def per_sample(self, features, batch):
        return features["image"].sum(1)


class Plain(Term):
    def forward(self, features, batch):
        return {"plain": features["image"].sum()}


@pytest.mark.parametrize("term", [Own(), Plain()])
def test_terms_that_do_not_read_weights_are_refused_by_name(term):
    Objective({"infonce": InfoNCE()}).check_reads_weight([""])
    with pytest.raises(ValueError, match=f"objective.terms.mine is a {type(term).__name__}, which"):
        Objective({"infonce": InfoNCE(), "mine": term}).check_reads_weight([""])


def test_curvature_of_weighted_samples():
    """The mean of squared gradients is the Gauss-Newton diagonal of the weighted loss."""
    logits = features_of()
    weights, scale = WEIGHTS.double(), logits["logit_scale"]

    def similarities(u):
        return scale * u @ logits["text"].T

    u = logits["image"]
    # d2 of log-sum-exp by u: s^2 (sum p v v' - (sum p v)(sum p v)'), rows and columns.
    wanted = torch.zeros_like(u)
    s, v = float(scale), logits["text"].detach()
    rows = similarities(u).softmax(1).detach()
    columns = similarities(u).softmax(0).detach()
    for i in range(ROWS):
        mean = rows[i] @ v
        wanted[i] += weights[i] / 2 * s**2 * (rows[i] @ v.square() - mean.square())
        for j in range(ROWS):
            p = columns[i, j]
            wanted[i] += weights[j] / 2 * s**2 * v[j].square() * p * (1 - p)
    wanted = wanted / weights.sum()
    squares = torch.zeros_like(u)
    batch = {"key": torch.arange(ROWS) * 7919 + 13, "weight": WEIGHTS}
    num = 600
    for seed in range(num):
        value = InfoNCE().sampled(logits, batch, seed)
        squares += torch.autograd.grad(value, u)[0].square() / num
    torch.testing.assert_close(squares, wanted.detach(), rtol=0.3, atol=float(wanted.max()) * 0.05)
