"""Mixed precision means the same in every strategy; 16-bit parameters under ZeRO keep fp32 ones."""

import math

import pytest
import torch
from small_run import Recorded, module, train

from counterpoint.train.optim.adamw import AdamW

STEPS = 4


class Seen(Recorded):
    """Keeps the types of numbers in the towers."""

    def on_train_start(self):
        super().on_train_start()
        found = self.types = set()
        attention = self.model.image.trunk.blocks[0].attn.qkv
        attention.register_forward_hook(lambda m, i, o: found.add((m.weight.dtype, o.dtype)))


def trace(rank, world_size, name, precision, steps=STEPS):
    made = module(steps, kind=Seen)
    made.optim = AdamW(eps=1e-3)  # else noise decides on the sign of a step
    trainer = train(made, world_size, name, precision=precision)
    state = trainer.strategy.lightning_module_state_dict()
    masters = {key: value.clone() for key, value in state.items() if value.is_floating_point()}
    if "zero" in name:  # loading one count for all would count every parameter
        saved = trainer.strategy.optimizer_state(None)["state"]
        assert len({id(values["step"]) for values in saved.values()}) == len(saved) > 20
    if "zero" in name and precision == "16-true":  # a resumed run keeps the loss scale
        state = trainer.strategy.optimizer_state(None)
        assert 1 < state["loss_scaler"]["cur_scale"] < 2**16
        trainer.strategy.zero.loss_scaler.cur_scale = 3.0
        trainer.strategy.load_optimizer_state_dict({"optimizer_states": [state]})
        assert trainer.strategy.zero.loss_scale == state["loss_scaler"]["cur_scale"]
    return made.losses, made.norms, made.types, masters


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "zero3" else pytest.mark.soak)
        for name in ("fsdp2", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
    ],
)
def test_mixed_precision_is_that_of_ddp(gloo, name):
    want = gloo(2, trace, "ddp", "bf16-mixed")
    got = gloo(2, trace, name, "bf16-mixed")
    for (losses, norms, types, _), (want_losses, want_norms, *_) in zip(got, want, strict=True):
        assert losses[0] == pytest.approx(want_losses[0], rel=1e-6)
        assert norms[0] == pytest.approx(want_norms[0], rel=1e-5)
        # Stage 3 has a linear layer of its own, which later models of the process get as well:
        # it rounds to bf16 before the bias is added.
        assert losses == pytest.approx(want_losses, rel=5e-3 if "zero" in name else 1e-5)
        assert types == {(torch.float32, torch.bfloat16)}
    assert {value.dtype for value in got[0][3].values()} == {torch.float32}  # saved by the first
    exact = gloo(2, trace, "ddp", "32-true")[0][0]
    assert want[0][0] != exact and want[0][0] == pytest.approx(exact, rel=0.02)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16-true", torch.bfloat16), ("16-true", torch.float16)]
)
def test_16_bit_parameters_beside_fp32_ones(gloo, name, precision, dtype):
    steps = 30
    exact = gloo(2, trace, "ddp", "32-true", steps)[0]
    losses, norms, types, masters = gloo(2, trace, name, precision, steps)[0]
    assert types == {(dtype, dtype)}
    # fp16 begins with a loss scale that is too large: those steps are left out.
    left_out = sum(not math.isfinite(norm) for norm in norms)
    assert left_out == 0 if dtype == torch.bfloat16 else 0 < left_out < 12
    assert losses[0] == pytest.approx(exact[0][0], rel=0.02)
    assert all(math.isfinite(norm) for norm in norms[left_out:])
    weight = masters["model.image.trunk.blocks.0.attn.qkv.weight"]
    assert weight.dtype == torch.float32 and not torch.equal(weight, weight.to(dtype).float())


def refused(rank, world_size, name):
    with pytest.raises(ValueError, match=r"trainer.precision=16-mixed .* use bf16-mixed, or 16-"):
        train(module(1), world_size, name, precision="16-mixed")


def test_mixed_fp16_under_zero_is_refused(gloo):
    gloo(1, refused, "zero2")
