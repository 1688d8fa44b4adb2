"""InfoNCE and SigLIP against the formulas in float64 and against open_clip's losses."""

import math

import open_clip
import pytest
import torch
from open_clip.loss import SigLipLoss
from torch.nn import functional as F

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.scalars import Temperature
from counterpoint.losses.siglip import SigLIP
from counterpoint.losses.weight_schedules import Harmonic, Ramp

B, D = 12, 7


def infonce_formula(u, v, s, b):
    logits = s * u @ v.T
    rows = sum(torch.logsumexp(logits[i], 0) - logits[i, i] for i in range(len(u)))
    columns = sum(torch.logsumexp(logits[:, j], 0) - logits[j, j] for j in range(len(u)))
    return (rows + columns) / (2 * len(u))


def siglip_formula(u, v, s, b):
    total = 0.0
    for i in range(len(u)):
        for j in range(len(v)):
            z = 1.0 if i == j else -1.0
            total = total - torch.log(torch.sigmoid(z * (s[0] * (u[i] @ v[j]) + b[0])))
    return total / len(u)


TERMS = {"infonce": (InfoNCE, infonce_formula), "siglip": (SigLIP, siglip_formula)}


def inputs(dtype=torch.float64, seed=0, scale=9.0):
    g = torch.Generator().manual_seed(seed)
    u = F.normalize(torch.randn(B, D, generator=g, dtype=torch.float64), dim=-1)
    v = F.normalize(torch.randn(B, D, generator=g, dtype=torch.float64), dim=-1)
    s, b = torch.tensor([scale]), torch.tensor([-4.0])
    return [t.to(dtype).requires_grad_() for t in (u, v, s, b)]


def features(u, v, s, b):
    return {"image": u, "text": v, "logit_scale": s, "logit_bias": b}


def grads(value, leaves):
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_equals_the_formula(name, dtype, rtol):
    term, formula = TERMS[name]
    exact, ours = inputs(), inputs(dtype)
    want = formula(*exact)
    got = term()(features(*ours), {})[name]
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=0)
    for g, w in zip(grads(got, ours), grads(want, exact), strict=True):
        torch.testing.assert_close(g.double(), w, rtol=rtol * 20, atol=rtol)


def sharded(rank, world_size, name, dtype, scale):
    """Value and gradients on one rank of the global batch's slice, averaged as DDP does."""
    full = inputs(dtype, scale=scale)
    rows = slice(rank * B // world_size, (rank + 1) * B // world_size)
    u, v = (t.detach()[rows].requires_grad_() for t in full[:2])
    leaves = [u, v, *full[2:]]
    value = TERMS[name][0]()(features(*leaves), {})[name]
    return value.item(), [g / world_size for g in grads(value, leaves)]


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    # 300: what fp32 exponentials of logits, within a rank or across ranks, do not survive.
    ("dtype", "scale", "rtol"),
    [(torch.float64, 9.0, 1e-10), (torch.float64, 300.0, 1e-10), (torch.float32, 300.0, 1e-4)],
)
def test_world_size_changes_nothing(gloo, name, world_size, dtype, scale, rtol):
    exact = inputs(scale=scale)
    want = TERMS[name][1](*exact)
    want_u, want_v, want_s, want_b = grads(want, exact)
    results = gloo(world_size, sharded, name, dtype, scale)
    assert math.isclose(sum(r[0] for r in results) / world_size, want.item(), rel_tol=rtol / 100)
    got_u = torch.cat([r[1][0] for r in results])
    got_v = torch.cat([r[1][1] for r in results])
    got_s, got_b = (sum(r[1][k] for r in results) for k in (2, 3))
    for got, exact_gradient in ((got_u, want_u), (got_v, want_v), (got_s, want_s), (got_b, want_b)):
        torch.testing.assert_close(
            got.double(),
            exact_gradient,
            rtol=rtol,
            atol=rtol * float(exact_gradient.abs().max()) / 9,
        )


def per_sample_formula(name, u, v, s, b):
    """The loss taken apart: pair i's two cross-entropies, or text i against all images."""
    if name == "siglip":
        z = 2 * torch.eye(B, dtype=u.dtype) - 1
        return -torch.log(torch.sigmoid(z * (s * u @ v.T + b))).sum(0)
    p = s * u @ v.T
    both = torch.log_softmax(p, 0).diagonal() + torch.log_softmax(p, 1).diagonal()
    return -both / 2


def sharded_samples(rank, world_size, name):
    u, v, s, b = (t.detach() for t in inputs())
    rows = slice(rank * B // world_size, (rank + 1) * B // world_size)
    objective = Objective({name: TERMS[name][0]()}, {name: 0.5})
    return objective.per_sample(features(u[rows], v[rows], s, b), {})


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_losses_by_sample_are_the_parts_of_the_loss(gloo, name, world_size):
    u, v, s, b = (t.detach() for t in inputs())
    parts = torch.cat(gloo(world_size, sharded_samples, name))
    torch.testing.assert_close(parts, 0.5 * per_sample_formula(name, u, v, s, b))
    loss = TERMS[name][1](u, v, s, b)
    torch.testing.assert_close(parts.mean(), 0.5 * loss)


def open_clip_gradients(rank, world_size):
    u, v, s, _ = inputs()
    rows = slice(rank * B // world_size, (rank + 1) * B // world_size)
    u, v = (t.detach()[rows].requires_grad_() for t in (u, v))
    theirs = open_clip.ClipLoss(
        local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size
    )(u, v, s)
    ours = InfoNCE()(features(u, v, s, s), {})["infonce"]
    return [x.item() for x in (theirs, ours)], grads(theirs, [u, v, s]), grads(ours, [u, v, s])


def test_equals_open_clip_on_two_ranks(gloo):
    ranks = gloo(2, open_clip_gradients)
    for values, theirs, ours in ranks:
        assert math.isclose(*values, rel_tol=1e-12)
        for a, b in zip(theirs[:2], ours[:2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    # Ranks split the scale's gradient differently; what DDP averages is the same.
    theirs, ours = (sum(rank[which][2] for rank in ranks) for which in (1, 2))
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-13)


def test_equals_open_clip_in_one_process():
    u, v, s, b = inputs()
    ours = InfoNCE()(features(u, v, s, b), {})["infonce"]
    torch.testing.assert_close(ours, open_clip.ClipLoss()(u, v, s))
    ours = SigLIP()(features(u, v, s, b), {})["siglip"]
    torch.testing.assert_close(ours, SigLipLoss()(u, v, s, b))


@pytest.mark.parametrize("name", TERMS)
def test_half_precision_features_give_float32_losses(name):
    u, _, _, b = inputs(torch.float32)
    s = torch.tensor([100.0])
    with torch.autocast("cpu", torch.bfloat16):
        value = TERMS[name][0]()(features(u.bfloat16(), u.bfloat16(), s, b), {})[name]
    assert value.dtype == torch.float32
    assert value.isfinite()


def test_objective_adds_up_with_weights():
    u, v, s, b = inputs()
    objective = Objective({"a": InfoNCE(), "b": SigLIP()}, weights={"b": 0.25})
    total, report = objective(features(u, v, s, b), {})
    torch.testing.assert_close(total.detach(), report["a"] + 0.25 * report["b"])
    assert objective.needs == {"image", "text"}


def test_weights_follow_the_run():
    u, v, s, b = inputs()
    objective = Objective(
        {"a": InfoNCE(), "b": SigLIP()}, weights={"b": Ramp(0.0, 2.0, start=0.5, stop=1.0)}
    )
    for progress, weight in ((0.0, 0.0), (0.5, 0.0), (0.75, 1.0), (1.0, 2.0)):
        objective.progress = progress
        total, report = objective(features(u, v, s, b), {})
        assert objective.weight("b") == weight
        torch.testing.assert_close(total.detach(), report["a"] + weight * report["b"])


def test_weight_schedules():
    assert [Harmonic(0.6, 3)(p) for p in (0.0, 0.34, 0.67, 1.0)] == pytest.approx(
        [0.6, 0.3, 0.2, 0.2]
    )
    with pytest.raises(ValueError, match="fractions of the run"):
        Ramp(start=0.5, stop=0.5)
    with pytest.raises(ValueError, match="at least 1"):
        Harmonic(1.0, 0)


def test_terms_share_a_scalar_of_the_objective():
    u, v, s, b = inputs()
    objective = Objective(
        {"a": InfoNCE(scale="sharp"), "b": InfoNCE(scale="sharp")},
        scalars={"sharp": Temperature(20.0)},
    ).double()
    total, _ = objective(features(u, v, s, b), {})
    exact = 2 * infonce_formula(u, v, torch.tensor([20.0], dtype=torch.float64), b)
    torch.testing.assert_close(total, exact)
    assert [name for name, _ in objective.named_parameters()] == ["scalars.sharp.log"]
    (parameter, low, high), *more = objective.scalars["sharp"].bounds()
    assert not more
    assert (low, high) == (0.0, math.log(100.0))
    assert parameter is objective.scalars["sharp"].log


def test_scalars_get_a_gradient_whatever_the_terms_use():
    u, v, s, b = inputs()
    spare = {"spare": Temperature(5.0)}
    objective = Objective({"a": InfoNCE(scale=Temperature(20.0))}, scalars=spare).double()
    total, _ = objective(features(u, v, s, b), {})
    gradients = torch.autograd.grad(total, [s, b, *objective.scalars.parameters()])
    assert [g.tolist() for g in gradients] == [[0.0], [0.0], [0.0]]


def test_objective_refuses_what_cannot_work():
    with pytest.raises(ValueError, match=r"weights names \['typo'\]"):
        Objective({"a": InfoNCE()}, weights={"typo": 1.0})
    with pytest.raises(ValueError, match="is empty"):
        Objective({})
    with pytest.raises(ValueError, match="no loss term"):
        Objective({"a": torch.nn.Linear(1, 1)})
    with pytest.raises(ValueError, match=r"logit_scale_init is 0.5, outside of .* \[1, 100\]"):
        Objective({"a": InfoNCE()}, logit_scale_init=0.5)
    Objective({"a": InfoNCE()}, logit_scale_init=0.5, logit_scale_bounds=(0.1, 1.0))
    with pytest.raises(ValueError, match="logit_bias_init"):
        u, v, s, _ = inputs()
        SigLIP()({"image": u, "text": v, "logit_scale": s}, {})
