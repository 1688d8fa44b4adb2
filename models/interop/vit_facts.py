"""What a plain ViT of ours is, as numbers and words that other libraries ask for."""

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.layer_scale import LayerScale
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..image import ImageTower, TimmTower
from .vit_names import TRUNK

ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


@dataclass(frozen=True)
class VitFacts:
    """A ViT whose blocks are the usual ones.

    Attributes:
        patch_size, width, depth, num_heads, mlp_width: its sizes.
        activation: `gelu`, `gelu_tanh` or `quick_gelu`.
        epsilon: of its norms.
        norm_first: whether tokens are normalised before the first block.
        pooling: `token`, `avg` or `map`.
        norm_last: whether the last norm follows the pooling.
        layer_scale: whether residual branches have scales.
    """

    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    activation: str
    epsilon: float
    norm_first: bool
    pooling: str
    norm_last: bool
    layer_scale: bool


def plain_vit(tower: ImageTower) -> VitFacts | str:
    """Returns the facts, or what about the tower is unlike a plain ViT, as part of a sentence."""
    trunk: Any = getattr(tower, "trunk", None)
    if not isinstance(tower, TimmTower) or type(trunk) is not VisionTransformer:
        return f"it is a {type(trunk or tower).__name__}"
    if tower.mask_token is not None:
        return "its mask token was learned and would be lost"
    blocks: list[Any] = list(trunk.blocks)
    for block in blocks:
        attention = block.attn
        usual = type(block) is Block and type(attention) is Attention
        norms = [attention.q_norm, attention.k_norm, getattr(block.mlp, "norm", nn.Identity())]
        norms.append(getattr(attention, "norm", nn.Identity()))
        if not usual or not all(isinstance(norm, nn.Identity) for norm in norms):
            return "its blocks are not the usual ones"
        if attention.qkv.bias is None:
            return "its queries, keys and values have no biases"
    if (
        trunk.pos_embed is None
        or trunk.reg_token is not None
        or not isinstance(trunk.head, nn.Identity)
    ):
        return "it has register tokens, or no learned positions, or a head of its own"
    (rows, columns), first = trunk.patch_embed.patch_size, blocks[0]
    activation = ACTIVATIONS.get(type(first.mlp.act).__name__)
    if getattr(first.mlp.act, "approximate", "none") == "tanh":
        activation = "gelu_tanh"
    if activation is None or rows != columns or not isinstance(first.norm1, nn.LayerNorm):
        return "its activation, norm or patches are not the usual ones"
    return VitFacts(
        patch_size=rows,
        width=trunk.embed_dim,
        depth=len(blocks),
        num_heads=first.attn.num_heads,
        mlp_width=first.mlp.fc1.out_features,
        activation=activation,
        epsilon=first.norm1.eps,
        norm_first=isinstance(trunk.norm_pre, nn.LayerNorm),
        pooling=trunk.global_pool,
        norm_last=isinstance(trunk.fc_norm, nn.LayerNorm),
        layer_scale=isinstance(first.ls1, LayerScale),
    )


def without_patch_bias(state: dict[str, Tensor], trunk: VisionTransformer) -> dict[str, Tensor]:
    """Moves the bias of the patches' embedding, where it is not zero, into their positions.

    Both are added to each patch and to nothing else. Also gives the class token a position of
    zeros, if it has none.
    """
    state, name = dict(state), f"{TRUNK}pos_embed"
    positions, bias = state[name], state.pop(f"{TRUNK}patch_embed.proj.bias", None)
    if trunk.cls_token is not None and trunk.no_embed_class:
        positions = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    if bias is not None and bias.any():
        positions = positions.clone()
        positions[:, positions.shape[1] - trunk.patch_embed.num_patches :] += bias
    return state | {name: positions}
