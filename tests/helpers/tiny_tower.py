"""The smallest ViT that has everything a large one has: four patches of an image of 16 pixels."""

from counterpoint.models.image import TimmTower


def tiny_vit(depth: int = 2, width: int = 16, dropout: float = 0.0) -> TimmTower:
    """A ViT of two heads with all kinds of dropout."""
    sizes = {"patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": 2}
    rates = ("proj_drop_rate", "attn_drop_rate", "drop_path_rate")
    return TimmTower(
        "vit_tiny_patch16_224",
        image_size=16,
        model_args=sizes | {rate: dropout for rate in rates},
    )
