"""Text towers of transformers' two-tower models.

In: the configuration of the whole model, or a `TwoTower`. Out: which text tower of ours it is and
the rules of its names; for the way back, `text_config` and the rules.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..text.clip import ClipTextTower
from ..text.hf import HFTextTower
from ..text.siglip import SiglipTextTower
from ..two_tower import TwoTower
from .base import CLIP_TEXT, HF_TEXT, SIGLIP_TEXT
from .names import Rule, ratio
from .text_names import trunk

PROJECTION = Rule("text_projection.weight", "text_projection.weight")


@dataclass(frozen=True)
class TextPart:
    """A text tower in our terms.

    Attributes:
        config: value of `model.text`.
        rules: of its names, those of the projection included.
        context_length: longest caption in tokens.
        vocab_size: number of token ids.
    """

    config: dict[str, Any]
    rules: list[Rule]
    context_length: int
    vocab_size: int


def part(config: Any) -> TextPart:
    """Translates the text tower of a model.

    Raises:
        ValueError: a setting has no counterpart here.
    """
    text = config.text_config
    length, vocab_size = text.max_position_embeddings, text.vocab_size
    if config.model_type in ("altclip", "chinese_clip"):
        # Positions of RoBERTa's kind begin behind the padding token's.
        length -= (text.pad_token_id + 1) * (config.model_type == "altclip")
        settings = text.to_diff_dict() | {"model_type": text.model_type}
        arguments: dict[str, Any] = {"config": settings, "context_length": length}
        pooling = {"pooling": "pooler" if config.model_type == "altclip" else "first"}
        tower = {"class_path": HF_TEXT, "init_args": arguments | pooling}
        rules = [*layer_rules(settings), Rule("text.trunk.{*}", "text_model.{*}"), PROJECTION]
        return TextPart(tower, rules, length, vocab_size)
    siglip = config.model_type == "siglip"
    if text.hidden_act not in ("gelu", "quick_gelu", "gelu_pytorch_tanh"):
        raise ValueError(f"a text tower with the activation {text.hidden_act} has no counterpart")
    arguments = {"width": text.hidden_size, "depth": text.num_hidden_layers}
    arguments |= {"num_heads": text.num_attention_heads, "context_length": length}
    arguments |= {"vocab_size": vocab_size, "activation": text.hidden_act}
    if text.intermediate_size != 4 * text.hidden_size:
        arguments["mlp_ratio"] = ratio(text.intermediate_size, text.hidden_size)
    if siglip:
        arguments |= {"eps": text.layer_norm_eps, "pad_id": int(text.pad_token_id or 0)}
    elif text.layer_norm_eps != 1e-5:
        raise ValueError(f"a text tower with norms of eps {text.layer_norm_eps} is not made")
    tower = {"class_path": SIGLIP_TEXT if siglip else CLIP_TEXT, "init_args": arguments}
    return TextPart(tower, rules_of(siglip), length, vocab_size)


def layer_rules(config: dict[str, Any]) -> list[Rule]:
    """Rules of an encoder's layers, which files and releases of transformers call by two names."""
    with torch.device("meta"):
        names = HFTextTower(config | {"num_hidden_layers": 1}, 1).trunk.state_dict()
    start, word = next(m.groups() for n in names if (m := re.match(r"(.*encoder\.)(layers?)\.", n)))
    ours = f"text.trunk.{start}{word}.{{*}}"
    return [Rule(ours, f"text_model.{start}{theirs}.{{*}}") for theirs in ("layer", "layers")]


def rules_of(siglip: bool) -> list[Rule]:
    """Rules of CLIP's or SigLIP's text transformer and its projection."""
    start = trunk(SiglipTextTower if siglip else ClipTextTower)
    head = Rule("text_projection.{}", "text_model.head.{}") if siglip else PROJECTION
    return [head, Rule(f"{start}{{*}}", "text_model.{*}")]


def is_siglip(model: TwoTower) -> bool:
    """Which of the two families a model belongs to.

    Raises:
        ValueError: neither has such a text tower.
    """
    if not isinstance(model.text, ClipTextTower | SiglipTextTower):
        raise ValueError(
            f"transformers' CLIPModel and SiglipModel have no text tower like a "
            f"{type(model.text).__name__}; its texts would be encoded by nothing"
        )
    return isinstance(model.text, SiglipTextTower)


def to_theirs(model: TwoTower) -> tuple[dict[str, Any], list[Rule]]:
    """Returns `text_config` and the rules of names.

    Raises:
        ValueError: transformers projects otherwise.
    """
    siglip, projection = is_siglip(model), model.text_projection
    linear = isinstance(projection, nn.Linear) and (projection.bias is not None) == siglip
    pooled = not isinstance(model.text, SiglipTextTower) or model.text.pooling == "last"
    if not linear or not pooled:
        kind = "with a bias, at the last position" if siglip else "without a bias"
        raise ValueError(f"transformers' text tower of this kind has a projection {kind}")
    trunk: Any = model.text.trunk
    c, width = trunk.config, projection.out_features  # type: ignore[union-attr]
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps")
    names += ("bos_token_id", "eos_token_id", "pad_token_id")
    text = {name: getattr(c, name) for name in names}
    text["projection_size" if siglip else "projection_dim"] = width
    return text, rules_of(siglip)
