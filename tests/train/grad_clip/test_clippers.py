"""Gradients before and after clipping: one process, DDP, FSDP2."""

import copy

import pytest
import torch
from small_run import module, train
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from counterpoint.train.grad_clip.agc import AGC
from counterpoint.train.grad_clip.autoclip import AutoClip
from counterpoint.train.grad_clip.fixed import Norm, Value
from counterpoint.train.grad_clip.per_tower import PerTower
from counterpoint.train.grad_clip.zclip import ZClip
from counterpoint.train.strategies.sharded_tensors import LocalTensors, ShardedTensors

CLIPPERS = {
    "norm": lambda: Norm(0.3),
    "value": lambda: Value(0.02),
    "towers": lambda: PerTower({"image": Norm(0.2), "rest": ZClip(warmup=3, z=0.5)}),
    "agc": lambda: AGC(0.05),
    "autoclip": lambda: AutoClip(20.0, window=8),
    "zclip": lambda: ZClip(warmup=3, z=0.5),
}


class Model(nn.Module):
    """Names as of the two-tower model; the image tower has 7 output units: uneven shards."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.image = nn.Sequential(nn.Conv2d(3, 7, 2), nn.Flatten(), nn.Linear(28, 5))
        self.text = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5))
        self.image_projection = nn.Linear(5, 3, bias=False)
        self.text_projection = nn.Linear(5, 3, bias=False)
        self.logit_scale = nn.Parameter(torch.ones(1))

    def forward(self, image, text):
        u = self.image_projection(self.image(image))
        v = self.text_projection(self.text(text).mean(1))
        return self.logit_scale.exp() * (u - v).square().sum(-1).mean()


def batches(steps):
    g = torch.Generator().manual_seed(2)
    for step in range(steps):
        size = 1 + (step % 3)  # norms rise and fall
        yield size * torch.randn(4, 3, 3, 3, generator=g), torch.randint(0, 9, (4, 6), generator=g)


def run(rank, world_size, strategy, name, steps=5):
    """Trains with one clipper; returns norms, limits and the last gradients."""
    model = Model()
    wrapped = model
    if strategy == "ddp":
        wrapped = DistributedDataParallel(model)
    elif strategy == "fsdp2":
        mesh = init_device_mesh("cpu", (world_size,))
        for part in (model.image, model.text):
            fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    named = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    clipper, trace = CLIPPERS[name](), []
    for image, text in batches(steps):
        optimizer.zero_grad()
        wrapped(image[rank::world_size], text[rank::world_size]).backward()
        tensors = ShardedTensors() if strategy == "fsdp2" else LocalTensors()
        clipped = clipper.clip(tensors, named)
        trace.append([clipped.norm.item(), *(v.item() for v in clipped.report.values())])
        optimizer.step()
    whole = {
        n: g.full_tensor() if hasattr(g := p.grad, "full_tensor") else g for n, p in named.items()
    }
    return trace, {n: g.clone() for n, g in whole.items()}


def every(rank, world_size, strategy):
    return {name: run(rank, world_size, strategy, name) for name in CLIPPERS}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_clippers_do_the_same_on_two_ranks(gloo, strategy):
    results = gloo(2, every, strategy)
    for name in CLIPPERS:
        want_trace, want = run(0, 1, "single", name)
        for result in results:
            trace, gradients = result[name]
            torch.testing.assert_close(trace, want_trace, rtol=1e-5, atol=0, msg=name)
            for key in want:
                torch.testing.assert_close(gradients[key], want[key], rtol=1e-4, atol=1e-7)


def skip_once(rank, world_size, fused):
    """A NaN on one rank, under FSDP2."""
    model = Model()
    fully_shard(model, mesh=init_device_mesh("cpu", (world_size,)))
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    seen = []
    for step, (image, text) in enumerate(batches(3)):
        if step == 1 and rank == 1:
            image = image * torch.nan
        optimizer.zero_grad()
        model(image, text).backward()
        tensors = ShardedTensors()
        norm = tensors.norms([list(named.values())])[0]
        tensors.drop(optimizer, list(named.values()), ~norm.isfinite())
        optimizer.step()
        seen.append([p.full_tensor().detach().clone() for p in named.values()])
    return seen


@pytest.mark.parametrize("fused", [False, True])
def test_a_nan_of_one_rank_skips_the_step_of_all(gloo, fused):
    for first, second, third in gloo(2, skip_once, fused):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert all(b.isfinite().all() for b in third)
        assert not any(torch.equal(a, b) for a, b in zip(second, third, strict=True))


def backward(scale=1.0):
    model = Model()
    image, text = next(batches(1))
    (scale * model(image, text)).backward()
    return model, dict(model.named_parameters())


def test_norm_equals_torch():
    model, named = backward()
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()
    norm = nn.utils.clip_grad_norm_(other.parameters(), 0.25)
    clipped = Norm(0.25).clip(LocalTensors(), named)
    assert norm > 0.25 and clipped.norm == norm
    assert clipped.report["grad_clip/clipped"] == 1 and clipped.report["grad_clip/limit"] == 0.25
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    before = [p.grad.clone() for p in model.parameters()]
    Norm(1e6).clip(LocalTensors(), named)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


def test_value_clamps_every_element():
    _, named = backward()
    want = {n: p.grad.clip(-0.03, 0.03) for n, p in named.items()}
    assert any(not torch.equal(want[n], p.grad) for n, p in named.items())
    Value(0.03).clip(LocalTensors(), named)
    assert all(torch.equal(want[n], p.grad) for n, p in named.items())


def test_agc_row_by_row():
    model, named = backward()
    with torch.no_grad():
        model.image[0].weight[3] = 0  # a row below eps
    ratio, eps = 0.02, 1e-3
    want, changed = {n: p.grad.clone() for n, p in named.items()}, 0
    for name in ("image.0.weight", "image.2.weight", "text.0.weight", "text.1.weight"):
        for row, gradient in zip(named[name].detach(), want[name], strict=True):
            largest = ratio * max(float(row.double().square().sum().sqrt()), eps)
            size = float(gradient.double().square().sum().sqrt())
            if size > largest:
                gradient *= largest / size
                changed += 1
    assert 0 < changed < sum(named[n].shape[0] for n in named if named[n].ndim >= 2)
    AGC(ratio, eps).clip(LocalTensors(), named)
    for name in want:  # biases, projections and the scale are as they were
        torch.testing.assert_close(named[name].grad, want[name], rtol=1e-5, atol=0, msg=name)


def test_towers_are_clipped_by_themselves():
    _, named = backward()
    before = {n: p.grad.clone() for n, p in named.items()}
    image = [n for n in named if n.startswith("image")]
    assert "image_projection.weight" in image
    norm = torch.cat([before[n].flatten() for n in image]).norm()
    clipped = PerTower({"image": Norm(0.1)}).clip(LocalTensors(), named)
    torch.testing.assert_close(clipped.report["grad_clip/image/norm"], norm)
    for name in named:
        factor = 0.1 / norm if name in image else 1.0
        torch.testing.assert_close(named[name].grad, before[name] * factor, rtol=1e-4, atol=0)
    total = torch.cat([g.flatten() for g in before.values()]).norm()
    torch.testing.assert_close(clipped.norm, total)
    with pytest.raises(ValueError, match="picture"):
        PerTower({"picture": Norm()})


def test_states_of_towers_go_into_the_checkpoint_together():
    towers = PerTower({"image": ZClip(warmup=2), "text": AutoClip(window=3)})
    _, named = backward()
    for _ in range(4):
        towers.clip(LocalTensors(), named)
    again = PerTower({"image": ZClip(warmup=2), "text": AutoClip(window=3)})
    again.load_state_dict(towers.state_dict())
    assert again.state_dict().keys() == {
        *(f"image.{k}" for k in ("history", "count", "streak", "mean", "var")),
        *(f"text.{k}" for k in ("history", "count")),
    }
    for key, value in towers.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    towers.reset()
    assert all(not value.any() for value in towers.state_dict().values())


@pytest.mark.parametrize(
    ("algorithm", "clipper"), [(None, "Norm"), ("norm", "Norm"), ("value", "Value")]
)
def test_the_limit_of_a_trainer_is_refused(algorithm, clipper):
    made = module(2)
    refused = rf"is 0\.5: leave it out .* grad_clip={clipper}\(0\.5\)"
    with pytest.raises(ValueError, match=refused):
        train(made, 1, "auto", gradient_clip_val=0.5, gradient_clip_algorithm=algorithm)
    assert made.losses == []


def test_a_parameter_without_gradient_is_passed_over():
    model, named = backward()
    model.text_projection.weight.grad = None
    for make in CLIPPERS.values():
        make().clip(LocalTensors(), named)
    assert model.text_projection.weight.grad is None
