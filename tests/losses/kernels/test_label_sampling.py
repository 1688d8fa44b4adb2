"""Labels drawn from the softmax: their frequencies, and the curvature that gradients estimate."""

import pytest
import torch

from counterpoint.losses.distributed.exchange import AllGather, Local, NoGradGather, Ring
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.kernels.label_sampling import gumbel, sample_labels
from counterpoint.losses.kernels.pairing import Pairing
from counterpoint.losses.objective import Objective
from counterpoint.losses.siglip import SigLIP

B, D = 5, 3


def test_draws_are_as_frequent_as_the_softmax_says():
    torch.manual_seed(0)
    row, columns, scale = torch.randn(1, D), torch.randn(7, D), torch.tensor([1.3])
    keys = torch.arange(20_000), torch.arange(7) * 1000
    labels = sample_labels(row.expand(20_000, D), columns, scale, keys, 5, Pairing(tile_bytes=4096))
    want = (scale * row @ columns.T).double().softmax(1)[0]
    error = (want * (1 - want) / 20_000).sqrt()
    got = labels.bincount(minlength=7) / 20_000
    assert ((got - want).abs() < 4 * error).all()


def test_autocast_does_not_change_what_is_drawn():
    g = torch.Generator().manual_seed(2)
    rows, columns = (torch.nn.functional.normalize(torch.randn(400, 8, generator=g)) for _ in "ab")
    arguments = torch.tensor([100.0]), (torch.arange(400), torch.arange(400)), 5, Pairing()
    wanted = sample_labels(rows, columns, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample_labels(rows, columns, *arguments), wanted)


def test_noise_is_of_the_pair_of_keys():
    keys = torch.tensor([3, -(1 << 62), 17, 18])
    noise = gumbel(keys, keys, 7)
    assert noise.unique().numel() == 16
    assert torch.equal(gumbel(keys[[2, 0]], keys[[1]], 7), noise[[2, 0]][:, [1]])
    assert not (gumbel(keys, keys, 8) == noise).any()


def problem():
    g = torch.Generator().manual_seed(1)
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    x, y = make(B, 4), make(B, 4)
    return x, y, [make(4, D), make(4, D), torch.tensor([0.7], dtype=torch.float64)]


def gauss_newton(x, y, parameters, weight=1.0):
    """Diagonal of J^T H J, with H that of both directions' cross-entropies in the logits."""

    def logits(w, v, s):
        return s * (x @ w) @ (y @ v).T

    jacobian = [j.flatten(2) for j in torch.autograd.functional.jacobian(logits, tuple(parameters))]
    values = logits(*parameters)
    hessian = torch.zeros(B, B, B, B, dtype=torch.float64)
    for i in range(B):
        p, q = values[i].softmax(0), values[:, i].softmax(0)
        hessian[i, :, i, :] += (p.diag() - torch.outer(p, p)) / (2 * B)
        hessian[:, i, :, i] += (q.diag() - torch.outer(q, q)) / (2 * B)
    return [weight * torch.einsum("ijp,ijkl,klp->p", j, hessian, j) for j in jacobian]


def squares(seed, weight=1.0, rows=slice(None), exchange=None, tile_bytes=1 << 20):
    """Squared gradients of the loss with drawn labels, of one rank."""
    x, y, parameters = problem()
    parameters = [p.requires_grad_() for p in parameters]
    w, v, s = parameters
    features = {"image": x[rows] @ w, "text": y[rows] @ v, "logit_scale": s}
    objective = Objective(
        {"infonce": InfoNCE(exchange=exchange, tile_bytes=tile_bytes)}, {"infonce": weight}
    )
    loss = objective.sampled(features, {"key": torch.arange(B)[rows] * 77}, seed)
    return [g.flatten() for g in torch.autograd.grad(loss, parameters)]


def test_mean_of_squared_gradients_is_the_gauss_newton_diagonal():
    x, y, parameters = problem()
    weight = 0.3
    draws = [[g.square() for g in squares(2 * seed, weight)] for seed in range(160)]
    for got, want in zip(
        zip(*draws, strict=True), gauss_newton(x, y, parameters, weight), strict=True
    ):
        values = torch.stack(got)
        error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - want).abs() < 4.5 * error).all()
        assert (error < 0.25 * want).all()  # else anything would pass


def of_rank(rank, world_size, exchange):
    rows = slice(0, 2) if rank == 0 else slice(2, B)
    return [g / world_size for g in squares(9, rows=rows, exchange=exchange, tile_bytes=16)]


@pytest.mark.parametrize("exchange", [AllGather(), Ring()])
def test_two_ranks_draw_and_estimate_what_one_does(gloo, exchange):
    want = squares(9)
    ranks = gloo(2, of_rank, exchange)
    for got, expected in zip(zip(*ranks, strict=True), want, strict=True):
        torch.testing.assert_close(sum(got), expected, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match=r"objective\.terms.pairs is a SigLIP"):
        Objective({"pairs": SigLIP()}, logit_bias_init=-10.0).check_sampled()
    with pytest.raises(ValueError, match="exchange NoGradGather"):
        squares(0, exchange=NoGradGather())
    assert squares(0, exchange=Local())
    with pytest.raises(ValueError, match=r"weights\.infonce is -1"):
        squares(0, weight=-1.0)
