"""Names of ViTs: ours (timm's), open_clip's, and which of timm's models has which sizes."""

from typing import Any

from .names import Rule, ratio

TRUNK = "image.trunk."
# timm's names of CLIP's ViTs by patch size, width, depth, heads and the MLPs' width.
CLIP_VITS = {
    (32, 768, 12, 12, 3072): "vit_base_patch32_clip",
    (16, 768, 12, 12, 3072): "vit_base_patch16_clip",
    (14, 1024, 24, 16, 4096): "vit_large_patch14_clip",
    (14, 1280, 32, 16, 5120): "vit_huge_patch14_clip",
    (14, 1664, 48, 16, 8192): "vit_gigantic_patch14_clip",
}
SIGLIP_VITS = {
    (16, 768, 12, 12, 3072): "vit_base_patch16_siglip_224",
    (16, 1024, 24, 16, 4096): "vit_large_patch16_siglip_256",
    (14, 1152, 27, 16, 4304): "vit_so400m_patch14_siglip_224",
}


def clip_vit(
    patch_size: int,
    width: int,
    depth: int,
    num_heads: int,
    mlp_width: int,
    activation: str,
    epsilon: float = 1e-5,
) -> dict[str, Any]:
    """Returns `name` and `model_args` of timm's ViT of these sizes, with a norm before its blocks.

    Args:
        patch_size, width, depth, num_heads, mlp_width: the sizes.
        activation: timm's name: `gelu`, `quick_gelu`, `gelu_tanh`.
        epsilon: of the norms.

    Raises:
        ValueError: no ViT of timm has norms of this epsilon.
    """
    sizes, quick = (patch_size, width, depth, num_heads, mlp_width), activation == "quick_gelu"
    args: dict[str, Any] = {"patch_size": patch_size, "embed_dim": width, "depth": depth}
    args |= {"num_heads": num_heads, "mlp_ratio": ratio(mlp_width, width)}
    usual = {} if activation == "gelu" else {"act_layer": activation}
    if epsilon == 1e-6:
        return {"name": "vit_base_patch16_224", "model_args": args | usual | {"pre_norm": True}}
    if epsilon != 1e-5:
        raise ValueError(f"an image tower with norms of eps {epsilon} has no counterpart here")
    ending, usual = ("_quickgelu_224", {}) if quick else ("_224", usual)
    if sizes in CLIP_VITS:
        return {"name": CLIP_VITS[sizes] + ending, "model_args": usual}
    return {"name": "vit_base_patch32_clip" + ending, "model_args": args | usual}


def siglip_vit(
    patch_size: int, width: int, depth: int, num_heads: int, mlp_width: int, activation: str
) -> dict[str, Any]:
    """Returns `name` and `model_args` of SigLIP's ViT of these sizes; see `clip_vit`."""
    sizes = (patch_size, width, depth, num_heads, mlp_width)
    args: dict[str, Any] = {} if activation == "gelu" else {"act_layer": activation}
    if sizes in SIGLIP_VITS:
        return {"name": SIGLIP_VITS[sizes], "model_args": args}
    args |= {"patch_size": patch_size, "embed_dim": width, "depth": depth, "num_heads": num_heads}
    args["mlp_ratio"] = ratio(mlp_width, width)
    return {"name": "vit_base_patch16_siglip_224", "model_args": args}


def open_clip_vit(final_norm: str = "norm") -> list[Rule]:
    """The ViT of open_clip and OpenAI, without its projection.

    Args:
        final_norm: timm's name of the last norm: `fc_norm` where it follows the pooling.
    """
    ours, theirs = f"{TRUNK}blocks.{{}}.", "visual.transformer.resblocks.{}."
    return [
        Rule(f"{TRUNK}patch_embed.proj.{{}}", "visual.conv1.{}"),
        Rule(f"{TRUNK}cls_token", "visual.class_embedding", "+2"),
        Rule(f"{TRUNK}pos_embed", "visual.positional_embedding", "+1"),
        Rule(f"{TRUNK}norm_pre.{{}}", "visual.ln_pre.{}"),
        Rule(f"{ours}norm1.{{}}", f"{theirs}ln_1.{{}}"),
        Rule(f"{ours}attn.qkv.{{}}", f"{theirs}attn.in_proj_{{}}"),
        Rule(f"{ours}attn.proj.{{}}", f"{theirs}attn.out_proj.{{}}"),
        Rule(f"{ours}ls1.gamma", f"{theirs}ls_1.gamma"),
        Rule(f"{ours}norm2.{{}}", f"{theirs}ln_2.{{}}"),
        Rule(f"{ours}mlp.fc1.{{}}", f"{theirs}mlp.c_fc.{{}}"),
        Rule(f"{ours}mlp.fc2.{{}}", f"{theirs}mlp.c_proj.{{}}"),
        Rule(f"{ours}ls2.gamma", f"{theirs}ls_2.gamma"),
        Rule(f"{TRUNK}{final_norm}.{{}}", "visual.ln_post.{}"),
    ]
