"""An image's embedding as a sum over the parts of a ViT that wrote it: attention heads, MLPs.

Gandelsman et al., "Interpreting CLIP's Image Representation via Text-Based Decomposition" (2024),
sections 3.1 and 4.1. What a block adds to a token is the sum of what its heads add and of what its
MLP adds. Pooling and projection are linear, and a layer norm is, once the mean and the deviation
that it divides by are those that it found for this image. So the direct contributions of all parts
add up to the embedding before normalisation.

A norm subtracts from each part the part's own mean over channels; the published code divides the
total's mean among parts, with the same sum. An attention layer's bias is shared out evenly to its
heads, as there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, UInt8
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from .image import ImageTower, TimmTower


@dataclass(frozen=True)
class Contributions:
    """What adds up to embeddings of images before normalisation.

    Attributes:
        heads: of each layer's attention heads, [n, layers, heads, d].
        mlps: of each layer's MLP, [n, layers, d].
        rest: of what entered the first layer, and of biases behind the last one, [n, d].
    """

    heads: Float[Tensor, "n layers heads d"]
    mlps: Float[Tensor, "n layers d"]
    rest: Float[Tensor, "n d"]

    def total(self) -> Float[Tensor, "n d"]:
        """Returns their sum."""
        return self.heads.sum((1, 2)) + self.mlps.sum(1) + self.rest


@dataclass
class _Record:
    """What a forward pass shows, of the pooled tokens alone."""

    entered: list[Tensor] = field(default_factory=list)
    mixed: list[Tensor] = field(default_factory=list)
    mlps: list[Tensor] = field(default_factory=list)
    final: list[Tensor] = field(default_factory=list)


class HeadContributions:
    """Decomposes embeddings of images.

    Args:
        tower: the image tower.
        projection: from its vector to the embedding.

    Raises:
        ValueError: the parts cannot be told apart in this tower.
    """

    def __init__(self, tower: ImageTower, projection: nn.Module):
        self.tower = tower
        self.projection = projection
        self.trunk = _plain_vit(tower, projection)

    @torch.no_grad()
    def __call__(self, image: UInt8[Tensor, "n 3 h w"]) -> Contributions:
        """Returns the contributions to the images' embeddings, in evaluation mode."""
        record = self._run(image)
        with torch.autocast(image.device.type, enabled=False):
            return self._decompose(record)

    def _run(self, image: Tensor) -> _Record:
        trunk, record = self.trunk, _Record()
        prefix = trunk.num_prefix_tokens if not trunk.pool_include_prefix else 0
        pooled = slice(0, 1) if trunk.global_pool == "token" else slice(prefix, None)

        def keep_input(kept: list[Tensor], _: nn.Module, inputs: tuple[Tensor]) -> None:
            kept.append(inputs[0][:, pooled].to(torch.promote_types(inputs[0].dtype, torch.float)))

        def keep_output(kept: list[Tensor], module: nn.Module, _: Any, output: Tensor) -> None:
            keep_input(kept, module, (output,))

        blocks: list[Any] = list(trunk.blocks)
        hooks = [
            blocks[0].register_forward_pre_hook(partial(keep_input, record.entered)),
            trunk.norm.register_forward_pre_hook(partial(keep_input, record.final)),
        ]
        for block in blocks:
            proj = block.attn.proj
            hooks.append(proj.register_forward_pre_hook(partial(keep_input, record.mixed)))
            hooks.append(block.ls2.register_forward_hook(partial(keep_output, record.mlps)))
        try:
            self.tower(image)
        finally:
            for hook in hooks:
                hook.remove()
        return record

    def _decompose(self, record: _Record) -> Contributions:
        (entered,), (final,) = record.entered, record.final
        share = final.new_full(final.shape[:2], 1 / final.shape[1])
        norm, inner, shift = _at(self.trunk.norm, final)
        share = share * inner  # of each token in the pooled vector, [n, tokens]

        def pool(tokens: Tensor) -> Tensor:
            return torch.einsum("nt,ntd->nd", share, tokens)

        parts = [norm(pool(entered))]
        for block, mixed, mlp in zip(self.trunk.blocks, record.mixed, record.mlps, strict=True):
            parts += [*map(norm, self._heads(block, pool(mixed), share.sum(1))), norm(pool(mlp))]
        parts[0] = parts[0] + shift
        # A norm behind the pooling sees the sum.
        norm, inner, shift = _at(self.trunk.fc_norm, torch.stack(parts).sum(0))
        rows = torch.stack([norm(part * inner[:, None]) for part in parts], 1)
        rows[:, 0] += shift
        if isinstance(self.projection, nn.Linear):
            rows = rows @ self.projection.weight.to(rows.dtype).T
            if self.projection.bias is not None:
                rows[:, 0] += self.projection.bias
        of_layers = rows[:, 1:].unflatten(1, (len(record.mlps), -1))
        return Contributions(of_layers[:, :, :-1], of_layers[:, :, -1], rows[:, 0])

    def _heads(self, block: Any, mixed: Tensor, share: Tensor) -> list[Tensor]:
        """Returns what each head adds to the pooled token, from the values that it mixed [n, k]."""
        attention = block.attn
        num_heads = attention.num_heads
        weights = attention.proj.weight.to(mixed.dtype).unflatten(1, (num_heads, -1))
        heads = torch.einsum("nhk,dhk->hnd", mixed.unflatten(1, (num_heads, -1)), weights)
        if attention.proj.bias is not None:
            heads = heads + share[:, None] * attention.proj.bias / num_heads
        return list(block.ls1(heads))


def _at(norm: nn.Module, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """Takes a norm apart at the rows that it was given.

    Args:
        norm: a layer norm, or nothing.
        x: its input, [..., d].

    Returns:
        A linear function of parts of the rows, what rows are multiplied with [...], and what is
        added at the end [d].
    """
    if not isinstance(norm, nn.LayerNorm):
        return lambda part: part, x.new_ones(x.shape[:-1]), x.new_zeros(x.shape[-1])
    scale = (x.var(-1, correction=0) + norm.eps).rsqrt()
    weight = x.new_ones(x.shape[-1]) if norm.weight is None else norm.weight.to(x.dtype)
    shift = torch.zeros_like(weight) if norm.bias is None else norm.bias.to(x.dtype)
    return lambda part: weight * (part - part.mean(-1, keepdim=True)), scale, shift


def _plain_vit(tower: ImageTower, projection: nn.Module) -> VisionTransformer:
    """Returns the tower's ViT, if its parts add up.

    Raises:
        ValueError: they do not.
    """
    trunk = tower.trunk if isinstance(tower, TimmTower) else None
    if not isinstance(trunk, VisionTransformer):
        raise _refusal(f"the image tower is a {type(trunk or tower).__name__}")
    blocks: list[Any] = list(trunk.blocks)
    for block in blocks:
        # By their forward: sharding makes a class of its own of each kind of block.
        is_plain = type(block).forward is Block.forward
        if not is_plain or type(block.attn).forward is not Attention.forward:
            raise _refusal(f"a block is a {type(block).__name__} of another kind")
    if trunk.attn_pool is not None or trunk.global_pool not in ("token", "avg"):
        raise _refusal("the image tower pools by attention or by the maximum")
    for norm in (trunk.norm, trunk.fc_norm):
        if not isinstance(norm, nn.LayerNorm | nn.Identity):
            raise _refusal(f"it ends with a {type(norm).__name__}")
    if not isinstance(projection, nn.Linear | nn.Identity):
        raise _refusal("its projection has several layers")
    if any(hasattr(each, "full_tensor") or hasattr(each, "ds_id") for each in trunk.parameters()):
        raise _refusal("its weights are spread over processes; evaluate a checkpoint")
    return trunk


def _refusal(reason: str) -> ValueError:
    return ValueError(
        f"contributions of attention heads cannot be told apart here: {reason}; they can in a "
        "vit_* model of timm with timm's usual blocks, class-token or mean pooling, layer norms "
        "and a linear projection"
    )
