"""Heads: batch statistics and every gradient are those of one process holding the global batch."""

import pytest
import torch
from torch import nn

from counterpoint.losses.components.heads import MLP, BatchNorm
from counterpoint.losses.distributed.collectives import share

B = 10


def rows():
    g = torch.Generator().manual_seed(0)
    return 3 + 2 * torch.randn(B, 5, generator=g, dtype=torch.float64)


def losses_of(out):
    """Something by row that no symmetry makes independent of the statistics."""
    return (out * torch.arange(1.0, 1 + out.shape[1]).to(out)).sin().sum(1)


SPLITS = {
    "one": [slice(0, B)],
    "two": [slice(0, 7), slice(7, B)],
    "one_is_empty": [slice(0, B), slice(B, B)],
}


def run(rank, world_size, splits):
    """Training on this rank's rows, a pass for the log, then evaluation; gradients as DDP's."""
    torch.manual_seed(1)
    head = MLP([5, 7, 4, 3]).double()
    own = rows()[splits[rank]].requires_grad_()
    value = share(losses_of(head(own)))
    value.backward()
    with torch.no_grad():
        head(own)
        evaluated = head.eval()(own)
    grads = {name: p.grad / world_size for name, p in head.named_parameters()}
    return value.item(), own.grad / world_size, grads, dict(head.named_buffers()), evaluated


def reference():
    """The same of torch's own modules."""
    torch.manual_seed(1)
    layers = []
    for width, following in ((5, 7), (7, 4)):
        layers += [nn.Linear(width, following, bias=False), nn.BatchNorm1d(following), nn.ReLU()]
    head = nn.Sequential(*layers, nn.Linear(4, 3)).double()
    own = rows().requires_grad_()
    value = losses_of(head(own)).mean()
    value.backward()
    return value.item(), own.grad, head, head.eval()(own)


@pytest.mark.parametrize("splits", SPLITS.values(), ids=SPLITS.keys())
def test_equals_torch_on_the_global_batch(gloo, splits):
    world_size = len(splits)
    want_value, want_grad, head, want_evaluated = reference()
    ranks = gloo(world_size, run, splits)
    assert abs(sum(r[0] for r in ranks) / world_size - want_value) < 1e-12
    for rank, (_, grad, _, buffers, evaluated) in enumerate(ranks):
        torch.testing.assert_close(grad, want_grad[splits[rank]], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(evaluated, want_evaluated[splits[rank]])
        for name, buffer in buffers.items():
            torch.testing.assert_close(buffer, head.get_buffer(name))
            assert torch.equal(buffer, ranks[0][3][name])
    for name, parameter in head.named_parameters():
        summed = sum(r[2][name] for r in ranks)
        torch.testing.assert_close(summed, parameter.grad, rtol=1e-9, atol=1e-12)


def test_a_large_common_mean_costs_no_precision():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(2))
    got = BatchNorm(3)(x + 4096.0)
    want = nn.BatchNorm1d(3).double()((x + 4096.0).double())
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


def test_half_precision_is_normalised_in_float32():
    x = 100 + torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16):
        got = BatchNorm(4)(x.bfloat16())
    assert got.dtype == torch.bfloat16
    want = nn.BatchNorm1d(4)(x.bfloat16().float())
    torch.testing.assert_close(got.float(), want, rtol=2e-2, atol=2e-2)


def test_norms_are_objects():
    assert [type(m) for m in MLP([4, 3])] == [nn.Linear]
    assert [type(m) for m in MLP([4, 6, 3], norm=nn.LayerNorm)] == [
        *(nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear)
    ]
    plain = MLP([4, 6, 3], norm=None)
    assert [type(m) for m in plain] == [nn.Linear, nn.ReLU, nn.Linear]
    assert plain[0].bias is not None and MLP([4, 6, 3])[0].bias is None


def test_widths_are_checked():
    with pytest.raises(ValueError, match=r"widths=\[4\]"):
        MLP([4])
