"""One step of the towers on device `meta`, operation by operation: FLOPs, time by roofline, memory.

In: the model and a batch without memory. Out: counts. torch's dispatcher, autograd and
recomputation run as in training, so that any tower counts with what it does: what is kept for the
backward pass is what autograd keeps, and memory is freed where Python and autograd free it.

Two things that have no form on `meta` are imitated: autocast, by the operations that CUDA's casts,
and the fused attention kernel, which keeps its inputs, its output and one number a row.
"""

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from ...models.half_weights import HalfWeights
from ...models.reducers.base import Reduction
from ...models.two_tower import TwoTower
from ...train.torch_internals import is_in_backward
from .devices import MICRO, Device

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# Operations that launch no kernel.
FREE = {
    *("alias", "as_strided", "detach", "diagonal", "empty", "empty_like", "empty_strided"),
    *("expand", "lift_fresh", "new_empty", "new_empty_strided", "permute", "select", "slice"),
    *("split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten"),
    *("unsqueeze", "view", "_reshape_alias", "_unsafe_view"),
}
# https://docs.pytorch.org/docs/stable/amp.html: what CUDA's autocast computes in fewer bits, and in
# fp32. The processor's leaves the second kind as it comes.
CAST_DOWN = {
    *(F.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.conv1d, torch.conv2d, torch.conv3d),
}
# Fused attention over packed captions, whose forms `meta` knows.
PACKED = ("_flash_attention_forward", "_flash_attention_backward")
CAST_UP = {
    *(F.layer_norm, F.group_norm, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax),
    *(torch.Tensor.softmax, torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log),
    *(torch.pow, torch.Tensor.pow, torch.cumsum, torch.Tensor.cumsum),
}


@dataclass
class StepCount:
    """What the towers do in one step of a rank.

    Attributes:
        model_flops, flops: of matrix products; without and with what is recomputed.
        seconds: on the device, by kind of operation.
        backward_seconds: of them, in the backward pass.
        launches: of kernels.
        operations: that the dispatcher is asked for, views among them.
        kept: bytes between forward and backward pass.
        activations: most bytes at once, parameters' gradients left out.
        peak: most bytes at once, parameters' gradients as they come to be.
        calls: of each layer, without recomputation.
        features: their shapes and types, by name.
    """

    model_flops: float = 0
    flops: float = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    backward_seconds: float = 0
    launches: int = 0
    operations: int = 0
    kept: int = 0
    activations: int = 0
    peak: int = 0
    calls: Counter[nn.Module] = field(default_factory=Counter)
    features: dict[str, Tensor] = field(default_factory=dict)


def count_step(
    model: TwoTower,
    batch: dict[str, Any],
    needs: frozenset[str],
    reduction: Reduction,
    device: Device,
    precision: str,
    half_weights: HalfWeights | None = None,
) -> StepCount:
    """Counts forward and backward pass of the towers.

    Args:
        model: on `meta`.
        batch: on `meta`, with the captions' lengths on the host.
        needs: features that the objective reads.
        reduction: what is left out.
        device: whose roofline times the operations.
        precision: Lightning's name, such as bf16-mixed.
        half_weights: copies of the weights that a step reads; None: autocast makes them.

    Raises:
        ValueError: a tower's work depends on its data.
    """
    given = [*model.parameters(), *model.buffers(), *filter(_is_meta, batch.values())]
    count = StepCount()
    counter = _Counter(device, given, count)
    imitation = _Imitation(AUTOCAST.get(precision), device.kind, counter)
    width = next(model.parameters()).dtype
    model.computes_on = device.kind, AUTOCAST.get(precision, width)
    with ExitStack() as stack:
        stack.enter_context(_watched(model, count, counter, imitation))
        if device.kind == "cpu" and precision.startswith("bf16"):
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # as `choose_attention` does
        stack.enter_context(counter)
        try:
            if half_weights is not None:
                half_weights.refresh()
            features = model(batch, needs | {"image", "text"}, reduction)
            count.kept = counter.live
            outputs = [x for x in features.values() if x.requires_grad and x.grad_fn is not None]
            torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                "the towers cannot be counted without memory, because one of them looks at its "
                f"data ({' '.join(str(error).split())[:200]}); measure a short run instead"
            ) from error
    count.features = {name: x.detach() for name, x in features.items()}
    model.computes_on = None
    for parameter in model.parameters():
        parameter.grad = None
    return count


@contextmanager
def _watched(
    model: TwoTower, count: StepCount, counter: "_Counter", imitation: "_Imitation"
) -> Iterator[None]:
    """Imitates inside of the towers; notes recomputation, calls of layers, and gradients."""

    def begin(*_: Any) -> None:
        # Not around everything: torch leaves a mode before it runs a backward pass.
        imitation.__enter__()
        counter.is_recomputing = is_in_backward()

    def end(*_: Any) -> None:
        counter.is_recomputing = False
        imitation.__exit__(None, None, None)

    def call(layer: nn.Module, *_: Any) -> None:
        count.calls[layer] += not is_in_backward()

    parts = dict.fromkeys(model.components())
    hooks = [part.register_forward_pre_hook(begin) for part in parts]
    hooks += [part.register_forward_hook(end, always_call=True) for part in parts]
    hooks += [layer.register_forward_pre_hook(call) for layer in model.layers()]
    trained = [p for p in model.parameters() if p.requires_grad]
    hooks += [p.register_post_accumulate_grad_hook(counter.note_gradient) for p in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Counter(TorchDispatchMode):
    """Counts operations on `meta`, and follows the memory that they make beside what is given."""

    def __init__(self, device: Device, given: Iterable[Tensor], count: StepCount):
        super().__init__()
        self.device, self.count = device, count
        self.live = self.gradients = 0
        self.is_recomputing = False
        self._given = [tensor.untyped_storage() for tensor in given]
        self._sizes = {storage._cdata: 0 for storage in self._given}
        self._has_gradient: set[int] = set()
        self._shapes = _Shapes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.count.operations += 1
        result = self._shapes.run(func, args, kwargs)
        made = [x for x in tree_leaves(result) if _is_meta(x)]
        for tensor in made:
            self._follow(tensor)
        name = func._schema.name.partition("::")[2]
        if name in FREE or not made:
            return result
        if name in PACKED:
            flops, tensors = packed_flops(name, args)
            self.add_attention(flops, (*tensors, *made[:3]), tensors[0].element_size() == 2)
            return result
        read = [x for x in tree_leaves((args, kwargs)) if _is_meta(x)]
        size = sum(x.numel() * x.element_size() for x in (*read, *made))
        flops = product_flops(func, args, kwargs, result)
        if flops is None:
            self._add(_kind(name), 0, size)
        else:
            is_half = any(x.element_size() == 2 for x in read)
            self._add("bf16 products" if is_half else "fp32 products", flops, size)
        return result

    def add_attention(self, flops: float, tensors: tuple[Tensor, ...], is_half: bool) -> None:
        """Counts one fused kernel."""
        size = sum(x.numel() * x.element_size() for x in tensors)
        self._add("attention" if is_half else "fp32 attention", flops, size)

    def note_gradient(self, parameter: Tensor) -> None:
        """Called when a parameter's gradient is there or has grown."""
        if id(parameter) not in self._has_gradient:
            self._has_gradient.add(id(parameter))
            self.gradients += parameter.numel() * parameter.element_size()

    def _add(self, kind: str, flops: float, size: int) -> None:
        device, least = self.device, self.device.microseconds["kernel"] * MICRO
        rate = {"bf16 products": "bf16", "attention": "attention"}.get(kind, "fp32")
        share = device.attained["attention"] if kind == "fp32 attention" else 1.0
        seconds = max(flops / (device.flops(rate) * share), size / device.memory_rate, least)
        self.count.flops += flops
        self.count.model_flops += 0 if self.is_recomputing else flops
        self.count.seconds[kind] += seconds
        self.count.backward_seconds += seconds if is_in_backward() else 0.0
        self.count.launches += 1

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        weakref.finalize(storage, self._forget, key)
        self.count.peak = max(self.count.peak, self.live)
        self.count.activations = max(self.count.activations, self.live - self.gradients)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class _Shapes:
    """Runs operations on `meta`, each once for the same shapes: most are slow to work them out."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Returns the operation's results, without values as ever."""
        schema = func._schema
        if schema.is_mutable or any(each.alias_info is not None for each in schema.returns):
            return func(*args, **kwargs)
        key = func, _key(args), _key(tuple(kwargs.items()))
        try:
            known = self._known.get(key)
        except TypeError:  # of an argument without a hash
            return func(*args, **kwargs)
        if known is not None:
            return tree_map_only(_Form, _Form.make, known)
        result = func(*args, **kwargs)
        leaves = tree_leaves(result)
        if leaves and all(_is_meta(x) for x in leaves):
            self._known[key] = tree_map_only(Tensor, _Form.of, result)
        return result


@dataclass(frozen=True)  # a named tuple would be taken apart
class _Form:
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "_Form":
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    def make(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value


class _Imitation(TorchFunctionMode):
    """Autocast to `dtype` (None: off), and fused attention, for tensors on `meta`."""

    def __init__(self, dtype: torch.dtype | None, kind: str, counter: _Counter):
        super().__init__()
        self.dtype, self.counter = dtype, counter
        self.up = CAST_UP if kind == "cuda" else set()
        self.is_fused = kind == "cuda" or dtype is None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            args, kwargs = self._cast(args, kwargs, self.dtype)
            if self.is_fused:
                return _attend(self.counter, *args, **kwargs)
        elif self.dtype is not None and func in CAST_DOWN:
            args, kwargs = self._cast(args, kwargs, self.dtype)
        elif self.dtype is not None and func in self.up:
            args, kwargs = self._cast(args, kwargs, torch.float32)
        return func(*args, **kwargs)

    def _cast(self, args: Any, kwargs: Any, dtype: torch.dtype | None) -> tuple[Any, Any]:
        cast = partial(_cast, dtype=dtype)
        return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


def _attend(
    counter: _Counter,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    **_: Any,
) -> Tensor:
    return _Attention.apply(query, key, value, counter)  # type: ignore[return-value]


class _Attention(torch.autograd.Function):
    """The shapes of a fused attention kernel; FLOPs as torch counts its plain products."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, counter: _Counter) -> Tensor:
        result = _by_token(query, value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, sums)
        ctx.counter = counter
        ctx.flops = 2 * query.shape[:-1].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])
        tensors = (query, key, value, result)
        counter.add_attention(ctx.flops, tensors, query.element_size() == 2)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result, _ = ctx.saved_tensors
        made = tuple(_by_token(x, x.shape[-1]) for x in (query, key, value))
        tensors = (query, key, value, result, grads[0], *made)
        ctx.counter.add_attention(2 * ctx.flops, tensors, query.element_size() == 2)
        return *made, None


def _by_token(like: Tensor, width: int) -> Tensor:
    """Returns a tensor [..., heads, tokens, width] with a token's heads beside one another.

    So do the kernels, and what follows needs no copy.
    """
    *outer, heads, tokens, _ = like.shape
    return like.new_empty(*outer, tokens, heads, width).transpose(-3, -2)


def product_flops(func: Any, args: Any, kwargs: Any, result: Any) -> float | None:
    """Returns the FLOPs of an operation that torch's counter knows, in place or not; else None."""
    space, _, name = func._schema.name.partition("::")
    out_of_place = getattr(getattr(torch.ops, space), name.removesuffix("_"), None)
    formula = flop_registry.get(func.overloadpacket) or flop_registry.get(out_of_place)
    return None if formula is None else formula(*args, **kwargs, out_val=result)


def packed_flops(name: str, args: Any) -> tuple[float, list[Tensor]]:
    """Returns FLOPs of attention over packed captions, as if all were of one length, and inputs.

    (Torch's counter takes all for the longest, since `meta` has no lengths. The few long ones make
    it half as much again, of about a hundredth of a step.)
    """
    is_forward = name == PACKED[0]
    inputs = [x for x in args[: 3 if is_forward else 5] if _is_meta(x)]
    query, starts = args[0 if is_forward else 1], args[3 if is_forward else 6]
    tokens, heads, width = query.shape
    flops = 4 * tokens * tokens / (len(starts) - 1) * heads * width
    return flops * (1 if is_forward else 2), inputs


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    is_float = _is_meta(value) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if is_float and dtype is not None else value


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _kind(name: str) -> str:
    if name in ("_to_copy", "copy_"):
        return "casts"
    if name in ("add", "add_", "sum"):
        return "sums"
    return "norms" if "norm" in name else "elementwise"
