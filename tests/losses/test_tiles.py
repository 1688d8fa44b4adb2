"""Blockwise reductions against the same in float64, for any block, shape and scale."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.tiles import log_sum_exp, softplus_sum

# (rows, columns, scale, offset of the positive columns): a part of the columns, all, one, none; 200
# is far beyond what exponentials hold in fp32.
CASES = [
    (13, 29, 9.0, 16),
    (13, 29, 30.0, 0),
    (13, 13, 9.0, 0),
    (1, 7, 3.0, 4),
    (1, 1, 3.0, 0),
    (13, 29, 200.0, 7),
    (0, 5, 3.0, 2),
]
TILES = [1, 29 * 8 * 4, 1 << 20]


def inputs(num_rows, num_columns, scale, offset, dtype):
    g = torch.Generator().manual_seed(num_rows)
    u = F.normalize(torch.randn(num_rows, 6, generator=g, dtype=torch.float64), dim=1)
    v = F.normalize(torch.randn(num_columns, 6, generator=g, dtype=torch.float64), dim=1)
    scalars = [torch.tensor([scale]), torch.tensor([-4.0])]
    return [t.to(dtype).requires_grad_() for t in (u, v, *scalars)]


def gradients(values, leaves):
    """Gradients of a weighted sum, with weights of both signs and zero among them."""
    weights = [
        torch.linspace(-1, 2, len(v), dtype=v.dtype) * (torch.arange(len(v)) != 1) for v in values
    ]
    total = sum((w * v).sum() for w, v in zip(weights, values, strict=True))
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


def check(ours, exact, leaves, exact_leaves, rtol):
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=rtol)
    pairs = zip(gradients(ours, leaves), gradients(exact, exact_leaves), strict=True)
    for a, b in pairs:
        largest = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a.double(), b, rtol=10 * rtol, atol=10 * rtol * largest)


@pytest.mark.parametrize("tile_bytes", TILES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_log_sum_exp(case, tile_bytes, dtype, rtol):
    ours, exact = inputs(*case, dtype), inputs(*case, torch.float64)
    logits = exact[2] * exact[0] @ exact[1].T
    positive = logits.diagonal(case[3])[: case[0]]
    expected = (logits.logsumexp(1), logits.logsumexp(0), positive)
    found = log_sum_exp(*ours[:3], case[3], tile_bytes)
    if not case[0]:
        assert torch.equal(found[1], torch.full((5,), -torch.inf, dtype=dtype))
        assert found[0].shape == (0,)
        return
    check(found, expected, ours[:3], exact[:3], rtol * max(1, case[2] / 10))


@pytest.mark.parametrize("tile_bytes", TILES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_softplus_sum(case, tile_bytes, dtype, rtol):
    ours, exact = inputs(*case, dtype), inputs(*case, torch.float64)
    # Not torch's softplus, which is linear beyond 20.
    logits = exact[2] * exact[0] @ exact[1].T + exact[3]
    expected = torch.logaddexp(logits, torch.zeros_like(logits)).sum(1)
    found = softplus_sum(*ours, case[3], tile_bytes)
    positive = logits.diagonal(case[3])[: case[0]]
    check(found, [expected, positive], ours, exact, rtol * max(1, case[2] / 10))


def test_what_is_kept_for_the_backward_pass_grows_with_the_batch_not_its_square():
    def saved(size, reduction):
        num_bytes = 0

        def pack(tensor):
            nonlocal num_bytes
            num_bytes += tensor.numel() * tensor.element_size()
            return tensor

        u, v, s, c = inputs(size, size, 10.0, 0, torch.float32)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            reduction(u, v, s, c)
        return num_bytes

    for reduction in (
        lambda u, v, s, c: log_sum_exp(u, v, s, 0, 4 * 256 * 64),
        lambda u, v, s, c: softplus_sum(u, v, s, c, 0, 4 * 256 * 64),
    ):
        small, large = saved(512, reduction), saved(2048, reduction)
        assert small < 512 * 8 * 4 * 3
        assert large / small == pytest.approx(4, rel=0.05)
