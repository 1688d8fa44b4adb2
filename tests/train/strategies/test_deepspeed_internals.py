"""What is read of DeepSpeed's private parts is what it is taken for: a test for each."""

import inspect
import os
from types import SimpleNamespace

import deepspeed
import pytest
import torch
from deepspeed.ops.op_builder.cpu.comm import ShareMemCommBuilder
from deepspeed.runtime.fp16 import loss_scaler
from deepspeed.runtime.zero import stage3
from small_run import forget_groups
from torch import nn

from counterpoint.train.strategies import deepspeed_internals as internals

CASES = [(stage, offload) for stage in (1, 2, 3) for offload in (False, True)]
WORLD_SIZE, BATCH = 2, 6
PERSISTENT = 20  # elements up to which stage 3 keeps a parameter whole


def model():
    """Rows of odd sizes: partitions end inside of them, and have padding."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3), nn.Linear(3, 1))


def loss_of(module, rows):
    return module(rows).square().mean()


def rows():
    return torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(1))


def engine_of(module, stage, offload):
    internals.prepare_for_cpu()
    deepspeed.init_distributed("gloo")
    zero = {"stage": stage, "stage3_param_persistence_threshold": PERSISTENT}
    config = {
        "train_micro_batch_size_per_gpu": BATCH // WORLD_SIZE,
        "zero_optimization": zero | ({"offload_optimizer": {"device": "cpu"}} if offload else {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    return deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]


def read(rank, world_size, stage, offload):
    """What this rank reads of one engine, by the name of what reads it."""
    module = model()
    engine = engine_of(module, stage, offload)
    zero, named = engine.optimizer, dict(module.named_parameters())
    got = {"whole_shape": {n: tuple(internals.whole_shape(p)) for n, p in named.items()}}
    got["numel"] = {n: p.numel() for n, p in named.items()}
    cuts = {n: internals.working_slice(p) for n, p in named.items()}
    got["working_slice"] = {n: None if cut is None else cut.clone() for n, cut in cuts.items()}
    got["fragments"] = {
        n: [(f.first, f.of_partition(f.flat).clone()) for f in internals.find_fragments(zero, p)]
        for n, p in named.items()
    }
    engine.backward(loss_of(engine, rows().tensor_split(world_size)[rank]))
    got["gradients"] = {n: [] for n in named}
    names = {id(p): n for n, p in named.items()}
    for parameter, piece in internals.find_gradients(zero):
        got["gradients"][names[id(parameter)]].append(piece.flatten().clone())
    got["gather"] = {n: internals.gather(zero, p, lambda flat: flat) for n, p in named.items()}
    got["gather_working_copy"] = {
        n: internals.gather_working_copy(p).clone() for n, p in named.items()
    }
    with torch.no_grad():
        for name, parameter in named.items():
            whole = got["gather"][name]
            internals.scatter(zero, parameter, whole + 1, lambda flat: flat)
            internals.set_working_copy(parameter, whole + 2)
    got["scatter"] = {n: internals.gather(zero, p, lambda flat: flat) for n, p in named.items()}
    got["set_working_copy"] = {
        n: internals.gather_working_copy(p).clone() for n, p in named.items()
    }
    return got


def read_all(rank, world_size):
    forget_groups()
    return [read(rank, world_size, *case) for case in CASES]


@pytest.fixture(scope="module")
def results(gloo):
    """What each rank reads, by stage and offload."""
    ranks = gloo(WORLD_SIZE, read_all)
    return {case: [rank[i] for rank in ranks] for i, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def weights():
    return {name: p.detach() for name, p in model().named_parameters()}


def test_fragments_hold_every_element_once(results, weights):
    for case, ranks in results.items():
        for name, weight in weights.items():
            fragments = sorted(f for rank in ranks for f in rank["fragments"][name])
            ends = [first + len(values) for first, values in fragments]
            assert [first for first, _ in fragments] == [0, *ends[:-1]], (case, name)
            values = torch.cat([values for _, values in fragments])
            assert torch.equal(values, weight.flatten()), (case, name)


def test_some_fragments_end_inside_of_parameters(results):
    """What the test above would otherwise not try."""
    for case, ranks in results.items():
        assert any(len(f) == 1 and f[0][0] > 0 for f in ranks[1]["fragments"].values()), case


def test_gradients_are_those_of_the_global_batch(results):
    whole = model()
    loss_of(whole, rows()).backward()
    for case, ranks in results.items():
        for name, parameter in whole.named_parameters():
            pieces = [piece for rank in ranks for piece in rank["gradients"][name]]
            flat = torch.cat(pieces)
            want, padding = parameter.grad.flatten(), flat[parameter.numel() :]
            torch.testing.assert_close(flat[: len(want)], want, msg=f"{case} {name}")
            assert not padding.any(), (case, name)


@pytest.mark.parametrize(
    ("reads", "added"),
    [("gather", 0), ("scatter", 1), ("gather_working_copy", 0), ("set_working_copy", 2)],
)
def test_whole_values_on_every_rank(results, weights, reads, added):
    for case, ranks in results.items():
        for rank in ranks:
            for name, weight in weights.items():
                assert torch.equal(rank[reads][name], weight + added), (case, name)


def test_shapes_are_those_before_stage_3_emptied_parameters(results, weights):
    for (stage, _), ranks in results.items():
        for rank in ranks:
            assert rank["whole_shape"] == {n: tuple(w.shape) for n, w in weights.items()}
            emptied = {n for n, numel in rank["numel"].items() if not numel}
            assert emptied == (set(weights) if stage == 3 else set())


def test_working_slices_of_ranks_are_the_parameter(results, weights):
    for (stage, _), ranks in results.items():
        for name, weight in weights.items():
            slices = [rank["working_slice"][name] for rank in ranks]
            if stage < 3:
                assert slices == [None, None]
            else:
                assert torch.equal(torch.cat(slices)[: weight.numel()], weight.flatten())


def test_a_loss_scaler_goes_on_from_its_state(monkeypatch):
    monkeypatch.setattr(loss_scaler.dist, "get_rank", lambda: 1)  # which logs nothing
    options = {"init_scale": 64.0, "scale_window": 2, "min_scale": 1.0, "delayed_shift": 2}
    options |= {"consecutive_hysteresis": False}
    one, other, fresh = (loss_scaler.DynamicLossScaler(**options) for _ in range(3))
    overflows = [False, True, False, True, True, False, False, False, False]
    for overflow in overflows[:4]:
        one.update_scale(overflow)
    state = internals.scaler_state(SimpleNamespace(loss_scaler=one))
    internals.load_scaler_state(SimpleNamespace(loss_scaler=other), state)
    scales = {scaler: [] for scaler in (one, other, fresh)}
    for overflow in overflows[4:]:
        for scaler, seen in scales.items():
            scaler.update_scale(overflow)
            seen.append(scaler.loss_scale)
    assert scales[one] == scales[other] != scales[fresh]


def test_a_compiled_layer_is_gathered_at_once_and_sends_gradients_one_by_one(monkeypatch):
    theirs = stage3.z3_leaf_parameter
    monkeypatch.setattr(stage3, "z3_leaf_parameter", theirs)  # put back afterwards
    layer = nn.Linear(2, 2)
    internals.gather_layers_at_once([layer])
    assert deepspeed.utils.z3_leaf_module(layer)
    assert not stage3.z3_leaf_parameter(layer.weight)
    user = stage3.DeepSpeedZeroOptimizer_Stage3.create_reduce_and_remove_grad_hooks
    assert "z3_leaf_parameter" in inspect.getsource(user)


def test_on_a_cpu_nothing_is_built(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, ShareMemCommBuilder.NAME, True)
    internals.prepare_for_cpu()
    assert os.environ["DS_ACCELERATOR"] == "cpu"
    assert deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] is False
