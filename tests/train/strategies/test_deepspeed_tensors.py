"""Clipping under DeepSpeed ZeRO, with and without offload, is that of one process."""

import os

import pytest
import torch
from small_run import forget_groups
from torch import nn

from counterpoint.train.strategies.deepspeed_tensors import ZeroTensors
from counterpoint.train.strategies.sharded_tensors import LocalTensors

pytestmark = pytest.mark.soak
CASES = [(stage, offload) for stage in (1, 2, 3) for offload in (False, True)]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3), nn.Linear(3, 1))


def optimizer_of(module):
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.1)


def clip(tensors, optimizer, parameters, skip):
    tensors.begin()
    groups = [parameters[:2], parameters[2:]]
    norms = tensors.norms(groups)
    tensors.scale(groups[0], torch.tensor(0.5))
    tensors.clamp(groups[0], 0.02)
    tensors.scale(groups[1], torch.tensor(0.1))
    tensors.drop(optimizer, parameters, torch.tensor(skip))
    return norms


def trajectory(rank, world_size, stage, offload):
    """Norms and weights of six steps: one is skipped, one is NaN and skipped."""
    x = torch.randn(8, 7, generator=torch.Generator().manual_seed(1))
    module, engine = model(), None
    parameters, optimizer = list(module.parameters()), optimizer_of(module)
    if stage:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("gloo")
        zero = {"stage": stage} | ({"offload_optimizer": {"device": "cpu"}} if offload else {})
        config = {
            "train_micro_batch_size_per_gpu": 4,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    tensors = ZeroTensors(engine.optimizer) if engine else LocalTensors()
    trace = []
    for step in range(6):
        batch = x[rank::world_size] * (torch.nan if step == 4 else 1.0)
        optimizer.zero_grad() if engine is None else None
        loss = (engine or module)(batch).square().mean()
        loss.backward() if engine is None else engine.backward(loss)
        norms = clip(tensors, optimizer, parameters, step in (2, 4))
        optimizer.step() if engine is None else engine.step()
        trace.append((norms, whole(parameters, stage)))
    return trace


def whole(parameters, stage):
    if stage != 3:
        return [p.detach().clone() for p in parameters]
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        return [p.detach().clone() for p in parameters]


def every(rank, world_size):
    forget_groups()
    return {case: trajectory(rank, world_size, *case) for case in CASES}


def test_norms_and_weights_are_those_of_one_process(gloo):
    want = trajectory(0, 1, 0, False)
    assert all(torch.equal(a, b) for a, b in zip(want[1][1], want[2][1], strict=True))
    for result in gloo(2, every):
        for case, trace in result.items():
            for (norms, weights), (want_norms, want_weights) in zip(trace, want, strict=True):
                close = {"rtol": 1e-5, "msg": str(case), "equal_nan": True}
                torch.testing.assert_close(norms, want_norms, atol=0, **close)
                torch.testing.assert_close(weights, want_weights, atol=1e-6, **close)
