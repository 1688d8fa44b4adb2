"""P1: loss and every parameter gradient are those of one process holding the global batch."""

import pytest
import torch
from tiny_tower import tiny_vit
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.siglip import SigLIP
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

B = 12


class Step(nn.Module):
    """What the LightningModule's training step computes, as DDP sees it."""

    def __init__(self, name: str):
        super().__init__()
        torch.manual_seed(3)
        image = tiny_vit(1)
        text = ClipTextTower(width=16, depth=1, num_heads=2, context_length=6, vocab_size=50)
        bias = -3.0 if name == "siglip" else None
        self.model = TwoTower(image, text, 8, logit_scale_init=7.0, logit_bias_init=bias)
        self.objective = Objective({name: InfoNCE() if name == "infonce" else SigLIP()})

    def forward(self, batch):
        return self.objective(self.model(batch, self.objective.needs), batch)[0]


def batch():
    g = torch.Generator().manual_seed(4)
    return {
        "image": torch.randint(0, 256, (B, 3, 16, 16), dtype=torch.uint8, generator=g),
        "text": torch.randint(1, 50, (B, 6), generator=g),
        "text_length": torch.randint(2, 7, (B,), generator=g),
    }


def gradients(rank, world_size, name):
    step = Step(name).double()
    wrapped = DistributedDataParallel(step) if world_size > 1 else step
    value = wrapped({k: v[rank::world_size] for k, v in batch().items()})
    value.backward()
    return value.item(), {n: p.grad for n, p in step.named_parameters()}


@pytest.mark.parametrize("name", ["infonce", "siglip"])
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_loss_and_every_gradient_equal_one_process(gloo, name, world_size):
    want_value, want = gradients(0, 1, name)
    results = gloo(world_size, gradients, name)
    value = sum(r[0] for r in results) / world_size
    assert abs(value - want_value) <= 1e-10 * abs(want_value)
    assert all(g is not None and g.abs().sum() > 0 for g in want.values())
    # The gradient of the keys' biases is zero but for rounding: compare against the largest one.
    scale = max(g.abs().max().item() for g in want.values())
    for _, got in results:
        assert got.keys() == want.keys()
        for key, gradient in want.items():
            torch.testing.assert_close(got[key], gradient, rtol=1e-10, atol=1e-12 * scale, msg=key)
