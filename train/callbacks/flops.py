"""Floating-point operations of the towers, and how much of the machine's peak they are.

In: the towers, as they are called in training. Out: FLOPs, counted by torch's own counter: once for
each shape of a row that a tower is called with, on a copy without memory (device `meta`). So
reducers, trimmed captions, frozen parameters, views and frozen towers count with what they really
compute.

Model FLOPs are those of one forward and, where gradients flow, one backward pass; hardware FLOPs
include recomputation. Attention counts as matrix products, causal or not, whichever
kernel computes it. The objective (0.1-0.3% of a ViT-B's step at a batch of 32k) and elementwise
operations are left out. Chowdhery et al., "PaLM" (2022), appendix B, define the utilisation.
"""

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...models.packing import Packed
from ...models.two_tower import TwoTower
from ..screen import log_line
from ..torch_internals import is_in_backward

DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
# Rows of which costs are counted; those of other numbers of rows lie on a line. Parts of captions
# have another number in almost every step, and counting one of a ViT-B/32 takes half a second.
FEW = 2, 4
# Of the products that measure a peak: sides, and how much longer one of twice the side may take (8
# times the work, outside of caches, the first of its size).
SMALLEST, LARGEST, GROWTH = 64, {"cuda": 8192, "cpu": 1024}, 24


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
    """Counts the calls of models' towers and projections and adds up their FLOPs.

    It must be made before a strategy wraps or a backend compiles the models, which it copies.

    Args:
        models: whose calls are counted, frozen ones too.

    Attributes:
        listening: whether calls are counted; evaluation's are not.
    """

    def __init__(self, models: Iterable[TwoTower]):
        self.listening = False
        self._calls: Counter[Call] = Counter()
        self._packed: dict[Call, np.ndarray] = {}
        self._costs: dict[Call, tuple[Any, Any]] = {}
        self._uncounted: set[str] = set()
        for model in models:
            twin = on_meta(model)
            twins = dict(zip(model.components(), twin.components(), strict=True))
            for part, its_twin in twins.items():  # a shared projection is one part
                part.register_forward_pre_hook(partial(self._note, its_twin))

    def _note(self, twin: nn.Module, part: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self.listening:
            return
        modes = torch.is_grad_enabled(), is_in_backward()
        if isinstance(inputs[0], Packed):
            call, behind = Call(twin, (), *modes), inputs[0].lengths - 1
            sums = np.array([len(behind), behind.sum(), (behind * (behind - 1) // 2).sum()])
            self._packed[call] = self._packed.get(call, 0) + sums
            return
        shapes = tuple(
            None if x is None else Input(x.shape, x.dtype, x.requires_grad) for x in inputs
        )
        self._calls[Call(twin, shapes, *modes)] += 1

    def take(self) -> tuple[float, float]:
        """Returns (model FLOPs, hardware FLOPs) of this rank since the last call.

        NaN where a tower cannot be counted; the reason is printed once for each kind of tower.
        """
        model = hardware = 0.0
        for call, count in self._calls.items():
            forward, backward = self._cost_by_rows(call)
            hardware += count * (forward if call.again else forward + backward)
            model += 0 if call.again else count * (forward + backward)
        for call, sums in self._packed.items():
            if call not in self._costs:
                self._costs[call] = self._cost_if_known(call, packed_cost)
            forward, backward = (float(np.sum(each * sums)) for each in self._costs[call])
            hardware += forward if call.again else forward + backward
            model += 0 if call.again else forward + backward
        self._calls.clear()
        self._packed.clear()
        return model, hardware

    def _cost_by_rows(self, call: Call) -> tuple[float, float]:
        """Returns the cost of a call from those of two others that have few rows."""
        rows = {x.size[0] for x in call.inputs if x is not None and x.size}
        some = [call] if len(rows) != 1 else [with_rows(call, few) for few in FEW]
        for one in some:
            if one not in self._costs:
                self._costs[one] = self._cost_if_known(one, cost)
        first, last = self._costs[some[0]], self._costs[some[-1]]
        more = (rows.pop() - FEW[0]) / (FEW[1] - FEW[0]) if len(rows) == 1 else 0.0
        forward, backward = (a + more * (b - a) for a, b in zip(first, last, strict=True))
        return forward, backward

    def _cost_if_known(self, call: Call, function: Callable[[Call], Any]) -> tuple[Any, Any]:
        try:
            return function(call)
        except (RuntimeError, NotImplementedError) as error:
            kind = type(call.part).__name__
            if kind not in self._uncounted and rank_zero_only.rank == 0:
                log_line(
                    f"the FLOPs of {kind} are not known, because it looks at its data: {error}"
                )
            self._uncounted.add(kind)
            return math.nan, math.nan


def with_rows(call: Call, rows: int) -> Call:
    """Returns a call of another number of rows."""
    inputs = (x and x._replace(size=torch.Size((rows, *x.size[1:]))) for x in call.inputs)
    return call._replace(inputs=tuple(inputs))


def cost(call: Call) -> tuple[int, int]:
    """Returns a call's FLOPs of the forward and of the backward pass, counted without memory."""
    inputs = [x and torch.empty(**x._asdict(), device="meta") for x in call.inputs]
    counter = FlopCounterMode(display=False)
    with torch.set_grad_enabled(call.with_grad), sdpa_kernel(SDPBackend.MATH), counter:
        result = call.part(*inputs)
        forward = counter.get_total_flops()
        if result.requires_grad:
            result.sum().backward()
    call.part.zero_grad()
    return forward, counter.get_total_flops() - forward


def packed_cost(call: Call) -> tuple[np.ndarray, np.ndarray]:
    """Returns a packed call's FLOPs, by three numbers for each pass.

    Those of a caption are a polynomial of second degree in its tokens: f(1), and the two
    differences that follow. They are multiplied by the captions' 1, n - 1 and (n - 1)(n - 2) / 2.
    """
    ids = (Input(torch.Size((1, tokens)), torch.int64, False) for tokens in (1, 2, 3))
    length = Input(torch.Size((1,)), torch.int64, False)
    costs = np.array([cost(call._replace(inputs=(each, length))) for each in ids])
    differences = np.array([[1, 0, 0], [-1, 1, 0], [1, -2, 1]]) @ costs
    return differences[:, 0], differences[:, 1]


def on_meta(model: TwoTower) -> TwoTower:
    """Copies a model to device `meta`: its parameters and buffers have shapes only."""
    memo: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    for p in model.parameters():
        empty = torch.empty_like(p, device="meta")
        memo[id(p)] = nn.Parameter(empty, requires_grad=p.requires_grad)
    return copy.deepcopy(model, memo)


def measure_peak(device: torch.device, precision: str, seconds: float = 0.2) -> float:
    """Returns the FLOP/s of the fastest large matrix product that fits into `seconds`.

    Sizes double as long as the next one surely fits, so that a device that is slow at a precision
    costs no more than a fast one. The first product of all, which loads libraries, is not counted.
    A CPU is measured on one thread: beside other work several threads wait for one another.
    `precision` is Lightning's name of it, such as `bf16-mixed`.
    """
    dtype = next((d for name, d in DTYPES.items() if precision.startswith(name)), torch.float32)
    size, best = SMALLEST, 0.0
    with one_thread() as num_threads:
        a, b = random_matrices(size, dtype, device)
        product_seconds(a, b)
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            taken = product_seconds(a, b)
            best = max(best, 2 * size**3 / taken)
            if size < LARGEST.get(device.type, 1024) and GROWTH * taken < left:
                size *= 2
                a, b = random_matrices(size, dtype, device)
    return best * (num_threads if device.type == "cpu" else 1)


@contextmanager
def one_thread() -> Iterator[int]:
    """Computes on one thread inside; yields the number of threads outside."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield num_threads
    finally:
        torch.set_num_threads(num_threads)


def random_matrices(
    size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Returns two square matrices of normal numbers, leaving torch's generator alone.

    Random ones: a GPU multiplies constants faster, since they cost it less power.
    """
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    return a, b


def product_seconds(a: Tensor, b: Tensor) -> float:
    """Returns the seconds that a product of two matrices takes; of a CPU, its thread's own time.

    Other jobs on a processor take its time from the thread in the middle of a product.
    """
    is_cuda = a.device.type == "cuda"
    clock = time.perf_counter if is_cuda else time.thread_time
    start = clock()
    torch.mm(a, b)
    if is_cuda:
        torch.cuda.synchronize(a.device)
    return clock() - start
