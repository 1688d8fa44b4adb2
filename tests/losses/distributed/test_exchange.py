"""Exchanges: who sees which columns in which order, and where gradients go."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.distributed.collectives import equal_rows, row_counts, share, total
from counterpoint.losses.distributed.exchange import (
    AllGather,
    Local,
    NoGradGather,
    NoGradGatherKeepLocal,
    Ring,
)
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.kernels.masks import Different
from counterpoint.losses.kernels.pairing import Pairing
from counterpoint.losses.kernels.reductions import row_sums, softmax_sums, softplus_sums

SPLITS = [[2, 2, 2], [3, 0, 1], [0, 0, 4], [0, 0, 0]]


def visited(rank, world_size, kind, counts):
    """All columns, and this rank's gradient when rank r gives r + 1 to each column's number."""
    first = sum(counts[:rank])
    numbers = torch.arange(first, first + counts[rank])
    joined = kind().open(numbers[:, None].double(), numbers)
    seen = torch.full((joined.total,), -1.0, dtype=torch.float64)
    for where, (values, ids) in joined.blocks():
        assert torch.equal(values.squeeze(1).long(), ids)
        seen[where] = values.squeeze(1)
    for where, _, gradient in joined.blocks_with_grad():
        gradient += (rank + 1.0) * torch.arange(where.start, where.stop)[:, None]
    vector = torch.full((joined.total,), float(rank))
    own = torch.full((counts[rank],), float(rank))
    return seen, joined.gradient().clone(), joined.sum(vector), joined.all_gather(own), joined.first


@pytest.mark.parametrize("counts", SPLITS)
@pytest.mark.parametrize("kind", [AllGather, Ring])
def test_all_columns_come_and_gradients_go_home(gloo, kind, counts):
    for rank, found in enumerate(gloo(3, visited, kind, counts)):
        seen, gradient, added, everyones, first = found
        numbers = torch.arange(first, first + counts[rank])
        assert seen.tolist() == list(range(sum(counts)))
        assert torch.equal(gradient.squeeze(1), 6.0 * numbers)
        assert added.tolist() == [3.0] * sum(counts)
        assert everyones.tolist() == [r for r, n in enumerate(counts) for _ in range(n)]


def test_local_sees_its_own_columns_alone(gloo):
    for rank, (seen, gradient, *_) in enumerate(gloo(2, local_columns)):
        assert seen.tolist() == [rank, rank]
        assert gradient.tolist() == [[1.0], [1.0]]


def local_columns(rank, world_size):
    joined = Local().open(torch.full((2, 1), float(rank)))
    ((_, (seen,)),) = joined.blocks()
    ((_, _, gradient),) = joined.blocks_with_grad()
    gradient += 1
    return seen.squeeze(1), joined.gradient()


def ring_memory(rank, world_size):
    joined = Ring().open(torch.zeros(4, 2))
    return max(values.shape[0] for _, (values,) in joined.blocks())


def test_a_ring_holds_one_ranks_columns_at_a_time(gloo):
    assert gloo(3, ring_memory) == [4, 4, 4]


def totals(rank, world_size):
    x = torch.tensor([1.0 + rank, 2.0], requires_grad=True)
    (total(x).prod() / world_size).backward()
    return x.grad


def test_total_has_the_gradient_of_one_process(gloo):
    # (1 + 2 + 3)(2 + 2 + 2): data-parallel averaging divides by 3 what is three times too large.
    for gradient in gloo(3, totals):
        assert gradient.tolist() == [6.0, 6.0]


def shares(rank, world_size):
    values = torch.arange(float(rank * 2), requires_grad=True)
    value = share(values)
    value.backward()
    weighted = share(torch.tensor([float("nan"), 8.0]), torch.tensor([0.0, 1.0 + rank]))
    return value.item(), values.grad, weighted.item(), share(torch.zeros(0)).item()


def test_shares_average_to_the_mean_of_all_values(gloo):
    results = gloo(3, shares)  # nothing, (0, 1) and (0, 1, 2, 3)
    assert sum(r[0] for r in results) / 3 == pytest.approx(7 / 6)
    for _, gradient, _, empty in results[1:]:
        assert torch.allclose(gradient / 3, torch.tensor(1 / 6))
        assert empty == 0.0
    assert sum(r[2] for r in results) / 3 == pytest.approx(8.0)


def batch(dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    u, v = (F.normalize(torch.randn(8, 5, generator=g, dtype=dtype), dim=1) for _ in range(2))
    return u, v, torch.tensor([9.0], dtype=dtype)


def mode(rank, world_size, kind):
    u, v, s = batch()
    rows = slice(4 * rank, 4 * rank + 4)
    u, v = u[rows].requires_grad_(), v[rows].requires_grad_()
    s = s.requires_grad_()
    (value,) = InfoNCE(exchange=kind())({"image": u, "text": v, "logit_scale": s}, {}).values()
    return value.item(), torch.autograd.grad(value, [u, v, s])


def detached_formula(rank):
    """Local rows against all columns, gathered without gradient, in both directions."""
    u, v, s = batch()
    rows = slice(4 * rank, 4 * rank + 4)
    own_u, own_v = u[rows].clone().requires_grad_(), v[rows].clone().requires_grad_()
    s = s.requires_grad_()
    labels = torch.arange(4) + 4 * rank
    value = (
        F.cross_entropy(s * own_u @ v.T, labels) + F.cross_entropy(s * own_v @ u.T, labels)
    ) / 2
    return value.item(), torch.autograd.grad(value, [own_u, own_v, s])


def test_detached_is_what_was_published(gloo):
    for rank, (value, gradients) in enumerate(gloo(2, mode, NoGradGather)):
        wanted, wanted_gradients = detached_formula(rank)
        assert value == pytest.approx(wanted, rel=1e-12)
        for found, want in zip(gradients[:2], wanted_gradients[:2], strict=True):
            torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-13)


def reinserted_formula(rank):
    """The whole loss on every rank, with gradients for its own rows only."""
    u, v, s = batch()
    rows = slice(4 * rank, 4 * rank + 4)
    own_u, own_v = u[rows].clone().requires_grad_(), v[rows].clone().requires_grad_()
    s = s.requires_grad_()
    all_u, all_v = u.clone(), v.clone()
    all_u[rows], all_v[rows] = own_u, own_v
    logits, labels = s * all_u @ all_v.T, torch.arange(8)
    value = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    return torch.autograd.grad(value, [own_u, own_v, s])


def test_reinserted_is_what_was_published(gloo):
    results = gloo(2, mode, NoGradGatherKeepLocal)
    wanted = [reinserted_formula(rank) for rank in range(2)]
    for (_, gradients), want in zip(results, wanted, strict=True):
        for found, exact in zip(gradients[:2], want[:2], strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-13)
    scale = [sum(g[2] for g in gradients) for gradients in ([r[1] for r in results], wanted)]
    torch.testing.assert_close(*scale, rtol=1e-10, atol=1e-13)


def test_detached_refuses_what_it_cannot_reproduce():
    u, v, s = batch()
    with pytest.raises(ValueError, match="softmax losses only"):
        softplus_sums(u, v, s, s, Pairing(NoGradGather()))
    with pytest.raises(ValueError, match="plain softmax losses only"):
        row_sums(u, v, s, Pairing(NoGradGather()))
    ids = torch.arange(8)
    with pytest.raises(ValueError, match="plain softmax losses only"):
        softmax_sums(u, v, s, Pairing(NoGradGather(), weights=(Different(ids, ids),)))


def known_counts(rank, world_size):
    with equal_rows(2):
        # No rank asks: the other never answers.
        known = row_counts(torch.zeros(4, 3), world_size) if rank == 0 else None
        with equal_rows(None):
            asked = row_counts(torch.zeros(rank, 3), world_size)
        try:
            row_counts(torch.zeros(3, 3), world_size)
        except ValueError as error:
            return known, asked, str(error)


def test_equal_rows_are_not_asked_for(gloo):
    (known, asked, message), (_, others, _) = gloo(2, known_counts)
    assert known == [4, 4] and asked == others == [0, 1]
    assert message.startswith("a term compares 3 rows of a batch of 2 with those of other ranks")
