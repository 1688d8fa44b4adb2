"""Text towers of open_clip: CLIP's and SigLIP's transformers, and those of transformers.

In: `text_cfg` and tensors, or a `TwoTower`. Out: which text tower of ours it is, how it projects,
its tokenizer and the rules of names; for the way back, `text_cfg` and the rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..text.clip import ClipTextTower
from ..text.hf import HFTextTower
from ..text.siglip import SiglipTextTower
from ..two_tower import TwoTower
from .base import CLIP_TEXT, CLIP_TOKENIZER, HF_TEXT, HF_TOKENIZER, SIGLIP_TEXT
from .names import Rule, ratio
from .open_clip_image import check_defaults, projection_of
from .text_names import open_clip_text

READ = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id"}
READ |= {"hf_tokenizer_name", "tokenizer_kwargs", "no_causal_mask", "pool_type", "proj_bias"}
READ |= {"hf_model_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"}
READ |= {"proj_type", "act_kwargs", "norm_kwargs", "output_tokens", "block_type"}
# Of the pooled state; open_clip's `cls_pooler` takes the encoder's own pooler if it has one.
POOLERS = {
    "mean_pooler": "mean",
    "max_pooler": "max",
    "cls_pooler": "pooler",
    "cls_last_hidden_state_pooler": "first",
}
NO_POOLER = ("m2m_100", "t5", "mt5")
# What the published encoders' config.json say.
ROBERTA = {
    "model_type": "xlm-roberta",
    "vocab_size": 250002,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
ENCODERS: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "vocab_size": 50265},
    "roberta-large": LARGE | {"model_type": "roberta", "vocab_size": 50265},
    "xlm-roberta-base": {},
    "xlm-roberta-large": LARGE,
}


@dataclass(frozen=True)
class TextPart:
    """A text tower of open_clip in our terms.

    Attributes:
        config: value of `model.text`.
        projection: value of `model.text_projection`.
        rules: of its names, those of the projection included.
        tokenizer: value of `data.tokenizer`.
        context_length: longest caption in tokens.
    """

    config: dict[str, Any]
    projection: str
    rules: list[Rule]
    tokenizer: dict[str, Any]
    context_length: int


def part(
    config: Mapping[str, Any],
    quick_gelu: bool,
    embed_dim: int,
    state: Mapping[str, Tensor],
    prefix: str,
    folder: str | None,
) -> TextPart:
    """Translates a text tower.

    Args:
        config: `text_cfg`.
        quick_gelu: open_clip's flag.
        embed_dim: length of the embedding.
        state: tensors under open_clip's names.
        prefix: of the tower's names.
        folder: where a tokenizer of its own would be.

    Raises:
        ValueError: a setting has no counterpart here.
    """
    import open_clip

    check_defaults(config, open_clip.CLIPTextCfg(), READ, "a text tower")
    c = open_clip.CLIPTextCfg(**config)
    if c.hf_model_name:
        return _hf(c, prefix, embed_dim, folder)
    tanh = (c.act_kwargs or {}).get("approximate") == "tanh"
    activation = "quick_gelu" if quick_gelu else "gelu_pytorch_tanh" if tanh else "gelu"
    epsilon = (c.norm_kwargs or {}).get("eps", 1e-5)
    arguments: dict[str, Any] = {"width": c.width, "depth": c.layers, "num_heads": c.heads}
    arguments |= {"context_length": c.context_length, "vocab_size": c.vocab_size}
    if c.mlp_ratio != 4.0:
        arguments["mlp_ratio"] = c.mlp_ratio
    arguments["activation"] = activation
    ends = c.pool_type in ("argmax", "eos")
    if c.no_causal_mask and (ends or c.pool_type == "last"):
        arguments |= {"eps": epsilon, "pad_id": pad_of(c), "pooling": "end" if ends else "last"}
        path, kind = SIGLIP_TEXT, SiglipTextTower
    elif ends and epsilon == 1e-5:
        path, kind = CLIP_TEXT, ClipTextTower
    else:
        raise ValueError(
            f"a text tower of open_clip with no_causal_mask {c.no_causal_mask}, pool_type "
            f"{c.pool_type} and norms of eps {epsilon} has no counterpart here"
        )
    projection = "none" if c.proj_type == "none" else "affine" if c.proj_bias else "linear"
    rules = [*open_clip_text(prefix, kind), *projection_rules(projection, prefix)]
    tower = {"class_path": path, "init_args": arguments}
    return TextPart(tower, projection, rules, tokenizer(c, folder), c.context_length)


def pad_of(config: Any) -> int:
    """Returns what captions are filled with; open_clip mostly leaves that to the tokenizer."""
    if config.pad_id:
        return config.pad_id
    # SigLIP's tokenizer pads with its end of text; that of SigLIP 2, and BERT's, with 0.
    return (
        1 if "SigLIP" in (name := config.hf_tokenizer_name or "") and "SigLIP2" not in name else 0
    )


def _hf(config: Any, prefix: str, embed_dim: int, folder: str | None) -> TextPart:
    pooling = POOLERS.get(config.hf_pooler_type)
    if pooling is None:
        raise ValueError(
            f"a text tower of open_clip with hf_pooler_type {config.hf_pooler_type} has no "
            f"counterpart here; known are {', '.join(POOLERS)}"
        )
    encoder = encoder_config(config.hf_model_name)
    if pooling == "pooler" and encoder["model_type"] in NO_POOLER:
        pooling = "first"
    width = encoder.get("d_model") or encoder["hidden_size"]
    kind = config.hf_proj_type or ("none" if width == embed_dim else "")
    arguments = {"config": encoder, "context_length": config.context_length, "pooling": pooling}
    return TextPart(
        {"class_path": HF_TEXT, "init_args": arguments},
        kind,
        hf_rules(kind, prefix),
        tokenizer(config, folder),
        config.context_length,
    )


def hf_rules(projection: str, prefix: str) -> list[Rule]:
    """Rules of an encoder of transformers behind open_clip's adapter."""
    theirs = f"{prefix}proj."
    rules = {
        "none": [],
        "linear": [Rule("text_projection.weight", f"{theirs}weight")],
        "mlp": [Rule("text_projection.{}.weight", f"{theirs}{{}}.weight")],
    }[projection]
    return [*rules, Rule("text.trunk.{*}", f"{prefix}transformer.{{*}}")]


def encoder_config(name: str) -> dict[str, Any]:
    """Returns the configuration of an encoder that open_clip names; nothing is downloaded.

    Raises:
        ValueError: it is neither known here, nor a folder, nor in transformers' cache.
    """
    if name in ENCODERS:
        return ROBERTA | ENCODERS[name] | {"_name_or_path": name}
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the text tower is transformers' {name}, whose configuration is not here; fetch it "
            "into transformers' cache, or name a folder with its config.json as hf_model_name"
        ) from error
    return config.to_diff_dict() | {"model_type": config.model_type, "_name_or_path": name}


def projection_rules(projection: str, prefix: str) -> list[Rule]:
    """Rules of the text tower's projection, a bare matrix or a layer with a bias."""
    name = f"{prefix}text_projection"
    if projection == "linear":
        return [Rule("text_projection.weight", name, "transposed")]
    return [Rule("text_projection.{}", f"{name}.{{}}")] if projection == "affine" else []


def tokenizer(config: Any, folder: str | None) -> dict[str, Any]:
    """Returns the value of `data.tokenizer`; a folder's own tokenizer lies in the folder."""
    if config.hf_tokenizer_name:
        settings = dict(config.tokenizer_kwargs or {})
        arguments: dict[str, Any] = {"name": folder or config.hf_tokenizer_name}
        arguments["clean"] = settings.pop("clean", "whitespace")
        if settings.pop("strip_sep_token", False):
            arguments["left_out"] = ["[SEP]"]
        if settings:
            raise ValueError(f"a tokenizer of open_clip with {settings} has no counterpart here")
        return {"class_path": HF_TOKENIZER, "init_args": arguments}
    return {"class_path": CLIP_TOKENIZER}


@dataclass(frozen=True)
class TheirText:
    """A text tower of ours in open_clip's terms.

    Attributes:
        config: `text_cfg`.
        rules: of its names, those of the projection included.
        tensors: of our state dict.
        quick_gelu: what open_clip's flag must be.
        prefix: `text.` where the tower is a module of its own (`custom_text`).
    """

    config: dict[str, Any]
    rules: list[Rule]
    tensors: dict[str, Tensor]
    quick_gelu: bool
    prefix: str = ""


def to_theirs(model: TwoTower, end_id: int | None) -> TheirText:
    """Translates the text tower of a model.

    Args:
        model: ours.
        end_id: see `open_clip.to_open_clip`.

    Raises:
        ValueError: open_clip cannot build it.
    """
    state = {n: v for n, v in model.state_dict().items() if n.startswith(("text.", "text_"))}
    projection, tower = projection_of(model.text_projection), model.text
    if isinstance(tower, HFTextTower):
        return _to_hf(tower, projection, state)
    if not isinstance(tower, ClipTextTower | SiglipTextTower):
        raise ValueError(
            f"open_clip has no text tower like a {type(tower).__name__}; its texts would be "
            "encoded by nothing"
        )
    if "mlp" in projection:
        raise ValueError("open_clip's text transformer has no projection of two layers")
    config, activation = _settings(tower), tower.trunk.config.hidden_act
    pooled_last = isinstance(tower, SiglipTextTower) and tower.pooling == "last"
    if pooled_last:
        config["pool_type"] = "last"
    elif end_id is not None:
        config |= {"pool_type": "eos", "eos_id": end_id}
    if projection == "affine":
        config["proj_bias"] = True
    elif projection == "none":
        config["proj_type"] = "none"
    # Without a matrix of its own, or with a layer, it is what open_clip calls custom.
    prefix = "" if projection == "linear" else "text."
    rules = [*open_clip_text(prefix, type(tower)), *projection_rules(projection, prefix)]
    return TheirText(config, rules, state, activation == "quick_gelu", prefix)


def _settings(tower: ClipTextTower | SiglipTextTower) -> dict[str, Any]:
    c: Any = tower.trunk.config
    config: dict[str, Any] = {
        "context_length": tower.context_length,
        "vocab_size": c.vocab_size,
        "width": c.hidden_size,
        "heads": c.num_attention_heads,
        "layers": c.num_hidden_layers,
        "mlp_ratio": ratio(c.intermediate_size, c.hidden_size),
    }
    if c.hidden_act == "gelu_pytorch_tanh":
        config["act_kwargs"] = {"approximate": "tanh"}
    if c.layer_norm_eps != 1e-5:
        config["norm_kwargs"] = {"eps": c.layer_norm_eps}
    if isinstance(tower, SiglipTextTower):
        config |= {"no_causal_mask": True, "pad_id": tower.pad_id}
    return config


def _to_hf(tower: HFTextTower, projection: str, state: dict[str, Tensor]) -> TheirText:
    name = getattr(tower.config, "_name_or_path", "")
    poolers = {ours: theirs for theirs, ours in POOLERS.items()}
    if tower.pooling not in poolers:
        raise ValueError(
            f"open_clip's text tower of this kind does not pool the {tower.pooling} state; it has "
            f"{', '.join(poolers)}"
        )
    kinds = {"linear": "linear", "mlp": "mlp", "none": None}
    if not name or projection not in kinds:
        raise ValueError(
            "open_clip finds the configuration of such a text tower by transformers' name for it, "
            "with a projection without biases, and this one has neither"
            if not name
            else "open_clip's text tower of this kind has no projection with biases"
        )
    config = {
        "hf_model_name": name,
        "hf_model_pretrained": False,
        "hf_tokenizer_name": name,
        "hf_pooler_type": poolers[tower.pooling],
        "hf_proj_type": kinds[projection],
        "context_length": tower.context_length,
    }
    return TheirText(config, hf_rules(projection, "text."), state, False, "text.")
