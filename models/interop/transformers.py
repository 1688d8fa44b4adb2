"""Two-tower models of transformers: configuration and tensors into ours, and ours into theirs.

In: a folder of `save_pretrained` with a `CLIPModel`, `SiglipModel` (SigLIP 2 of fixed resolution is
one), `AltCLIPModel`, `ChineseCLIPModel` or `MetaClip2Model`, or a `TwoTower`. Out: a
`ForeignModel`, or a configuration with a state dict.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..two_tower import TwoTower
from . import transformers_text
from .archive import read_settings, read_shards
from .base import CLIP_TOKENIZER, HF_TOKENIZER, SCALARS, TIMM_TOWER, ForeignModel, Pixels
from .names import Rule, to_ours, to_theirs, unnamed
from .vit_facts import VitFacts, plain_vit, without_patch_bias
from .vit_names import TRUNK, clip_vit, siglip_vit

CONFIG = "config.json"
FAMILIES = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "altclip": "AltCLIPModel",
    "chinese_clip": "ChineseCLIPModel",
    "metaclip_2": "MetaClip2Model",
}
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
# transformers' names of activations and timm's.
ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}
ACTIVATIONS |= {"gelu_new": "gelu_tanh"}
LAYERS = "vision_model.encoder.layers."
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def read_folder(folder: Path) -> ForeignModel:
    """Reads a folder of `save_pretrained`.

    Raises:
        ValueError: a file is missing, or the model is none of those named above.
    """
    from transformers import AutoConfig

    kind = read_settings(folder / CONFIG).get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{folder} holds a transformers model of type {kind}; only {', '.join(FAMILIES)} can "
            "be converted (as a teacher, any with image and text features can be used: "
            "counterpoint.models.teachers.foreign.Transformers)"
        )
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return convert(config, read_shards(folder), folder)


def convert(config: Any, tensors: Mapping[str, Tensor], folder: Path) -> ForeignModel:
    """Translates a model.

    Args:
        config: transformers' configuration of the whole model.
        tensors: its state dict.
        folder: where its image processor and tokenizer are described.

    Raises:
        ValueError: a setting or tensor has no counterpart here.
    """
    siglip = config.model_type == "siglip"
    vision, pixels = config.vision_config, pixels_of(folder, config)
    tower = _vit(vision, siglip)
    text = transformers_text.part(config)
    # Releases of transformers differ in AltCLIP's names.
    named = ((n.replace("vision_model.encoder.layer.", LAYERS), v) for n, v in tensors.items())
    state = {n: v for n, v in named if not n.endswith("position_ids")}
    rules = [*image_rules(siglip), *text.rules]
    weights = to_ours(rules, state)
    weights |= {name: state[name].reshape(1) for name in SCALARS if name in state}
    if left := [n for n in unnamed(rules, state) if n not in SCALARS]:
        raise ValueError(
            f"{folder} holds {len(left)} tensors that a {FAMILIES[config.model_type]} has no place "
            f"for ({', '.join(left[:3])})"
        )
    statistics = {"mean": [*pixels.mean], "std": [*pixels.std]}
    arguments = {"name": tower["name"], "image_size": pixels.image_size, **statistics}
    if tower["model_args"]:
        arguments["model_args"] = tower["model_args"]
    model: dict[str, Any] = {
        "embed_dim": vision.hidden_size if siglip else config.projection_dim,
        "image": {"class_path": TIMM_TOWER, "init_args": arguments},
        "text": text.config,
    }
    if siglip:
        model |= {"image_projection": "none", "text_projection": "affine"}
    return ForeignModel(
        f"transformers {FAMILIES[config.model_type]}",
        model,
        weights,
        pixels,
        tokenizer(folder, text.vocab_size),
        text.context_length,
    )


def _vit(vision: Any, siglip: bool) -> dict[str, Any]:
    activation = ACTIVATIONS.get(vision.hidden_act)
    epsilon = vision.layer_norm_eps
    if activation is None or (siglip and epsilon != 1e-6):
        raise ValueError(
            f"an image tower with activation {vision.hidden_act} and norms of eps {epsilon} has no "
            "counterpart here"
        )
    sizes = (vision.patch_size, vision.hidden_size, vision.num_hidden_layers)
    sizes += (vision.num_attention_heads, vision.intermediate_size)
    return siglip_vit(*sizes, activation) if siglip else clip_vit(*sizes, activation, epsilon)


def image_rules(siglip: bool) -> list[Rule]:
    """Rules of the image tower and its projection."""
    ours, theirs = f"{TRUNK}blocks.{{}}.", f"{LAYERS}{{}}."
    attention = tuple(f"{theirs}self_attn.{name}_proj.{{}}" for name in "qkv")
    embeddings = "vision_model.embeddings."
    rules = [
        Rule(f"{TRUNK}cls_token", f"{embeddings}class_embedding", "+2"),
        Rule(f"{TRUNK}patch_embed.proj.{{}}", f"{embeddings}patch_embedding.{{}}"),
        Rule(f"{TRUNK}pos_embed", f"{embeddings}position_embedding.weight", "+1"),
        Rule(f"{TRUNK}norm_pre.{{}}", "vision_model.pre_layrnorm.{}"),
        Rule(f"{ours}norm1.{{}}", f"{theirs}layer_norm1.{{}}"),
        Rule(f"{ours}attn.qkv.{{}}", attention),
        Rule(f"{ours}attn.proj.{{}}", f"{theirs}self_attn.out_proj.{{}}"),
        Rule(f"{ours}norm2.{{}}", f"{theirs}layer_norm2.{{}}"),
        Rule(f"{ours}mlp.{{}}.{{}}", f"{theirs}mlp.{{}}.{{}}"),
        Rule(f"{TRUNK}norm.{{}}", "vision_model.post_layernorm.{}"),
        Rule("image_projection.weight", "visual_projection.weight"),
    ]
    if siglip:
        pool, head = f"{TRUNK}attn_pool.", "vision_model.head."
        joined = (f"{pool}q.{{}}", f"{pool}kv.{{}}")
        rules += [
            Rule(f"{pool}latent", f"{head}probe"),
            Rule(joined, f"{head}attention.in_proj_{{}}", parts=(1, 2)),
            Rule(f"{pool}proj.{{}}", f"{head}attention.out_proj.{{}}"),
            Rule(f"{pool}norm.{{}}", f"{head}layernorm.{{}}"),
            Rule(f"{pool}mlp.{{}}.{{}}", f"{head}mlp.{{}}.{{}}"),
        ]
    return rules


def pixels_of(folder: Path, config: Any) -> Pixels:
    """How images are prepared, as the folder's image processor says; else as the family does."""
    siglip, size = config.model_type == "siglip", config.vision_config.image_size
    usual = Pixels(size, (0.5,) * 3, (0.5,) * 3, resize="squash") if siglip else Pixels(size)
    found = image_processor(folder)
    if not found.get("do_normalize", True):
        found |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    scaled, cut = found.get("size", size), found.get("crop_size", size)
    shortest = scaled.get("shortest_edge") if isinstance(scaled, dict) else None
    cut = cut.get("height") if isinstance(cut, dict) else cut
    crops = bool(found.get("do_center_crop", not siglip))
    return Pixels(
        size,
        tuple(found.get("image_mean") or usual.mean),
        tuple(found.get("image_std") or usual.std),
        RESAMPLE.get(found.get("resample", 3), "bicubic"),  # type: ignore[arg-type]
        "shortest" if crops else "squash",
        cut / shortest if crops and shortest and cut else 1.0,
        centre="up",
    )


def image_processor(folder: Path) -> dict[str, Any]:
    """Returns the settings of the folder's image processor; {}: it has none."""
    settings: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = read_settings(folder / name)
            settings |= content.get("image_processor", content)
    return settings


def tokenizer(folder: Path, vocab_size: int) -> dict[str, Any]:
    """Returns the value of `data.tokenizer`."""
    if not any((folder / name).is_file() for name in TOKENIZERS) and vocab_size == 49408:
        return {"class_path": CLIP_TOKENIZER}
    return {"class_path": HF_TOKENIZER, "init_args": {"name": str(folder)}}


def to_transformers(model: TwoTower) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the configuration (`config.json`) and state dict of a model of ours.

    A `ClipTextTower` makes a `CLIPModel`, a `SiglipTextTower` a `SiglipModel`.

    Raises:
        ValueError: transformers has no such model; the message says what would be lost.
    """
    siglip = transformers_text.is_siglip(model)
    family = "SiglipModel" if siglip else "CLIPModel"
    facts = plain_vit(model.image)
    reason = facts if isinstance(facts, str) else _lacking(facts, model, siglip)
    if reason:
        raise ValueError(f"transformers' {family} has no image tower like this one: {reason}")
    if not siglip and model.logit_bias is not None:
        raise ValueError(
            "transformers' CLIPModel has no bias of the logits, with which this model was trained; "
            "it would be lost (embeddings alone do not need it: export to another layout)"
        )
    assert isinstance(facts, VitFacts)
    text, rules = transformers_text.to_theirs(model)
    vision = {
        "hidden_size": facts.width,
        "intermediate_size": facts.mlp_width,
        "num_hidden_layers": facts.depth,
        "num_attention_heads": facts.num_heads,
        "image_size": model.image_size,
        "patch_size": facts.patch_size,
        "hidden_act": {v: k for k, v in list(ACTIVATIONS.items())[:3]}[facts.activation],
        "layer_norm_eps": facts.epsilon,
    }
    state = model.state_dict()
    tensors = {n: v for n, v in state.items() if n.startswith("image")}
    if not siglip:
        tensors = without_patch_bias(tensors, model.image.trunk)  # type: ignore[arg-type]
    renamed = to_theirs(image_rules(siglip), tensors)
    renamed |= to_theirs(rules, {n: v for n, v in state.items() if n.startswith("text")})
    shape = (1,) if siglip else ()
    scale = {name: state[name].reshape(shape) for name in SCALARS if name in state}
    if siglip and "logit_bias" not in scale:
        scale["logit_bias"] = scale["logit_scale"].new_zeros(1)
    config = {
        "model_type": "siglip" if siglip else "clip",
        "architectures": [family],
        "vision_config": vision,
        "text_config": text,
    }
    if not siglip:
        config["projection_dim"] = len(state["image_projection.weight"])
    return config, renamed | scale


def _lacking(facts: VitFacts, model: TwoTower, siglip: bool) -> str:
    """What transformers' ViT lacks of this one; "" if it is the same."""
    token = model.image.has_class_token
    projection = {n for n, _ in model.image_projection.named_parameters()}
    if facts.layer_scale:
        return "its layers have no scales"
    if siglip:
        if token or facts.pooling != "map" or facts.norm_first or facts.norm_last:
            return "it has attention pooling, no class token and no norm before its blocks"
        return "it has no projection" if projection else ""
    if not token or facts.pooling != "token" or not facts.norm_first or facts.norm_last:
        return "it has a class token, which it pools, and a norm before its blocks (vit_*_clip_*)"
    if projection != {"weight"}:
        return "it has a projection without a bias"
    return ""
