"""Weights in the bits that products read, copied once a step instead of in each call.

Autocast copies a weight each time that a layer runs: in every part of the batch, in a kernel of its
own. Here a layer reads a copy that `HalfWeights.refresh` has made of all weights in a few kernels.
Values and gradients are autocast's: gradients are made in 16 bits and added up in those of the
weights. Only for weights that lie whole on the device.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .causal_attention import CausalAttention

# What products read in these precisions of Lightning's.
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class HalfWeights:
    """The copies of a model's weights; layers read them where autocast would copy.

    Args:
        model: its linear layers are replaced, in place and with the same parameters.
        dtype: of products.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self._copies: list[Tensor] = []
        self._weights: list[Tensor] = []
        attentions: list[Any] = [m for m in model.modules() if isinstance(m, CausalAttention)]
        parts = {part for attention in attentions for part in attention.inputs()}
        linears: list[Any] = [m for m in model.modules() if type(m) is nn.Linear]
        for attention in attentions:
            attention.fused = self._fused(attention.inputs(), dtype)
        for linear in linears:
            if linear not in parts:
                linear.__class__ = HalfLinear
                linear.fused = self._fused([linear], dtype)

    @staticmethod
    def remove(model: nn.Module) -> None:
        """Makes a model's layers plain again, whoever has replaced them."""
        attentions: list[Any] = [m for m in model.modules() if isinstance(m, CausalAttention)]
        linears: list[Any] = [m for m in model.modules() if isinstance(m, HalfLinear)]
        for attention in attentions:
            attention.fused = None
        for linear in linears:
            del linear.fused
            linear.__class__ = nn.Linear

    def _fused(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> "FusedLinear":
        weights = [layer.weight for layer in layers]
        biases = [layer.bias for layer in layers if layer.bias is not None]
        assert len(biases) in (0, len(layers))
        copies = []
        for tensors in (weights, biases):
            if not tensors:
                copies.append(None)
                continue
            rows = [len(tensor) for tensor in tensors]
            copy = tensors[0].detach().new_empty(sum(rows), *tensors[0].shape[1:], dtype=dtype)
            torch._dynamo.mark_static(copy)  # as parameters are
            copies.append(copy)
            self._copies += copy.split(rows)
            self._weights += tensors
        return FusedLinear(copies[0], copies[1], (*weights, *biases))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies all weights; before each forward pass with gradients."""
        torch._foreach_copy_(self._copies, self._weights)  # type: ignore[attr-defined]


class FusedLinear:
    """A linear layer, or several of the same input, that reads 16-bit copies.

    Args:
        weight, bias: the copies, one below the other.
        parameters: all weights, then all biases, which get the gradients.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, parameters: tuple[Tensor, ...]):
        self.weight, self.bias, self.parameters = weight, bias, parameters

    def applies(self, x: Tensor) -> bool:
        """Whether autocast is on, for a step that refreshed the copies."""
        return torch.is_grad_enabled() and (x.is_meta or torch.is_autocast_enabled(x.device.type))

    def __call__(self, x: Float[Tensor, "*n in"]) -> Float[Tensor, "*n out"]:
        """Returns the layers' outputs, one behind the other."""
        return _Linear.apply(x, self.weight, self.bias, *self.parameters)  # type: ignore[return-value]


class HalfLinear(nn.Linear):
    """A linear layer with a copy of its weight."""

    fused: FusedLinear

    def forward(self, input: Tensor) -> Tensor:
        if self.fused.applies(input):
            return self.fused(input)
        return super().forward(input)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.dtype = x.dtype
        x = x.to(weight.dtype)
        ctx.save_for_backward(x, weight)
        ctx.rows = [len(parameter) for parameter in parameters]
        ctx.num_weights = sum(parameter.ndim == 2 for parameter in parameters)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows, num_weights = ctx.rows, ctx.num_weights
        grads: list[Tensor | None] = [None] * len(rows)
        by_row = grad.flatten(0, -2)
        # In the order of the factors in which autograd multiplies.
        if any(ctx.needs_input_grad[3 : 3 + num_weights]):
            product = by_row.mT @ x.flatten(0, -2)
            grads[:num_weights] = product.float().split(rows[:num_weights])
        if any(ctx.needs_input_grad[3 + num_weights :]):
            grads[num_weights:] = by_row.sum(0).float().split(rows[num_weights:])
        to_x = (by_row @ weight).view(x.shape).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return to_x, None, None, *grads
