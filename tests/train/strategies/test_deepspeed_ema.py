"""The moving average under ZeRO: its formula in float64, in every stage, in 16 bits as well."""

import pytest
import torch
from small_run import Recorded, batches, module, train

from counterpoint.losses.components.heads import MLP
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.self_supervision.byol import BYOL
from counterpoint.train.ema import Ema, EmaConfig
from counterpoint.train.strategies.choose import choose_strategy

STEPS = 2
DECAY = 0.5
NAMES = ("zero1", "zero2", "zero3", "zero1_offload", "zero2_offload", "zero3_offload")
CASES = [(name, p) for name in NAMES for p in ("32-true", "bf16-mixed", "bf16-true")]
# Stage 3 takes six times as long; what is read of it has its own tests (test_deepspeed_internals).
QUICK = ("zero2", "bf16-true")


class Averaged(Recorded):
    """Keeps, before the first step and after each, all values in the form of a checkpoint."""

    def on_train_start(self):
        super().on_train_start()
        self.states, self.read = [self.whole()], []

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.states.append(self.whole())

    def whole(self):
        state = self.trainer.strategy.lightning_module_state_dict()
        return {name: value.clone() for name, value in state.items()}

    def forward_loss(self, batch):
        answer = self.ema(batch, {"image"})["image"]
        self.read.append(answer.float())
        return super().forward_loss(batch)


def made():
    torch.manual_seed(1)
    byol = BYOL(MLP([8, 9, 4]), MLP([4, 4]), [("image.raw", "ema.image.raw")])
    built = module(
        STEPS, rate=1e-2, kind=Averaged, objective=Objective({"i": InfoNCE(), "b": byol})
    )
    built.ema = Ema(built.model, EmaConfig(DECAY))
    return built


def trace(rank, world_size, name, precision):
    """Values of every step and what the average answered; stage 3 cuts up what it can."""
    run, how = made(), choose_strategy(name)
    if name.startswith("zero3"):
        how.config["zero_optimization"]["stage3_param_persistence_threshold"] = 20
    train(run, world_size, how, precision=precision)
    return run.states, run.read


def online(name):
    """The name of the value that an average follows."""
    return name.removeprefix("ema.").replace(".target.", ".projector.")


@pytest.mark.parametrize(
    ("name", "precision"),
    [pytest.param(*case, marks=[] if case == QUICK else pytest.mark.soak) for case in CASES],
)
def test_average_follows_the_fp32_values(gloo, name, precision):
    results = gloo(2, trace, name, precision)
    (states, read), (_, other) = results
    averages = [key for key in states[0] if key.startswith("ema.") or ".target." in key]
    assert len(states) == STEPS + 1 and len(averages) > 20
    want = {key: states[0][online(key)].double() for key in averages}
    for state in states:
        if state is not states[0]:
            want = {k: DECAY * v + (1 - DECAY) * state[online(k)].double() for k, v in want.items()}
        for key in averages:
            values = state[key] if state[key].dtype == torch.float32 else state[key].float()
            if "running" in key or "batches" in key:  # buffers are copied
                assert torch.equal(state[key], state[online(key)])
            else:
                torch.testing.assert_close(values.double(), want[key], rtol=2e-6, atol=1e-8)
    moved = [key for key in averages if not torch.equal(states[0][key], states[-1][key])]
    assert len(moved) > 20
    close = {"rtol": 0, "atol": 1e-5 if precision == "32-true" else 2e-2}
    for step, (state, batch) in enumerate(zip(states, batches(STEPS), strict=False)):
        answers = torch.cat([read[step], other[step]])
        torch.testing.assert_close(answers, answer(state, batch), **close)


def answer(state, batch):
    """Features of the images by a model with the average's values."""
    model = made().ema.model
    prefix = "ema.model."
    own = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    model.load_state_dict(own)
    with torch.no_grad():
        return model(batch, {"image"})["image"]
