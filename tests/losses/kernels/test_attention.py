"""Retrieval from the global batch, against torch's attention."""

import pytest
import torch
from memory_use import kept_bytes, largest_tensor
from torch.nn import functional as F

from counterpoint.losses.distributed.exchange import AllGather, NoGradGather, Ring
from counterpoint.losses.kernels.attention import retrieve
from counterpoint.losses.kernels.pairing import Pairing

STATES, STORE, D = 13, 8, 6


def tensors(dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    shapes = [(STATES, D), (STORE, D), (STATES, D)]
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def result(states, store, slope, beta, pairing):
    """What is retrieved, and the gradients of states, store and beta."""
    leaves = [t.clone().requires_grad_() for t in (states, store, beta)]
    found = retrieve(*leaves, pairing)
    return [found.detach(), *torch.autograd.grad((found * slope).sum(), leaves)]


def attention(states, store, slope, beta):
    leaves = [t.clone().double().requires_grad_() for t in (states, store, beta)]
    states, store, factor = leaves
    found = F.scaled_dot_product_attention(
        (states * factor)[None], store[None], store[None], scale=1
    )
    return [found[0].detach(), *torch.autograd.grad((found[0] * slope).sum(), leaves)]


@pytest.mark.parametrize("tile_bytes", [1, 300, 1 << 20])
@pytest.mark.parametrize("scale", [0.0, 2.0, 300.0])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_equals_attention(tile_bytes, scale, dtype, rtol):
    inputs, beta = tensors(dtype), torch.tensor([scale], dtype=dtype)
    found = result(*inputs, beta, Pairing(tile_bytes=tile_bytes))
    for got, want in zip(found, attention(*inputs, beta), strict=True):
        # Logits of a thousand have an absolute error of 1e-4 in float32.
        error = rtol * max(1.0, scale / 10)
        torch.testing.assert_close(got.double(), want, rtol=error, atol=error)


def part(rank, world_size, exchange):
    """Ranks have unequal parts of the states, and of a store that one of them has nothing of."""
    states, store, slope = tensors()
    rows = [slice(0, 2), slice(2, STATES), slice(STATES, STATES)][rank]
    columns = [slice(0, 5), slice(5, 5), slice(5, STORE)][rank]
    beta = torch.tensor([2.0], dtype=torch.float64)
    pairing = Pairing(exchange, tile_bytes=200)
    return result(states[rows], store[columns], slope[rows], beta, pairing)


@pytest.mark.parametrize("exchange", [AllGather(), Ring()], ids=["all_gather", "ring"])
def test_ranks_share_a_store(gloo, exchange):
    ranks = gloo(3, part, exchange)
    wanted = attention(*tensors(), torch.tensor([2.0], dtype=torch.float64))
    for k, want in enumerate(wanted):
        found = [rank[k] for rank in ranks]
        torch.testing.assert_close(torch.cat(found) if k < 3 else sum(found), want)


def test_half_precision_regions_change_nothing():
    inputs, beta = tensors(torch.float32), torch.tensor([2.0])
    wanted = result(*inputs, beta, Pairing())
    with torch.autocast("cpu", torch.bfloat16):
        found = retrieve(inputs[0], inputs[1], beta, Pairing())
    assert torch.equal(found, wanted[0])


def test_memory_grows_with_the_batch_not_its_square():
    pairing = Pairing(tile_bytes=4 * 64 * 1024)

    def loss(size):
        states, store = (torch.randn(size, D).requires_grad_() for _ in range(2))
        return lambda: retrieve(states, store, torch.ones(1), pairing).sum()

    small, large = kept_bytes(loss(256)), kept_bytes(loss(1024))
    assert large / small == pytest.approx(4, rel=0.05)
    assert largest_tensor(loss(1024)) <= 64 * 1024


def test_an_exchange_without_gradients_of_columns_is_refused():
    with pytest.raises(ValueError, match="use AllGather with retrieval"):
        retrieve(*tensors()[:2], torch.ones(1), Pairing(NoGradGather()))
