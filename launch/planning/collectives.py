"""The collectives of a step: those of the objective, counted, and those of the strategy.

In: an objective and the shapes of its features; a strategy's name and the model. Out: for each
kind of collective its calls and bytes. Bytes are those of the long side: what an all-gather
returns, what a reduce-scatter takes, an all-reduced tensor, what a rank sends to the next.

The objective runs for a few rows on torch's fake process group, where every rank is there and
nothing travels. All bytes grow in proportion to the rows, but for a constant.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...losses.base import PairwiseTerm
from ...losses.objective import Objective
from ...models.two_tower import TwoTower
from ...train.torch_internals import fake_process_group
from .counting import product_flops
from .devices import MICRO, Device

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "send"]
KINDS: dict[str, Kind] = {
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
    "send": "send",
}
# How often a tensor crosses a link; of all of it but one rank's part.
CROSSINGS = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
FEW = 2, 4  # rows
# Names of the strategy that cuts everything, over all devices or over those of a node.
FSDP2 = "fsdp2", "hsdp"
# torch.nn.parallel.DistributedDataParallel's: of the first bucket, and of all others.
BUCKETS = 1 << 20, 25 << 20


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind and purpose in a step.

    Attributes:
        purpose: exchange (of features), gradients, parameters.
        kind: of the collective.
        calls: of it.
        bytes: of all of them, on the long side.
        ranks: that take part; 0: all.
        stays_in_node: whether these are of one node, however many nodes there are.
    """

    purpose: Literal["exchange", "gradients", "parameters"]
    kind: Kind
    calls: int
    bytes: float
    ranks: int = 0
    stays_in_node: bool = False

    def seconds(self, world_size: int, device: Device, is_one_node: bool) -> float:
        """Returns the time that it takes when nothing else happens."""
        crossings = CROSSINGS.get(self.kind, 1)
        ranks = self.ranks or world_size
        share = 1.0 if self.kind == "send" else (ranks - 1) / ranks
        link = device.link(is_one_node or self.stays_in_node)
        travelling = self.bytes * crossings * share / link
        return travelling + self.calls * device.microseconds["collective"] * MICRO


@dataclass(frozen=True)
class LossCount:
    """What the objective does in one step of a rank.

    Attributes:
        collectives: of all its terms.
        flops: of its matrix products.
    """

    collectives: list[Collective]
    flops: float


def of_objective(
    objective: Objective,
    features: Mapping[str, Tensor],
    batch: Mapping[str, Any],
    rows: int,
    world_size: int,
) -> LossCount | str:
    """Runs the objective for a few rows; returns what it does for `rows`, or why it cannot run.

    Args:
        objective: on the CPU.
        features: of the student, for `rows` pairs, of which only shapes are read.
        batch: the same pairs' entries, likewise.
        rows: pairs of a rank.
        world_size: ranks.
    """
    for module in objective.modules():
        if isinstance(module, PairwiseTerm):
            module.tile_bytes = 1  # logits are computed again in the backward pass, as of a batch
    seen = []
    for few in FEW:
        small, entries = (
            {name: _small(x, rows, few) for name, x in given.items() if isinstance(x, Tensor)}
            for given in (features, batch)
        )
        counter = _Collectives()
        objective.batch_rows = {"": few}
        try:
            with fake_process_group(world_size), counter:
                loss, _ = objective(small, entries)
                loss.backward()
        except Exception as error:  # of a term that reads what only a run has
            return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        seen.append(counter)
    first, second = seen
    collectives = []
    for kind, calls in second.calls.items():
        slope = (second.bytes[kind] - first.bytes[kind]) / (FEW[1] - FEW[0])
        size = first.bytes[kind] + slope * (rows - FEW[0])
        collectives.append(Collective("exchange", kind, calls, size))
    # A part by row, a part by pair.
    by_pair = (second.flops / FEW[1] - first.flops / FEW[0]) / (FEW[1] - FEW[0])
    by_row = first.flops / FEW[0] - by_pair * FEW[0]
    return LossCount(collectives, by_row * rows + by_pair * rows**2)


def _small(feature: Tensor, rows: int, few: int) -> Tensor:
    """Returns a tensor of a few rows; numbers (scale and bias) as they are, with a value."""
    is_rows = feature.ndim > 0 and len(feature) == rows
    shape = (few, *feature.shape[1:]) if is_rows else feature.shape
    if not feature.is_floating_point():
        return torch.ones(shape, dtype=feature.dtype)
    if feature.ndim < 2:
        return torch.ones(shape).requires_grad_()
    return F.normalize(torch.randn(shape), dim=-1).requires_grad_()


class _Collectives(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Kind] = Counter()
        self.bytes: Counter[Kind] = Counter()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        space, _, name = func._schema.name.partition("::")
        if space == "c10d" and (kind := KINDS.get(name)):
            tensors = args[1] if kind == "reduce-scatter" else args[0]
            leaves = [x for x in tree_leaves(tensors) if isinstance(x, Tensor)]
            self.calls[kind] += 1
            self.bytes[kind] += sum(x.numel() * x.element_size() for x in leaves)
        self.flops += product_flops(func, args, kwargs, result) or 0.0
        return result


def of_strategy(
    strategy: str,
    model: TwoTower,
    calls: Mapping[nn.Module, int],
    world_size: int,
    precision: str = "32-true",
    nodes: int = 1,
) -> list[Collective]:
    """Returns what a strategy sends beside the loss.

    Args:
        strategy: a name of `trainer.strategy`.
        model: whose parameters and gradients travel.
        calls: of each layer in a step, without recomputation.
        world_size: ranks.
        precision: Lightning's name, such as bf16-mixed.
        nodes: over which the ranks are spread.
    """
    if world_size == 1:
        return []
    trained = [p for p in model.parameters() if p.requires_grad]
    size = sum(map(_bytes, trained))
    if strategy in FSDP2:
        return _fsdp2(model, world_size, precision, nodes if strategy == "hsdp" else 1)
    if strategy.startswith("zero3"):
        whole = sum(map(_bytes, model.parameters()))
        mean = math.fsum(calls.values()) / max(1, len(calls))
        return [
            Collective(
                "parameters", "all-gather", round(2 * sum(calls.values())), 2 * mean * whole
            ),
            Collective("gradients", "reduce-scatter", len(calls), size),
        ]
    if strategy.startswith("zero"):
        return [
            Collective("gradients", "reduce-scatter", math.ceil(size / 1e9), size),
            Collective("parameters", "all-gather", math.ceil(size / 1e9), size),
        ]
    count, width = num_buckets(map(_bytes, trained)), 0.5 if strategy == "ddp_bf16" else 1.0
    return [Collective("gradients", "all-reduce", count, size * width)]


def num_buckets(sizes: Iterable[int]) -> int:
    """Returns how many buckets DDP makes of gradients of these bytes, the last parameter first."""
    count, filled, limit = 0, 0, BUCKETS[0]
    for size in reversed(list(sizes)):
        filled += size
        if filled >= limit:
            count, filled, limit = count + 1, 0, BUCKETS[1]
    return count + bool(filled)


def _fsdp2(model: TwoTower, world_size: int, precision: str, copies: int) -> list[Collective]:
    """As `Fsdp2.shard`: layers that a step may call several times are gathered once, else twice.

    With a copy on each node, that is among the ranks of a node, and each adds up its part of the
    gradients with those of the same place on other nodes.
    """
    shards = world_size // copies
    layers = list(model.layers())
    inside = {p for layer in layers for p in layer.parameters()}
    rest = [p for p in model.parameters() if p not in inside]
    gathers, size = 1, sum(padded_bytes(p, shards) for p in rest)
    scattered = sum(padded_bytes(p, shards) for p in rest if p.requires_grad)
    width = 0.5 if precision == "bf16-mixed" else 1.0
    stays_whole = model.most_calls > 1
    for layer in layers:
        whole = sum(padded_bytes(p, shards) for p in layer.parameters())
        is_trained = any(p.requires_grad for p in layer.parameters())
        times = 1 if stays_whole else 1 + is_trained
        gathers, size = gathers + times, size + times * whole * width
        scattered += whole * is_trained
    found = [
        Collective("parameters", "all-gather", gathers, size, shards, copies > 1),
        Collective("gradients", "reduce-scatter", 1 + len(layers), scattered, shards, copies > 1),
    ]
    if copies > 1:
        part = scattered / shards
        found.append(Collective("gradients", "all-reduce", 1 + len(layers), part, copies))
    return found


def padded_bytes(parameter: Tensor, world_size: int) -> int:
    """Returns a parameter's bytes with the rows that FSDP2 adds to divide them over ranks."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return _bytes(parameter) // rows * math.ceil(rows / world_size) * world_size


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
