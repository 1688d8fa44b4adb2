"""Bytes of collectives against closed forms, and of strategies against what torch makes."""

import pytest
import torch
import torch.distributed as dist
from tiny_tower import tiny_vit

from counterpoint.launch.planning.collectives import (
    LossCount,
    num_buckets,
    of_objective,
    of_strategy,
    padded_bytes,
)
from counterpoint.losses.distributed.exchange import Ring
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.siglip import SigLIP
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.strategies.fsdp2 import fully_shard
from counterpoint.train.torch_internals import fake_process_group

ROWS, D = 96, 32


def features():
    sides = {name: torch.empty(ROWS, D, device="meta") for name in ("image", "text")}
    return sides | {n: torch.empty(1, device="meta") for n in ("logit_scale", "logit_bias")}


def counted(term, world_size):
    found = of_objective(Objective({"term": term}), features(), {}, ROWS, world_size)
    assert isinstance(found, LossCount), found
    assert not dist.is_initialized()
    return {each.kind: each for each in found.collectives}, found.flops


@pytest.mark.parametrize("world_size", [2, 64, 512])
@pytest.mark.parametrize("term", [InfoNCE, SigLIP])
def test_an_all_gather_moves_columns_once_each_way(term, world_size):
    """4Bd there, 4Bd back; of a softmax 4B of gradients by column and twice 4B of its sums."""
    total = world_size * ROWS
    kinds, flops = counted(term(), world_size)
    is_softmax = term is InfoNCE
    gathered = 4 * total * (D + is_softmax)
    assert kinds["all-gather"].bytes == gathered
    assert kinds["reduce-scatter"].bytes == 4 * total * D
    assert kinds["all-reduce"].bytes == 8 * total * is_softmax + 4
    # Logits, logits again, gradients by rows and by columns.
    assert flops == pytest.approx(4 * 2 * ROWS * total * D, rel=0.02)


@pytest.mark.parametrize("world_size", [2, pytest.param(64, marks=pytest.mark.soak)])
def test_a_ring_sends_three_times_as_often_as_there_are_ranks(world_size):
    kinds, flops = counted(InfoNCE(exchange=Ring()), world_size)
    assert kinds["send"].calls == 3 * world_size - 2
    assert kinds["send"].bytes == 4 * (3 * world_size - 2) * ROWS * D
    assert flops == pytest.approx(8 * ROWS * ROWS * world_size * D, rel=0.02)


def test_a_term_that_reads_what_only_a_run_has_is_said_not_guessed():
    found = of_objective(Objective({"a": InfoNCE(scale="curvature")}), features(), {}, ROWS, 2)
    assert isinstance(found, str) and "curvature" in found
    assert not dist.is_initialized()


def two_tower():
    return TwoTower(tiny_vit(2, 16), ClipTextTower(16, 1, 2, 8, vocab_size=50), 8)


def test_ddp_reduces_each_gradient_once():
    model = two_tower()
    model.image.requires_grad_(False)
    (found,) = of_strategy("auto", model, {}, 8)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (found.kind, found.bytes, found.calls) == ("all-reduce", 4 * trained, 1)
    assert of_strategy("ddp", model, {}, 1) == []


def test_buckets_are_those_of_torch():
    sizes = [5_000_000, 300_000, 26_000_000, 40, 9_000_000, 12_000_000, 8_000_000, 700_000]
    parameters = [torch.empty(size // 4, device="meta") for size in sizes]
    limits = [1 << 20, 25 << 20]
    buckets, _ = dist._compute_bucket_assignment_by_size(parameters[::-1], limits)
    assert num_buckets(sizes) == len(buckets) > 2


class Gathers(torch.utils._python_dispatch.TorchDispatchMode):
    """Adds up what FSDP2 gathers and scatters."""

    def __init__(self):
        super().__init__()
        self.bytes, self.calls = {"gather": 0, "scatter": 0, "reduce": 0}, 0
        self.reduced = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name == "c10d::_allgather_base_":
            self.calls += 1
            self.bytes["gather"] += args[0].numel() * args[0].element_size()
        elif name == "c10d::_reduce_scatter_base_":
            self.bytes["scatter"] += args[1].numel() * args[1].element_size()
        elif name == "c10d::allreduce_":
            self.bytes["reduce"] += sum(x.numel() * x.element_size() for x in args[0])
            self.reduced += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("text_parts", [1, 3])
def test_fsdp2_gathers_what_torch_gathers(text_parts, nodes):
    """A real step as `Fsdp2` shards it, on torch's fake group, of which we are rank 0 of 4.

    On two nodes as `hsdp`: half of a copy each, so that 4 rows are padded to 2 times 2, not 4.
    """
    text = ClipTextTower(16, 1, 2, 8, vocab_size=50)
    model = TwoTower(tiny_vit(2, 16), text, 8, text_parts=text_parts)
    calls = dict.fromkeys(model.image.layers(), 1) | dict.fromkeys(text.layers(), text_parts)
    name, per_node = ("fsdp2", 4) if nodes == 1 else ("hsdp", 2)
    parameters, gradients, *across = of_strategy(name, model, calls, 4, nodes=nodes)
    whole = sum(padded_bytes(p, per_node) for p in model.parameters())
    batch = {
        "image": torch.zeros(6, 3, 16, 16, dtype=torch.uint8),
        "text": torch.ones(6, 8, dtype=torch.int64),
        "text_length": torch.full((6,), 8),
    }
    with fake_process_group(4):
        mesh = dist.device_mesh.init_device_mesh(
            "cpu", (4,) if nodes == 1 else (2, 2), mesh_dim_names=("copy", "part")[nodes % 2 :]
        )
        for layer in model.layers():
            sharded = fully_shard(layer, mesh=mesh, reshard_after_forward=text_parts == 1)
            sharded.set_reshard_after_backward(text_parts == 1)
        fully_shard(model, mesh=mesh)
        with Gathers() as seen:
            made = model(batch)
            sum(made[name].sum() for name in ("image", "text", "logit_scale")).backward()
    assert gradients.bytes == whole == seen.bytes["scatter"]
    assert (parameters.bytes, parameters.calls) == (seen.bytes["gather"], seen.calls)
    assert [(each.bytes, each.calls) for each in across] == [
        (seen.bytes["reduce"], seen.reduced) for _ in range(nodes - 1)
    ]
    half, *_ = of_strategy(name, model, calls, 4, "bf16-mixed", nodes)
    assert half.calls == parameters.calls and half.bytes < parameters.bytes
