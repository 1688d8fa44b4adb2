"""A feature sent ahead: the numbers of an exchange that waits, fewer calls, and no wait between."""

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from counterpoint.losses.components.similarity import Arc, SquaredDistance
from counterpoint.losses.distributed import ahead
from counterpoint.losses.distributed.exchange import (
    NoGradGather,
    NoGradGatherKeepLocal,
    Ring,
)
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.siglip import SigLIP

ROWS, D = 5, 6
TERMS = {
    "infonce": lambda: {"infonce": InfoNCE()},
    "siglip": lambda: {"siglip": SigLIP()},
    "arc": lambda: {"infonce": InfoNCE(Arc())},
    "two": lambda: {"infonce": InfoNCE(tile_bytes=40), "siglip": SigLIP()},
}
WAITING = {
    "ring": lambda: InfoNCE(exchange=Ring()),
    "no_grad": lambda: InfoNCE(exchange=NoGradGather()),
    "divided": lambda: InfoNCE(exchange=NoGradGatherKeepLocal()),
    "raw": lambda: InfoNCE(SquaredDistance()),
}


class Calls:
    """Records collectives of big tensors, and when a tower's backward pass begins."""

    def __init__(self):
        self.names = []
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
            real = getattr(dist, name)

            def call(*args, real=real, name=name, **options):
                self.names.append(name)
                return real(*args, **options)

            setattr(dist, name, call)

    def mark(self, name):
        return lambda *_: self.names.append(name)


def step(rank, make, is_ahead, trains_images=True, rows=ROWS):
    """Loss and gradients of two linear towers, and the order of calls."""
    names = ("all_gather_into_tensor", "reduce_scatter_tensor")
    real = {name: getattr(dist, name) for name in names}
    calls = Calls()
    try:
        g = torch.Generator().manual_seed(rank)
        inputs = [torch.randn(rows, 4, generator=g) for _ in range(2)]
        g = torch.Generator().manual_seed(9)
        weights = [torch.randn(4, D, generator=g).requires_grad_() for _ in range(2)]
        weights[0].requires_grad_(trains_images)
        objective = Objective(make(), logit_bias_init=-10.0)
        objective.batch_rows = {"": rows}
        scale, bias = (torch.tensor([x], requires_grad=True) for x in (20.0, -10.0))
        features = {"logit_scale": scale, "logit_bias": bias}
        for view, given, weight in zip(("image", "text"), inputs, weights, strict=True):
            calls.mark(f"{view} forward")()
            raw = given @ weight
            if raw.requires_grad:
                raw.register_hook(calls.mark(f"{view} backward"))
            unit = F.normalize(raw, dim=1)
            features[view] = objective.send_ahead(view, unit) if is_ahead else unit
        loss, _ = objective(features, {})
        loss.backward()
        assert not ahead._sent
        return loss.detach(), [t.grad for t in (*weights, scale, bias)], calls.names
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def both(rank, world_size, name, trains_images):
    return [step(rank, TERMS[name], is_ahead, trains_images) for is_ahead in (False, True)]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", TERMS)
def test_numbers_are_those_of_an_exchange_that_waits(gloo, name, world_size):
    for waits, sent in gloo(world_size, both, name, True):
        assert torch.equal(waits[0], sent[0])
        for gradient, wanted in zip(sent[1], waits[1], strict=True):
            assert gradient is wanted is None or torch.equal(gradient, wanted)
        assert sent[1][0].abs().max() > 0


def test_the_other_tower_runs_meanwhile(gloo):
    for waits, sent in gloo(2, both, "two", True):
        gather, scatter = "all_gather_into_tensor", "reduce_scatter_tensor"
        assert sent[2][:3] == ["image forward", gather, "text forward"]
        assert waits[2][:3] == ["image forward", "text forward", gather]
        # Two terms read what has travelled once; their column sums are vectors.
        big = [name for name in waits[2] if name == gather], [n for n in sent[2] if n == gather]
        assert len(big[1]) == len(big[0]) - 1
        assert [n for n in sent[2] if n.endswith("backward")] == ["text backward", "image backward"]
        assert sent[2].count(scatter) == 2


def test_frozen_images_are_sent_and_expect_nothing(gloo):
    for waits, sent in gloo(2, both, "infonce", False):
        assert torch.equal(waits[0], sent[0]) and sent[1][0] is None
        assert torch.equal(waits[1][1], sent[1][1])


def kept(rank, world_size):
    """Which exchanges and batches leave a feature as it is."""
    feature = torch.randn(ROWS, D)
    found = {}
    for name, make in WAITING.items():
        objective = Objective({"term": make()})
        objective.batch_rows = {"": ROWS}
        found[name] = objective.send_ahead("image", feature) is feature
    objective = Objective(TERMS["infonce"]())
    found["any number of rows"] = objective.send_ahead("image", feature) is feature
    objective.batch_rows = {"": ROWS}
    found["not compared"] = objective.send_ahead("image.strong", feature) is feature
    found["sent"] = objective.send_ahead("image", feature) is not feature
    ahead.forget()
    return found


def test_what_cannot_travel_ahead_waits(gloo):
    for found in gloo(2, kept):
        assert all(found.values()), found


def test_one_process_sends_nothing():
    assert all(found for name, found in kept(0, 1).items() if name != "sent")
