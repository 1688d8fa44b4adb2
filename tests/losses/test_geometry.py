"""Geometries where their formulas are singular, and what shares them: terms, clamp, evaluation."""

import math

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from counterpoint.losses.components.lorentz import (
    LorentzDistance,
    LorentzInner,
    LorentzSquaredDistance,
)
from counterpoint.losses.components.similarity import Arc, Distance, Dot, SquaredDistance
from counterpoint.losses.entailment import Entailment, EuclideanCone, HyperbolicCone
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.scalars import Positive
from counterpoint.train.strategies.sharded_tensors import ShardedTensors

SIMILARITIES = [
    Arc, Dot, Distance, SquaredDistance, LorentzInner, LorentzDistance, LorentzSquaredDistance
]  # fmt: skip
TERMS = [
    *(lambda kind=kind: InfoNCE(kind()) for kind in SIMILARITIES),
    lambda: Entailment(EuclideanCone()),
    lambda: Entailment(HyperbolicCone()),
]
NAMES = [*(kind.__name__ for kind in SIMILARITIES), "euclidean cone", "hyperbolic cone"]


def singular(kind, dtype):
    """Images and texts [4, 5] that are equal, opposite, zero, or very long."""
    g = torch.Generator().manual_seed(2)
    image = torch.randn(4, 5, generator=g, dtype=torch.float64)
    image /= image.norm(dim=1, keepdim=True)
    text = image.clone()
    if kind == "opposite":
        text = -text
    elif kind == "parallel":
        text = 3 * text
    elif kind == "zero text":
        text = 0 * text
    elif kind == "zero":
        image, text = 0 * image, 0 * text
    elif kind == "long":
        image, text = 1e4 * image, -1e4 * text
    return {"image": image.to(dtype), "text": text.to(dtype)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["equal", "opposite", "parallel", "zero text", "zero", "long"])
@pytest.mark.parametrize("make", TERMS, ids=NAMES)
def test_value_and_gradient_are_finite_at_singular_points(make, kind, dtype):
    term = make()
    leaves = {f"{name}.raw": tensor for name, tensor in singular(kind, dtype).items()}
    leaves |= {n: torch.ones(1) for n in ("logit_scale", "alpha_image", "alpha_text", "curvature")}
    for leaf in leaves.values():
        leaf.requires_grad_()
    # What the sphere's gradients along the radius are left out by.
    unit = {name: F.normalize(leaves[f"{name}.raw"], dim=1) for name in ("image", "text")}
    (value,) = term(leaves | unit, {}).values()
    value.backward()
    assert value.isfinite()
    for leaf in leaves.values():
        assert leaf.grad is None or leaf.grad.isfinite().all()
    is_on_sphere = "image" in term.needs  # There is no direction of a vector of length zero.
    if kind != "long" and not (is_on_sphere and "zero" in kind):
        # Lengths and distances change at a rate of about one: rounding must not be blown up.
        assert all(leaf.grad is None or leaf.grad.abs().max() < 30 for leaf in leaves.values())


def test_an_image_at_its_text_or_straight_beyond_lies_in_the_cone():
    text = singular("equal", torch.float64)["text"]
    for factor, inside in ((1.0, True), (2.0, True), (0.5, False), (-1.0, False)):
        features = {"image.raw": factor * 5 * text, "text.raw": 5 * text}
        angle = Entailment(EuclideanCone()).per_sample(features, {})
        # Behind the apex the way back is a half turn, less the aperture.
        radius = 5 / 5**0.5
        want = 0.0 if inside else math.pi - math.asin(0.1 / radius)
        torch.testing.assert_close(angle, torch.full_like(angle, want))


def test_shared_scalars_are_found_and_bounded():
    objective = Objective(
        {"near": InfoNCE(LorentzDistance()), "cone": Entailment(HyperbolicCone())},
        scalars={
            "alpha_image": Positive(0.5, 1e-4, 1.0),
            "alpha_text": Positive(0.5, 1e-4, 1.0),
            "curvature": Positive(1.0, 0.1, 10.0),
        },
    )
    bounds = objective.bounds()
    assert len(bounds) == 3 == len(list(objective.parameters()))
    assert all(parameter.shape == (1,) for parameter, _, _ in bounds)
    low, high = next(b[1:] for b in bounds if b[0] is objective.scalars["curvature"].log)
    assert (low, high) == pytest.approx((math.log(0.1), math.log(10)))
    g = torch.Generator().manual_seed(0)
    features = {f"{n}.raw": torch.randn(4, 5, generator=g) for n in ("image", "text")}
    objective(features | {"logit_scale": torch.ones(1)}, {})[0].backward()
    assert all(parameter.grad.abs() > 0 for parameter, _, _ in bounds)


@pytest.mark.parametrize("kind", SIMILARITIES)
def test_the_metric_ranks_as_the_similarity_does(kind):
    g = torch.Generator().manual_seed(4)
    x, y = (torch.randn(20, 5, generator=g, dtype=torch.float64) for _ in range(2))
    objective = Objective({"t": InfoNCE(kind())}, scalars=dict(scalars()))
    metric = objective.metric()
    assert metric.form == ("" if kind is Arc else ".raw")
    ours = metric.images(x) @ metric.texts(y).T
    distance = torch.cdist(x, y)
    if kind in (Arc, Dot):
        distance = -x @ y.T
    elif kind not in (Distance, SquaredDistance):
        u, v = (
            torch.sinh(0.4 * p.norm(dim=1, keepdim=True)) * p / p.norm(dim=1, keepdim=True)
            for p in (x, y)
        )
        distance = torch.outer(*((1 + p.square().sum(1)).sqrt() for p in (u, v))) - u @ v.T
    assert torch.equal(ours.argsort(1, descending=True), distance.argsort(1))


def scalars():
    """Factors of 0.2 with a curvature of 4: tangents of 0.4 times the features."""
    for name in ("alpha_image", "alpha_text"):
        yield name, Positive(0.2, 1e-4, 1.0)
    yield "curvature", Positive(4.0, 0.1, 10.0)


def test_what_is_missing_or_wrong_is_said():
    g = torch.Generator().manual_seed(0)
    features = {f"{n}.raw": torch.randn(4, 5, generator=g) for n in ("image", "text")}
    with pytest.raises(ValueError, match="'alpha_image': add alpha_image to objective"):
        InfoNCE(LorentzInner())(features | {"logit_scale": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="min_radius is a length above 0"):
        EuclideanCone(min_radius=0.0)
    with pytest.raises(ValueError, match="Positive starts at 20, outside its bounds"):
        Positive(20.0, 0.1, 10.0)


def sharded_scalars(rank, world_size):
    """The metric's curvature before and after a training step of a sharded objective."""
    objective = Objective({"t": InfoNCE(LorentzDistance())}, scalars=dict(scalars()))
    gather = ShardedTensors().value
    fully_shard(objective, mesh=init_device_mesh("cpu", (world_size,)))
    found = [objective.metric(gather).scalars["curvature"]]
    g = torch.Generator().manual_seed(rank)
    features = {f"{n}.raw": torch.randn(4, 5, generator=g) for n in ("image", "text")}
    optimizer = torch.optim.SGD(objective.parameters(), lr=1.0)
    objective(features | {"logit_scale": torch.ones(1)}, {})[0].backward()
    optimizer.step()
    found.append(objective.metric(gather).scalars["curvature"])
    return [type(value) is torch.Tensor for value in found], [value.item() for value in found]


@pytest.mark.soak
def test_scalars_of_a_sharded_objective_are_whole_for_evaluation(gloo):
    ranks = gloo(2, sharded_scalars)
    assert ranks[0] == ranks[1]
    are_plain, (before, after) = ranks[0]
    assert all(are_plain) and before == pytest.approx(4.0)
    assert after != pytest.approx(4.0)
