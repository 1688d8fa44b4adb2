"""The same norms, limits and weights with every clipper in every strategy, a NaN in between."""

import pytest
import torch
from small_run import Recorded, module, train

from counterpoint.train.grad_clip.agc import AGC
from counterpoint.train.grad_clip.autoclip import AutoClip
from counterpoint.train.grad_clip.fixed import Norm, Value
from counterpoint.train.grad_clip.per_tower import PerTower
from counterpoint.train.grad_clip.zclip import ZClip
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.spike_guard import SpikeGuard, Spikes

STEPS, SPOILT = 8, 4
CLIPPERS = {
    "norm": lambda: Norm(0.3),
    "value": lambda: Value(0.01),
    "towers": lambda: PerTower({"image": AutoClip(50.0), "rest": ZClip(warmup=2, z=0.1)}),
    "autoclip": lambda: AutoClip(20.0, window=8),
    "zclip": lambda: ZClip(warmup=3, z=0.1),
    "agc": lambda: AGC(0.05),
}


class Traced(Recorded):
    """Norms rise, one loss is NaN; keeps what the clipper reports."""

    def forward_loss(self, batch):
        loss = super().forward_loss(batch) * 10 ** (self.global_step // 2)
        return loss * torch.nan if self.global_step == SPOILT else loss

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.reports.append(
            {k: v.item() for k, v in self.report.items() if k.startswith("grad_clip/")}
        )


def traces(rank, world_size, name, clippers):
    """Norms, reports and last scale by clipper."""
    found = {}
    for key in clippers:
        made = module(STEPS, kind=Traced)
        made.optim, made.grad_clip, made.reports = AdamW(eps=1e-3), CLIPPERS[key](), []
        made.guard = SpikeGuard(spikes=Spikes(warmup=2))
        trainer = train(made, world_size, name)
        state = trainer.strategy.lightning_module_state_dict()
        weights = {k: v.detach().clone() for k, v in state.items() if v.is_floating_point()}
        found[key] = made.norms, made.reports, weights, made.guard.state_dict()
    return found


@pytest.mark.soak
@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_clippers_and_guard_do_the_same_in_every_strategy(gloo, name):
    clippers = [key for key in CLIPPERS if key != "agc" or not name.startswith("zero")]
    want = traces(0, 1, "auto", clippers)
    results = gloo(2, traces, name, clippers)
    for key in clippers:
        close = {"rtol": 1e-4, "atol": 1e-5, "equal_nan": True, "msg": key}
        norms, reports, weights, guard = want[key]
        torch.testing.assert_close(results[0][key][2], weights, **close)  # saved by the first
        for result in results:
            torch.testing.assert_close(result[key][0], norms, **close)
            torch.testing.assert_close(result[key][1], reports, **close)
            torch.testing.assert_close(result[key][3], guard, **close)
        assert guard["nonfinite"] == 1
    for key in ("zclip", "autoclip"):
        assert {step["grad_clip/clipped"] for step in want[key][1]} == {0, 1}
