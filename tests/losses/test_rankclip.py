"""List-wise losses: ties, large logits, memory, what is refused."""

import itertools
import math

import pytest
import torch
from memory_use import kept_bytes, largest_tensor
from torch.nn import functional as F

from counterpoint.losses.distributed.exchange import NoGradGather
from counterpoint.losses.kernels.list_mle import Side, listwise_losses
from counterpoint.losses.kernels.pairing import Pairing
from counterpoint.losses.rankclip import CrossModalRanking, InModalRanking

ONE = torch.ones(1, dtype=torch.float64)


def losses(first, second, **choices):
    """Of one row against columns whose products with it are the given numbers."""
    row = torch.zeros(len(first), 1, dtype=torch.float64)
    row[0] = 1.0
    sides = (Side(row, torch.tensor(x, dtype=torch.float64).view(-1, 1)) for x in (first, second))
    return listwise_losses(*sides, ONE, Pairing(**choices))[0].item()


def likelihood(scores, order):
    """Of drawing the columns in this order, each with a chance of exp(score) among what is left."""
    chance, left = 1.0, list(range(len(scores)))
    for column in order:
        chance *= math.exp(scores[column]) / sum(math.exp(scores[c]) for c in left)
        left.remove(column)
    return chance


def test_the_likelihoods_of_all_orders_add_up():
    scores = [0.3, -1.2, 2.0]
    total = 0.0
    for order in itertools.permutations(range(3)):
        truth = [float(-order.index(column)) for column in range(3)]
        both = losses(scores, truth) * 3
        backwards = sorted(range(3), key=lambda c: -scores[c])
        total += math.exp(-both) / likelihood(truth, backwards)
    assert total == pytest.approx(1.0)


def test_columns_that_are_equal_keep_their_order():
    scores, truth = [0.3, -1.2, 2.0, 0.1], [1.0, 5.0, 1.0, 1.0]
    wanted = -math.log(likelihood(scores, [1, 0, 2, 3])) / 4
    wanted -= math.log(likelihood(truth, [2, 0, 3, 1])) / 4
    assert losses(scores, truth) == pytest.approx(wanted)
    assert losses(scores, truth, tile_bytes=1) == pytest.approx(wanted)


def tied(rank, world_size):
    """Every text occurs three times; ranks have unequal parts."""
    g = torch.Generator().manual_seed(0)
    image = torch.randint(-3, 4, (12, 4), generator=g).double()
    text = torch.randint(-3, 4, (4, 4), generator=g).double().repeat(3, 1)
    cuts = {1: [0, 12], 3: [0, 5, 6, 12]}[world_size]
    rows = slice(cuts[rank], cuts[rank + 1])
    features = {"image": image[rows], "text": text[rows], "logit_scale": ONE * 0.25}
    return [term.per_sample(features, {}) for term in (CrossModalRanking(), InModalRanking())]


def test_ties_do_not_depend_on_the_number_of_ranks(gloo):
    alone = tied(0, 1)
    ranks = gloo(3, tied)
    for k, want in enumerate(alone):
        torch.testing.assert_close(torch.cat([rank[k] for rank in ranks]), want)


@pytest.mark.parametrize("kind", [CrossModalRanking, InModalRanking])
def test_large_logits_in_float32(kind):
    g = torch.Generator().manual_seed(0)
    values = [F.normalize(torch.randn(64, 8, generator=g).double(), dim=1) for _ in range(2)]

    def found(dtype):
        image, text = (t.to(dtype).requires_grad_() for t in values)
        scale = torch.tensor([100.0], dtype=dtype)
        features = {"image": image, "text": text, "logit_scale": scale}
        with torch.autocast("cpu", torch.bfloat16):
            (value,) = kind()(features, {}).values()
        return value.detach().double(), *torch.autograd.grad(value, [image, text])

    for got, want in zip(found(torch.float32), found(torch.float64), strict=True):
        atol = 1e-5 * float(want.abs().max())
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=atol)


def test_memory_grows_with_the_batch_not_its_square():
    def loss(size):
        x, y = (torch.randn(size, 6).requires_grad_() for _ in range(2))
        pairing = Pairing(tile_bytes=4 * 64 * 1024)
        return lambda: listwise_losses(Side(x, y), Side(y, x), torch.ones(1), pairing).sum()

    small, large = kept_bytes(loss(256)), kept_bytes(loss(1024))
    assert large / small == pytest.approx(4, rel=0.1)
    assert large <= 1024 * 6 * 4 * 8
    assert largest_tensor(loss(1024)) <= 64 * 1024


def test_an_exchange_without_gradients_of_columns_is_refused():
    side = Side(torch.eye(3), torch.eye(3))
    with pytest.raises(ValueError, match="use AllGather with list-wise"):
        listwise_losses(side, side, torch.ones(1), Pairing(NoGradGather()))
