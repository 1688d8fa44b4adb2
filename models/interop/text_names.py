"""Names of CLIP's text transformer: ours (transformers'), open_clip's, OpenAI's."""

import functools

from ..text.clip import ClipTextTower
from ..text.siglip import SiglipTextTower
from .names import Rule


@functools.cache
def trunk(tower: type[ClipTextTower | SiglipTextTower] = ClipTextTower) -> str:
    """Returns what our names of the text transformer begin with.

    Releases of transformers differ in whether `CLIPTextModel` holds it in `text_model`.
    """
    names = tower(width=2, depth=0, num_heads=1, vocab_size=4).state_dict()
    ending = "embeddings.token_embedding.weight"
    return "text." + next(name for name in names if name.endswith(ending)).removesuffix(ending)


def open_clip_text(
    prefix: str = "", tower: type[ClipTextTower | SiglipTextTower] = ClipTextTower
) -> list[Rule]:
    """The transformer without its projection; `prefix` is `text.` in models with `custom_text`."""
    start = trunk(tower)
    ours, theirs = f"{start}encoder.layers.{{}}.", f"{prefix}transformer.resblocks.{{}}."
    attention = tuple(f"{ours}self_attn.{name}_proj.{{}}" for name in "qkv")
    return [
        Rule(f"{start}embeddings.token_embedding.weight", f"{prefix}token_embedding.weight"),
        Rule(f"{start}embeddings.position_embedding.weight", f"{prefix}positional_embedding"),
        Rule(f"{ours}layer_norm1.{{}}", f"{theirs}ln_1.{{}}"),
        Rule(attention, f"{theirs}attn.in_proj_{{}}"),
        Rule(f"{ours}self_attn.out_proj.{{}}", f"{theirs}attn.out_proj.{{}}"),
        Rule(f"{ours}layer_norm2.{{}}", f"{theirs}ln_2.{{}}"),
        Rule(f"{ours}mlp.fc1.{{}}", f"{theirs}mlp.c_fc.{{}}"),
        Rule(f"{ours}mlp.fc2.{{}}", f"{theirs}mlp.c_proj.{{}}"),
        Rule(f"{start}final_layer_norm.{{}}", f"{prefix}ln_final.{{}}"),
    ]
