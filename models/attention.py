"""Attention of an image tower's class token to the patches, read while the tower runs.

In: a ViT of timm with a class token, and images. Out: one number a patch. Frozen models offer it as
the feature `VIEW.attention`; A-CLIP masks by it.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, UInt8
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F

from .image import ImageTower

Result = TypeVar("Result")


def run_with_attention(
    tower: ImageTower, image: UInt8[Tensor, "n 3 h w"], run: Callable[[], Result]
) -> tuple[Result, Float[Tensor, "n rows columns"]]:
    """Runs a tower and reads its class token's attention from the inputs of its blocks.

    Of each attention map only the class token's row is computed (one more projection to keys a
    layer, about 8% of it); the blocks themselves keep their fused attention, or are compiled. Their
    inputs are read in forward hooks because sharded weights are whole only while a block runs.

    Args:
        tower: has a class token.
        image: pixels.
        run: calls the tower on these images alone, at once or part by part.

    Returns:
        The result of `run`, and the class token's attention to each patch, averaged over all layers
        and heads.

    Raises:
        ValueError: see `class_token_blocks`.
    """
    blocks, grid = class_token_blocks(tower), tower.grid(image)
    rows: dict[Any, list[Tensor]] = {block: [] for block in blocks}

    def record(block: Any, inputs: tuple[Tensor]) -> None:
        rows[block].append(class_row(block, *inputs))

    hooks = [block.register_forward_pre_hook(record) for block in blocks]
    try:
        result = run()
    finally:
        for hook in hooks:
            hook.remove()
    layers = torch.stack([torch.cat(parts) for parts in rows.values()])
    assert layers.shape[1] == len(image), "the tower sees each image once"
    # Class and register tokens come first.
    patches = layers.mean(dim=0)[:, -grid[0] * grid[1] :]
    return result, patches.unflatten(1, grid)


def class_token_blocks(tower: ImageTower) -> list[Block]:
    """Returns the blocks of a ViT with a class token.

    Raises:
        ValueError: the tower is no such ViT of timm, or its blocks or their attention are not
            timm's usual ones.
    """
    blocks: list[Any] = list(tower.layers())
    # By their forward: sharding makes a class of its own of each kind of block.
    are_plain = all(
        type(block).forward is Block.forward and type(block.attn).forward is Attention.forward
        for block in blocks
    )
    if not tower.has_class_token or not blocks or not are_plain:
        raise ValueError(
            "attentive masking reads the attention of the class token in timm's usual blocks, and "
            "the image tower has none; use a TimmTower with class_token: true in its model_args, "
            "or RandomPatches"
        )
    return blocks


def class_row(block: Block, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t"]:
    """Computes the first token's row of a block's attention map, averaged over heads."""
    attention = block.attn
    assert isinstance(attention, Attention)
    layer, x = attention.qkv, block.norm1(x)
    weights = layer.weight.unflatten(0, (3, -1))
    biases = (None,) * 3 if layer.bias is None else layer.bias.unflatten(0, (3, -1))
    query = F.linear(x[:, :1], weights[0], biases[0]).unflatten(2, (attention.num_heads, -1))
    keys = F.linear(x, weights[1], biases[1]).unflatten(2, (attention.num_heads, -1))
    query, keys = attention.q_norm(query), attention.k_norm(keys)
    # Full precision: coarse numbers would often be equal, and ties be broken by position.
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        query, keys = query.to(dtype) * attention.scale, keys.to(dtype)
        logits = torch.einsum("nqhd,nthd->nht", query, keys)
        return logits.softmax(dim=-1).mean(dim=1)
