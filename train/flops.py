"""What the towers compute: floating-point operations, and how much of the machine's peak they are.

In: the towers, as they are called in training. Out: FLOPs, counted by torch's own counter: once for
each shape that a tower is called with, on a copy without memory (device `meta`). So reducers,
trimmed captions, frozen parameters, views and frozen towers count as what is computed of them.

Model FLOPs are those of one forward and, where gradients flow, one backward pass; hardware FLOPs
also have what is computed again. Attention counts as matrix products, causal or not, whichever
kernel computes it. The objective (0.1-0.3% of a ViT-B's step at a batch of 32k) and elementwise
operations are left out. Chowdhery et al., "PaLM" (2022), appendix B, define the utilisation.
"""

import copy
import math
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PARTS = ("image", "text", "image_projection", "text_projection")
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


class Input(NamedTuple):
    """One argument of a call, as far as its cost depends on it."""

    size: torch.Size
    dtype: torch.dtype
    requires_grad: bool


class Call(NamedTuple):
    """A call of a part of a model, with or without gradients, the first time or again."""

    part: nn.Module
    inputs: tuple[Input | None, ...]
    with_grad: bool
    again: bool


class FlopMeter:
    """Listens to the calls of models' towers and projections and adds up what they cost.

    Made before a strategy wraps or a backend compiles the models: the copies stay as they are here.

    Args:
        models: `TwoTower`s, frozen ones too.

    Attributes:
        listening: whether calls count; evaluation's do not.
    """

    def __init__(self, models: Iterable[nn.Module]):
        self.listening = False
        self._calls: Counter[Call] = Counter()
        self._costs: dict[Call, tuple[float, float]] = {}
        for model in models:
            twin = on_meta(model)
            parts = {getattr(model, name): getattr(twin, name) for name in PARTS}
            for part, its_twin in parts.items():  # a shared projection is one part
                part.register_forward_pre_hook(partial(self._note, its_twin))

    def _note(self, twin: nn.Module, part: nn.Module, inputs: tuple[Tensor | None, ...]) -> None:
        if self.listening:
            shapes = tuple(
                None if x is None else Input(x.shape, x.dtype, x.requires_grad) for x in inputs
            )
            # Inside of a backward pass a call is a recomputation.
            again = torch._C._current_graph_task_id() != -1
            self._calls[Call(twin, shapes, torch.is_grad_enabled(), again)] += 1

    def take(self) -> tuple[float, float]:
        """Returns (model FLOPs, hardware FLOPs) of this rank since the last time.

        Nan where a tower cannot be counted; why is printed once for each shape.
        """
        model = hardware = 0.0
        for call, count in self._calls.items():
            if call not in self._costs:
                self._costs[call] = _cost_if_known(call)
            forward, backward = self._costs[call]
            hardware += count * (forward if call.again else forward + backward)
            model += 0 if call.again else count * (forward + backward)
        self._calls.clear()
        return model, hardware


def cost(call: Call) -> tuple[int, int]:
    """Counts a call of a part without memory: FLOPs of the forward and of the backward pass."""
    inputs = [x and torch.empty(**x._asdict(), device="meta") for x in call.inputs]
    counter = FlopCounterMode(display=False)
    with torch.set_grad_enabled(call.with_grad), sdpa_kernel(SDPBackend.MATH), counter:
        result = call.part(*inputs)
        forward = counter.get_total_flops()
        if result.requires_grad:
            result.sum().backward()
    call.part.zero_grad()
    return forward, counter.get_total_flops() - forward


def _cost_if_known(call: Call) -> tuple[float, float]:
    try:
        return cost(call)
    except (RuntimeError, NotImplementedError) as error:
        print(
            f"the FLOPs of {type(call.part).__name__} are not known, because it looks at its data: "
            f"{error}",
            flush=True,
        )
        return math.nan, math.nan


def on_meta(model: nn.Module) -> Any:
    """A copy of a model whose parameters and buffers have shapes only."""
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for p in model.parameters():
        empty = torch.empty_like(p, device="meta")
        memo[id(p)] = nn.Parameter(empty, requires_grad=p.requires_grad)
    return copy.deepcopy(model, memo)


def measured_peak(device: torch.device, precision: str, seconds: float = 0.1) -> float:
    """FLOP/s of one large matrix product: the fastest of those that fit into `seconds`.

    Args:
        device: this rank's.
        precision: Lightning's name of it, such as `bf16-mixed`.
        seconds: to spend, after one product that does not count.
    """
    dtype = next((d for name, d in DTYPES.items() if precision.startswith(name)), torch.float32)
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    best, end = float("inf"), None
    while end is None or time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if end is None:
            end = now + seconds
        best = min(best, now - start)
    return 2 * size**3 / best
