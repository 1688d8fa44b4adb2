"""The kernels' options against dense matrices in float64, for any tile, and in parts on ranks."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.distributed.exchange import AllGather, Ring
from counterpoint.losses.kernels.masks import Below, Different, Distance, Valid
from counterpoint.losses.kernels.pairing import Pairing
from counterpoint.losses.kernels.reductions import row_sums, softmax_sums, softplus_sums
from counterpoint.losses.kernels.targets import SameId, Uniform

B, D = 11, 6
TILES = [1, 5 * 8 * 4, 1 << 20]


class Cube:
    """A function of the inner product with a slope that is not constant."""

    def value(self, inner):
        return inner**3 + 0.5 * inner

    def derivative(self, inner, value):
        return 3 * inner**2 + 0.5


class Soft:
    """A target from a second pair of features; its normalisers are given."""

    def __init__(self, rows, columns, by_row, by_column):
        self.rows, self.columns = (rows, by_row), (columns, by_column)

    def tile(self, rows, columns, total):
        logits = rows[0] @ columns[0].T
        return (logits - rows[1][:, None]).exp(), (logits - columns[1]).exp()


class Weight:
    """A weight between 0 and 1 from a second pair of features."""

    def __init__(self, rows, columns):
        self.rows, self.columns = (rows,), (columns,)

    def tile(self, rows, columns):
        return (rows[0] @ columns[0].T).sigmoid()


def tensors(scale=9.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    u, v = (F.normalize(torch.randn(B, D, generator=g, dtype=dtype), dim=1) for _ in range(2))
    a, b = (torch.randn(B, 3, generator=g, dtype=dtype) for _ in range(2))
    ids = torch.tensor([0, 1, 2, 0, 3, 4, 1, 5, 0, 6, 7])
    valid = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    return u, v, torch.tensor([scale], dtype=dtype), a, b, ids, valid


def options(name, rows, exchange):
    """Returns (the pairing's fields, and a dense matrix for each) for some rows of the batch."""
    _, _, _, a, b, ids, valid = tensors()
    near = F.normalize(a, dim=1), F.normalize(b, dim=1)
    logits = a @ b.T
    by_row, by_column = logits.logsumexp(1), logits.logsumexp(0)
    same = (ids[:, None] == ids).double()
    eye = torch.eye(B, dtype=torch.float64)
    if name == "plain":
        return {}, {}
    if name == "others":
        return {"pairs": "others"}, {"keep": 1 - eye}
    if name == "different":
        return {"weights": (Different(ids[rows], ids[rows]),)}, {
            "keep": (1 - same + eye).clamp(max=1)
        }
    if name == "valid":
        keep = (valid[:, None] & valid).double()
        return {"weights": (Valid(valid[rows], valid[rows]),)}, {"keep": (keep + eye).clamp(max=1)}
    if name == "below":
        keep = (near[0] @ near[1].T < 0.3).double()
        chosen = Below(near[0][rows], near[1][rows], 0.3)
        return {"weights": (chosen,)}, {"keep": (keep + eye).clamp(max=1)}
    if name == "two weights":
        weight = (a @ b.T).sigmoid() * (1 - same)
        chosen = (Weight(a[rows], b[rows]), Different(ids[rows], ids[rows]))
        return {"weights": chosen}, {"keep": weight * (1 - eye) + eye}
    if name == "factor":
        return {"factor": Distance(near[0][rows], near[1][rows])}, {
            "factor": 1 - near[0] @ near[1].T
        }
    if name == "point":
        return {"point": Cube()}, {"point": Cube().value}
    if name == "point and factor":
        first, dense = options("point", rows, exchange)
        more, dense_more = options("factor", rows, exchange)
        return first | more, dense | dense_more
    if name == "smoothing":
        return {"diagonal": 0.9, "targets": ((0.1, Uniform()),)}, {
            "row_target": 0.9 * eye + 0.1 / B,
            "column_target": 0.9 * eye + 0.1 / B,
        }
    if name == "same id":
        chosen = ((1.0, SameId(ids[rows], exchange)),)
        return {"diagonal": 0.0, "targets": chosen}, {
            "row_target": same / same.sum(1, keepdim=True),
            "column_target": same / same.sum(0),
        }
    assert name == "soft and smooth, masked"
    soft = Soft(a[rows], b[rows], by_row[rows], by_column[rows])
    keep, dense = options("different", rows, exchange)
    return {
        "diagonal": 0.5,
        "targets": ((0.3, soft), (0.2, Uniform())),
    } | keep, {
        "row_target": 0.5 * eye + 0.3 * logits.softmax(1) + 0.2 / B,
        "column_target": 0.5 * eye + 0.3 * logits.softmax(0) + 0.2 / B,
    } | dense


NAMES = [
    "plain",
    "others",
    "different",
    "valid",
    "below",
    "two weights",
    "factor",
    "point",
    "point and factor",
    "smoothing",
    "same id",
    "soft and smooth, masked",
]


def dense_logits(u, v, s, dense):
    inner = u @ v.T
    return s * dense.get("point", lambda x: x)(inner) * dense.get("factor", 1.0)


def dense_softmax(u, v, s, dense):
    logits = dense_logits(u, v, s, dense)
    kept = logits + torch.as_tensor(dense.get("keep", 1.0)).log()
    eye = torch.eye(B, dtype=u.dtype)
    targets = dense.get("row_target", eye), dense.get("column_target", eye)
    return (
        kept.logsumexp(1),
        kept.logsumexp(0),
        (targets[0] * logits).sum(1),
        (targets[1] * logits).sum(0),
    )


def dense_softplus(u, v, s, c, dense):
    logits = dense_logits(u, v, s, dense) + c
    keep = torch.as_tensor(dense.get("keep", 1.0))
    target = dense.get("row_target", torch.eye(B, dtype=u.dtype))
    return (keep * torch.logaddexp(logits, logits * 0)).sum(1), (target * logits).sum(1)


def weighted(values, rows=slice(None)):
    """A sum with weights of both signs, and zero among them."""
    weights = torch.linspace(-1, 2, B, dtype=torch.float64) * (torch.arange(B) != 1)
    return sum(((k + 1) * weights[rows] * value).sum() for k, value in enumerate(values))


def ours(rank, world_size, exchange, jobs):
    """Outputs and gradients of one rank for (option, kind, tile_bytes, scale)."""
    cuts = [0, 4, B] if world_size == 2 else [0, B]
    rows = slice(cuts[rank], cuts[rank + 1])
    results = []
    for name, kind, tile_bytes, scale in jobs:
        u, v, s, *_ = tensors(scale)
        u, v = u[rows].clone().requires_grad_(), v[rows].clone().requires_grad_()
        s, c = s.requires_grad_(), torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
        fields, _ = options(name, rows, exchange)
        pairing = Pairing(exchange, tile_bytes=tile_bytes, **fields)
        if kind == "softmax":
            values, leaves = softmax_sums(u, v, s, pairing), [u, v, s]
        else:
            values, leaves = softplus_sums(u, v, s, c, pairing), [u, v, s, c]
        found = torch.autograd.grad(weighted(values, rows), leaves)
        results.append(([x.detach() for x in values], found))
    return results


def check(gloo, world_size, exchange, jobs):
    ranks = gloo(world_size, ours, exchange, jobs)
    for number, (name, kind, _, scale) in enumerate(jobs):
        u, v, s, *_ = (t.requires_grad_() if t.is_floating_point() else t for t in tensors(scale))
        c = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
        _, dense = options(name, slice(0, B), AllGather())
        if kind == "softmax":
            wanted, leaves = dense_softmax(u, v, s, dense), [u, v, s]
        else:
            wanted, leaves = dense_softplus(u, v, s, c, dense), [u, v, s, c]
        gradients = torch.autograd.grad(weighted(wanted), leaves)
        parts = [rank[number] for rank in ranks]
        for k, want in enumerate(wanted):
            found = torch.cat([values[k] for values, _ in parts])
            torch.testing.assert_close(
                found, want, rtol=1e-9, atol=1e-9, msg=lambda m, job=jobs[number]: f"{job} {m}"
            )
        for k, want in enumerate(gradients):
            join = torch.cat if k < 2 else sum
            found = join([grads[k] for _, grads in parts])
            torch.testing.assert_close(
                found, want, rtol=1e-9, atol=1e-9, msg=lambda m, job=jobs[number]: f"{job} {m}"
            )


def jobs_of(tiles):
    softmax = itertools.product(NAMES, ["softmax"], tiles, [9.0, 90.0])
    binary = [n for n in NAMES if n != "two weights"]
    return [*softmax, *itertools.product(binary, ["softplus"], tiles, [9.0, 90.0])]


def test_every_option_in_one_process(gloo):
    check(gloo, 1, AllGather(), jobs_of(TILES))


@pytest.mark.parametrize("exchange", [AllGather(), Ring()], ids=["all_gather", "ring"])
def test_every_option_on_two_ranks_with_unequal_rows(gloo, exchange):
    check(gloo, 2, exchange, jobs_of(TILES[1:2]))


def further_columns(rank, world_size, exchange):
    u, v, s, *_ = tensors()
    rows, columns = (slice(0, 4), slice(0, 9)) if rank == 0 else (slice(4, B), slice(9, B))
    u, v = u[rows].clone().requires_grad_(), v[columns].clone().requires_grad_()
    sums = row_sums(u, v, s.requires_grad_(), Pairing(exchange, tile_bytes=200))
    return sums.detach(), torch.autograd.grad(weighted([sums], rows), [u, v, s])


@pytest.mark.parametrize("exchange", [AllGather(), Ring()], ids=["all_gather", "ring"])
def test_rows_against_any_number_of_columns(gloo, exchange):
    u, v, s = (t.requires_grad_() for t in tensors()[:3])
    wanted = (s * u @ v.T).logsumexp(1)
    gradients = torch.autograd.grad(weighted([wanted]), [u, v, s])
    ranks = gloo(2, further_columns, exchange)
    torch.testing.assert_close(torch.cat([r[0] for r in ranks]), wanted)
    for k, want in enumerate(gradients):
        join = torch.cat if k < 2 else sum
        torch.testing.assert_close(join([r[1][k] for r in ranks]), want)


def test_rows_of_which_no_pair_counts_have_no_gradient():
    u, v, s, *_ = tensors()
    leaves = [u.requires_grad_(), v.requires_grad_(), s.requires_grad_()]
    nothing = Valid(torch.zeros(B, dtype=torch.bool), torch.zeros(B, dtype=torch.bool))
    for scale in (1.0, 100.0):
        sums = row_sums(u, v, s * scale, Pairing(weights=(nothing,)))
        assert torch.equal(sums, torch.full((B,), -torch.inf, dtype=torch.float64))
        joined = torch.logaddexp(sums, torch.zeros_like(sums)).sum()
        for gradient in torch.autograd.grad(joined, leaves):
            assert not gradient.any()


@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_float32_logits_of_any_size(scale):
    u, v, s, *_ = tensors(scale)
    exact = [t.requires_grad_() for t in (u, v, s)]
    wanted = dense_softmax(*exact, {})
    gradients = torch.autograd.grad(weighted(wanted), exact)
    single = [t.detach().float().requires_grad_() for t in exact]
    for tile_bytes in TILES:
        found = softmax_sums(*single, Pairing(tile_bytes=tile_bytes))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
        ours = torch.autograd.grad(weighted(found), single)
        for a, b in zip(ours, gradients, strict=True):
            largest = float(b.abs().max())
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5 * largest)


def test_what_is_kept_for_the_backward_pass_grows_with_the_batch_not_its_square():
    def saved(size, reduction):
        num_bytes = 0

        def pack(tensor):
            nonlocal num_bytes
            num_bytes += tensor.numel() * tensor.element_size()
            return tensor

        g = torch.Generator().manual_seed(size)
        u, v = (torch.randn(size, 6, generator=g).requires_grad_() for _ in range(2))
        one = torch.ones(1, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            reduction(u, v, one)
        return num_bytes

    pairing = Pairing(tile_bytes=4 * 256 * 64)
    for reduction in (
        lambda u, v, s: softmax_sums(u, v, s, pairing),
        lambda u, v, s: softplus_sums(u, v, s, s, pairing),
    ):
        small, large = saved(512, reduction), saved(2048, reduction)
        assert small < 512 * 8 * 4 * 3
        assert large / small == pytest.approx(4, rel=0.05)
