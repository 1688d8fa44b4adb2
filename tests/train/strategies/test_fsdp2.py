"""P1 in every strategy: gradients, norms and losses are those of one process, for any chunks."""

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from small_run import Recorded, module, replay, train
from torch import nn

from counterpoint.losses.base import Term
from counterpoint.losses.objective import Objective
from counterpoint.losses.scalars import Temperature
from counterpoint.models.reducers.patches import RandomPatches
from counterpoint.train.grad_clip.agc import AGC
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.optim.compatibility import check_optimizer
from counterpoint.train.optim.freeze import freeze
from counterpoint.train.optim.sophia import SophiaG
from counterpoint.train.optim.timm_optimizers import Timm
from counterpoint.train.seeds import step_seed
from counterpoint.train.strategies.base import Sharding
from counterpoint.train.strategies.choose import choose_strategy, sharding_of
from counterpoint.train.strategies.sharded_tensors import LocalTensors, ShardedTensors

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
CHUNKS = (1, 2, 4, 8)
STEPS = 2
# ZeRO takes float32 only.
EXACTNESS = dict.fromkeys(("zero1", "zero2", "zero3"), (torch.float32, 2e-5))


def record(rank, world_size, name, dtype, dropout, all_chunks, kind=Recorded):
    """Losses, norms and pieces of gradients of short runs, one for each number of chunks."""
    found = {}
    for chunks in all_chunks:
        made = module(STEPS, dtype, dropout, RandomPatches(0.5), kind=kind, chunks=chunks)
        train(made, world_size, name)
        found[chunks] = made.losses, made.norms, made.pieces
    return found


class Replayed(Recorded):
    """One process that plays two: the dropout of each rank, and nothing is recomputed."""

    def forward_loss(self, batch):
        features = []
        reduction = self.phases.reduction(self.global_step, self.seed)
        for rank in range(2):
            torch.manual_seed(step_seed(self.seed, self.global_step, rank))
            rows = {key: value.tensor_split(2)[rank] for key, value in batch.items()}
            features.append(replay(self.model, rows, reduction))
        image, text = (torch.cat(sides) for sides in zip(*features, strict=True))
        scale = self.model.logit_scale.exp()
        return self.objective({"image": image, "text": text, "logit_scale": scale}, batch)[0]


def joined(name, pieces, like):
    """Whole gradients from every rank's pieces: copies, rows, or slices with padding at the end."""
    if name == "ddp":
        assert all(torch.equal(pieces[0][key], piece[key]) for key in like for piece in pieces)
        return pieces[0]
    whole = {}
    for key, parameter in like.items():
        flat = torch.cat([piece[key].flatten() for piece in pieces if key in piece])
        whole[key] = flat[: parameter.numel()].view_as(parameter)
    return whole


def assert_equal(got, want, tolerance):
    # The gradient of the keys' biases is zero but for rounding: compare against the largest one.
    scale = max(value.abs().max().item() for value in want.values())
    for name, value in want.items():
        atol = tolerance * scale
        torch.testing.assert_close(got[name], value, rtol=tolerance, atol=atol, msg=name)


SOME = [pytest.param((1, 4), id="sample"), pytest.param(CHUNKS, id="all", marks=pytest.mark.soak)]
# Stage 3 gathers every parameter again and again, once more for each chunk.
FEWER = {"zero3": (2,)}


def compare(name, one, results, chunks, exactness):
    """One process's losses, norms and gradients against those of two."""
    losses, norms, pieces = zip(*(result[chunks] for result in results), strict=True)
    means = torch.tensor(losses, dtype=torch.float64).mean(0)
    assert means.tolist() == pytest.approx(one[0], rel=exactness)
    assert len(set(map(tuple, norms))) == 1
    assert norms[0] == pytest.approx(one[1], rel=exactness)
    like = dict(module(1).named_parameters())
    for step in range(STEPS):
        whole = joined(name, [piece[step] for piece in pieces], like)
        # Adam's first steps magnify what rounding did to the smallest gradients.
        assert_equal(whole, one[2][step], exactness * 10**step)


@pytest.mark.parametrize("all_chunks", SOME)
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", STRATEGIES)
def test_gradients_losses_and_norms_are_those_of_one_process(gloo, name, world_size, all_chunks):
    dtype, exactness = EXACTNESS.get(name, (torch.float64, 1e-10))
    if all_chunks != CHUNKS:
        all_chunks = FEWER.get(name, all_chunks)
    one = record(0, 1, "auto", dtype, 0.0, (1,))[1]
    results = gloo(world_size, record, name, dtype, 0.0, all_chunks)
    for chunks in all_chunks:
        compare(name, one, results, chunks, exactness)


# Stage 3 gathers every parameter again and again; without dropout it is compared above. Stage 1 is
# stage 2 but for where gradients lie, and those are compared above, too.
FAST = [
    pytest.param(name, marks=pytest.mark.soak) if name in ("zero1", "zero3") else name
    for name in STRATEGIES
]


@pytest.mark.parametrize("all_chunks", SOME)
@pytest.mark.parametrize("name", FAST)
def test_dropout_is_that_of_each_chunk_in_forward_and_recomputation(gloo, name, all_chunks):
    dtype, exactness = EXACTNESS.get(name, (torch.float64, 1e-10))
    results = gloo(2, record, name, dtype, 0.2, all_chunks)
    for chunks in all_chunks:
        one = record(0, 1, "auto", dtype, 0.2, (chunks,), Replayed)[chunks]
        compare(name, one, results, chunks, exactness)


class Pull(Term):
    """Drags the model's scale and one of its own up or down, as the batch says."""

    needs = ("image", "text", "logit_scale")

    def __init__(self):
        super().__init__()
        self.scale = Temperature(init=95.0)

    def forward(self, features, batch):
        nothing = 0.0 * (features["image"].sum() + features["text"].sum())
        up = features["logit_scale"] + self.scale()
        return {"pull": nothing - batch["direction"].float().mean() * up.sum()}


class Scales(pl.Callback):
    """Writes down both scales after each step, as every rank sees them."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        own = pl_module.objective.terms["pull"].scale.log
        values = [pl_module.tensors.value(p).item() for p in (pl_module.model.logit_scale, own)]
        self.seen.append(values)


def scales(rank, world_size, name, precision):
    """Both scales (logarithms) over three steps up and two down."""
    made = module(5, rate=0.1, objective=Objective({"pull": Pull()}), scale=95.0)
    made.optim = AdamW(betas=(0.0, 0.9))  # without momentum, which would go on for a while
    seen = Scales()
    directions = [1, 1, 1, -1, -1]
    train(made, world_size, name, [seen], {"direction": directions}, precision=precision)
    return seen.seen


# Stage 1 is clamped as stage 2 is: both keep whole parameters beside slices in float32.
@pytest.mark.parametrize(
    "name",
    [
        "auto",
        *(pytest.param(n, marks=pytest.mark.soak) if n == "zero1" else n for n in STRATEGIES),
    ],
)
@pytest.mark.parametrize(
    "precision", ["32-true", pytest.param("bf16-true", marks=pytest.mark.soak)]
)
def test_a_scale_pushed_past_its_bound_leaves_it_at_once(gloo, name, precision):
    for seen in gloo(1 if name == "auto" else 2, scales, name, precision):
        for values in zip(*seen, strict=True):
            assert values[:3] == pytest.approx([math.log(100)] * 3, abs=0.02)
            assert values[2] - values[3] > 0.05 and values[3] - values[4] > 0.05


def frozen(rank, world_size, name):
    """Weights, as a checkpoint has them, before and after two steps with a frozen image tower."""
    made = module(2)
    freeze(made.model, ["image.*"])
    before = {key: value.clone() for key, value in made.state_dict().items()}
    trainer = train(made, world_size, name)
    return before, {k: v.clone() for k, v in trainer.strategy.lightning_module_state_dict().items()}


@pytest.mark.soak
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_frozen_tower_stays_as_it_is(gloo, name):
    _, one = frozen(0, 1, "auto")
    before, after = gloo(2, frozen, name)[0]
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.equal(after[key], value) == key.startswith("model.image."), key
        torch.testing.assert_close(after[key], one[key], rtol=1e-4, atol=1e-4, msg=key)


def refused(rank, world_size, name, parts, why="ZeRO cuts"):
    made = module(1)
    for part, value in parts.items():
        setattr(made, part, value)
    with pytest.raises(ValueError, match=why) as error:
        train(made, world_size, name)
    return str(error.value)


@pytest.mark.soak
def test_what_needs_whole_tensors_is_refused_where_they_are_cut(gloo):
    assert "optim names timm's lamb" in gloo(1, refused, "zero2", {"optim": Timm("lamb")})[0]
    assert "grad_clip: AGC" in gloo(1, refused, "zero2", {"grad_clip": AGC()})[0]
    why = "neither ZeRO nor the gradient scaler"
    assert "optim names SophiaG" in gloo(1, refused, "zero2", {"optim": SophiaG()}, why)[0]


def test_what_could_not_be_resumed_is_refused():
    towers = nn.Linear(2, 2), nn.Linear(2, 2)
    check_optimizer(Timm("lamb"), choose_strategy("fsdp2"), *towers)
    check_optimizer(Timm("adafactorbv"), sharding_of(DDPStrategy()), *towers)
    with pytest.raises(
        ValueError, match=r"optim names timm's adafactorbv, .* use trainer\.strategy=ddp"
    ):
        check_optimizer(Timm("adafactorbv"), choose_strategy("fsdp2"), *towers)


def test_strategies_whose_pieces_would_be_taken_for_copies_are_refused():
    made = DDPStrategy(find_unused_parameters=True)
    assert choose_strategy(made) is made
    assert choose_strategy("auto") == "auto"
    for name in ("fsdp", "fsdp_cpu_offload", "ddp_spawn", "deepspeed_stage_2", "xla"):
        with pytest.raises(
            ValueError, match=f"trainer.strategy is '{name}'; it is auto, ddp, fsdp2"
        ):
            choose_strategy(name)
    for theirs in (FSDPStrategy(), ModelParallelStrategy(), DeepSpeedStrategy()):
        for look in (choose_strategy, sharding_of):  # in a run, and in a Trainer of one's own
            with pytest.raises(ValueError, match=f"trainer.strategy is '{type(theirs).__name__}'"):
                look(theirs)


class Other(Sharding, DDPStrategy):
    """A strategy of the user's."""

    cuts_states = True


def test_a_strategy_answers_for_itself():
    other = Other()
    assert choose_strategy(other) is other and sharding_of(other) is other
    with pytest.raises(ValueError, match="shapes of their own"):
        check_optimizer(Timm("adafactorbv"), sharding_of(other), nn.Module(), nn.Module())
    theirs = sharding_of(DDPStrategy())
    assert type(theirs) is Sharding and type(theirs.tensors()) is LocalTensors
    assert type(choose_strategy("fsdp2").tensors()) is ShardedTensors
