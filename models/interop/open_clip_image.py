"""Image towers of open_clip: its own ViT and ResNet, and timm's models behind its adapter.

In: `vision_cfg` and tensors, or a `TwoTower`. Out: which `TimmTower` it is, how it projects, and
the rules of names; for the way back, `vision_cfg` and the rules.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..image import TimmTower
from ..two_tower import TwoTower
from .base import TIMM_TOWER, Pixels
from .names import Rule, ratio
from .names import to_theirs as rename
from .resnet_names import resnet_rules
from .vit_facts import VitFacts, plain_vit, without_patch_bias
from .vit_names import TRUNK, clip_vit, open_clip_vit

# Settings of the ViT that are read here, or that change nothing once it is trained.
READ = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value"}
READ |= {"no_ln_pre", "pool_type", "final_ln_after_pool", "act_kwargs", "norm_kwargs"}
READ |= {"patch_dropout", "output_tokens", "pos_embed_type", "block_type"}
# Arguments of timm's models that change nothing once they are trained.
TRAINING = {"weight_init", "drop_rate", "pos_drop_rate", "patch_drop_rate"}
TRAINING |= {"proj_drop_rate", "attn_drop_rate", "drop_path_rate"}
# Where timm's classifiers are.
HEADS = ("trunk.head.", "trunk.head.fc.")
# timm's names of OpenAI's ResNets by the layers of their stages and their width.
RESNETS = {
    (3, 4, 6, 3, 64): "resnet50_clip",
    (3, 4, 23, 3, 64): "resnet101_clip",
    (4, 6, 10, 6, 80): "resnet50x4_clip",
    (6, 8, 18, 8, 96): "resnet50x16_clip",
    (3, 15, 36, 10, 128): "resnet50x64_clip",
}
PROJECTION = Rule("image_projection.weight", "visual.proj", "transposed")


@dataclass(frozen=True)
class ImagePart:
    """An image tower of open_clip in our terms.

    Attributes:
        config: value of `model.image`.
        projection: value of `model.image_projection`.
        rules: of its names, those of the projection included.
        constants: tensors of ours that open_clip has not.
    """

    config: dict[str, Any]
    projection: str
    rules: list[Rule]
    constants: dict[str, Tensor] = field(default_factory=dict)


def part(
    config: Mapping[str, Any], quick_gelu: bool, state: Mapping[str, Tensor], pixels: Pixels
) -> ImagePart:
    """Translates an image tower.

    Args:
        config: `vision_cfg`.
        quick_gelu: open_clip's flag; timm's models do not heed it.
        state: tensors under open_clip's names.
        pixels: how images are prepared.

    Raises:
        ValueError: a setting has no counterpart here.
    """
    size = {"image_size": pixels.image_size, "mean": [*pixels.mean], "std": [*pixels.std]}
    if config.get("timm_model_name"):
        return _timm(config, state, size)
    if isinstance(config.get("layers"), list | tuple):
        return _resnet(config, size)
    return _vit(config, quick_gelu, size)


def check_defaults(config: Mapping[str, Any], defaults: Any, read: set[str], what: str) -> None:
    """Refuses settings that are neither read nor at open_clip's defaults."""
    usual = asdict(defaults)
    for name, value in config.items():
        if name not in read and value != usual.get(name):
            raise ValueError(
                f"{what} of open_clip with {name}: {value} has no counterpart here; as a teacher "
                "it can be used (counterpoint.models.teachers.foreign.OpenClip)"
            )


def _vit(config: Mapping[str, Any], quick_gelu: bool, size: dict[str, Any]) -> ImagePart:
    import open_clip

    defaults = open_clip.CLIPVisionCfg()
    check_defaults(config, defaults, READ, "an image tower")
    c: Any = open_clip.CLIPVisionCfg(**config)
    tanh = (c.act_kwargs or {}).get("approximate") == "tanh"
    activation = "quick_gelu" if quick_gelu else "gelu_tanh" if tanh else "gelu"
    mlp_width = int(c.width * c.mlp_ratio)
    sizes = (c.patch_size, c.width, c.layers, c.width // c.head_width, mlp_width)
    tower = clip_vit(*sizes, activation, (c.norm_kwargs or {}).get("eps", 1e-5))
    args, final_norm, constants = tower["model_args"], "norm", {}
    if c.ls_init_value is not None:
        args["init_values"] = c.ls_init_value
    if c.no_ln_pre:
        args["pre_norm"] = False  # and timm's embedding of patches has a bias
        constants[f"{TRUNK}patch_embed.proj.bias"] = torch.zeros(c.width)
    if c.pool_type == "avg":
        args |= {"global_pool": "avg", "fc_norm": c.final_ln_after_pool}
        final_norm = "fc_norm" if c.final_ln_after_pool else "norm"
    elif c.pool_type != "tok":
        raise ValueError(f"an image tower of open_clip with pool_type {c.pool_type} pools nothing")
    rules = [*open_clip_vit(final_norm), PROJECTION]
    return ImagePart(_tower(tower, size), "linear", rules, constants)


def _resnet(config: Mapping[str, Any], size: dict[str, Any]) -> ImagePart:
    sizes = (*config["layers"], config.get("width", 64))
    if sizes not in RESNETS:
        raise ValueError(f"timm has no CLIP ResNet of {sizes[:4]} layers and width {sizes[4]}")
    return ImagePart(
        _tower({"name": RESNETS[sizes], "model_args": {}}, size), "affine", resnet_rules(sizes[:4])
    )


def _timm(
    config: Mapping[str, Any], state: Mapping[str, Tensor], size: dict[str, Any]
) -> ImagePart:
    pool, projection = config.get("timm_pool", "avg"), config.get("timm_proj", "linear")
    if pool in ("abs_attn", "rot_attn"):
        raise ValueError(
            f"an image tower of open_clip with timm_pool {pool} has no counterpart here"
        )
    args = {"global_pool": pool} if pool else {}
    kind = {"none": "none", "mlp": "wide_mlp", "linear": "linear"}.get(projection or "", "affine")
    if projection == "linear" and config.get("timm_proj_bias"):
        kind = "affine"
    tower = {"name": config["timm_model_name"], "model_args": args}
    head = next((h for h in HEADS if f"visual.{h}weight" in state), "") if not projection else ""
    return ImagePart(_tower(tower, size), kind, timm_rules(kind, head))


def timm_rules(projection: str, head: str = "") -> list[Rule]:
    """Rules of a model of timm behind open_clip's adapter.

    Args:
        projection: value of `model.image_projection`.
        head: timm's name of its classifier, where that is the projection.
    """
    rules = {
        "linear": [Rule("image_projection.weight", "visual.head.proj.weight")],
        "affine": [Rule("image_projection.{}", f"visual.{head or 'head.proj.'}{{}}")],
        "wide_mlp": [
            Rule("image_projection.0.{}", "visual.head.mlp.fc1.{}"),
            Rule("image_projection.2.weight", "visual.head.mlp.fc2.weight"),
        ],
        "none": [],
    }[projection]
    return [*rules, Rule(f"{TRUNK}{{*}}", "visual.trunk.{*}")]


def _tower(tower: dict[str, Any], size: dict[str, Any]) -> dict[str, Any]:
    arguments = {"name": tower["name"], **size}
    if tower["model_args"]:
        arguments["model_args"] = tower["model_args"]
    return {"class_path": TIMM_TOWER, "init_args": arguments}


@dataclass(frozen=True)
class TheirImage:
    """An image tower of ours in open_clip's terms.

    Attributes:
        config: `vision_cfg`.
        rules: of its names, those of the projection included.
        tensors: of our state dict, as the rules expect them.
        quick_gelu: what open_clip's flag must be; None where it means nothing.
    """

    config: dict[str, Any]
    rules: list[Rule]
    tensors: dict[str, Tensor]
    quick_gelu: bool | None


def to_theirs(model: TwoTower) -> TheirImage:
    """Translates the image tower of a model: to open_clip's own ViT, or to timm's behind it.

    Raises:
        ValueError: open_clip cannot build it.
    """
    state = {n: v for n, v in model.state_dict().items() if n.startswith(("image.", "image_"))}
    facts = plain_vit(model.image)
    reason = facts if isinstance(facts, str) else _lacking(facts, model)
    if not reason:
        assert isinstance(facts, VitFacts) and isinstance(model.image, TimmTower)
        return _to_vit(facts, model.image, state)
    if isinstance(model.image, TimmTower) and model.image.mask_token is None:
        tower, kind = model.image, projection_of(model.image_projection)
        sizes = next((s for s, name in RESNETS.items() if name == tower.name), None)
        if sizes is not None and not tower.model_args and kind == "affine":
            *layers, width = sizes
            config = {"image_size": tower.image_size, "layers": layers, "width": width}
            return TheirImage(config, resnet_rules(layers), state, None)
        found = _to_timm(model.image, model.image_projection, state)
        if isinstance(found, TheirImage):
            return found
        reason += f"; and of timm's models {found}"
    raise ValueError(f"open_clip has no image tower like this one: {reason}")


def _to_timm(tower: TimmTower, projection: nn.Module, state: dict[str, Tensor]) -> TheirImage | str:
    """The tower behind open_clip's adapter, or why it cannot be there."""
    from open_clip.timm_model import TimmModel

    kind, dim = projection_of(projection), state_dim(projection, tower.width)
    if kind == "mlp":
        return "none has a projection of two layers without biases"
    if changed := sorted(tower.model_args.keys() - TRAINING - {"global_pool"}):
        return f"it builds those as they are, and this one was changed ({', '.join(changed)})"
    usual = getattr(tower.trunk, "global_pool", "avg")
    config: dict[str, Any] = {
        "timm_model_name": tower.name,
        "timm_model_pretrained": False,
        "timm_pool": tower.model_args.get("global_pool", usual if kind == "none" else ""),
        "timm_proj": {"none": "none", "wide_mlp": "mlp"}.get(kind, "linear"),
        "timm_proj_bias": kind == "affine",
        "image_size": tower.image_size,
    }
    choices = [(config, timm_rules(kind))]
    if kind == "affine":  # timm's classifier, which is built with the pooling that it is for
        choices += [(config | {"timm_proj": None}, timm_rules(kind, head)) for head in HEADS]
    for theirs, rules in choices:
        with torch.device("meta"):
            built = TimmModel(
                tower.name,
                dim,
                tower.image_size,
                pool=theirs["timm_pool"],
                proj=theirs["timm_proj"],
                proj_bias=theirs["timm_proj_bias"],
            ).state_dict()
        ours = {n.removeprefix("visual."): v.shape for n, v in rename(rules, state).items()}
        if ours == {n: v.shape for n, v in built.items()}:
            return TheirImage(theirs, rules, state, None)
    return f"{tower.name} is built otherwise there, or for images of another size"


def projection_of(projection: nn.Module) -> str:
    """Which kind of projection a module is; see `two_tower.Projection`."""
    if isinstance(projection, nn.Linear):
        return "linear" if projection.bias is None else "affine"
    if isinstance(projection, nn.Sequential):
        return "mlp" if projection[0].bias is None else "wide_mlp"
    return "none"


def state_dim(projection: nn.Module, width: int) -> int:
    """Length of the embedding of a tower of this width."""
    weights = [p for p in projection.parameters() if p.ndim == 2]
    return len(weights[-1]) if weights else width


def _lacking(facts: VitFacts, model: TwoTower) -> str:
    """What open_clip's own ViT lacks of this one; "" if it is the same."""
    if not model.image.has_class_token or facts.pooling not in ("token", "avg"):
        return (
            "its own ViT always has a class token, and pools it or the mean of the patches (train "
            "with class_token: true and global_pool: token or avg)"
        )
    if not isinstance(model.image_projection, nn.Linear) or model.image_projection.bias is not None:
        return "its own ViT has a projection without a bias"
    if facts.pooling == "token" and facts.norm_last:
        return "its own ViT normalises before it takes the class token"
    return ""


def _to_vit(facts: VitFacts, tower: TimmTower, state: dict[str, Tensor]) -> TheirImage:
    config: dict[str, Any] = {
        "image_size": tower.image_size,
        "layers": facts.depth,
        "width": facts.width,
        "head_width": facts.width // facts.num_heads,
        "mlp_ratio": ratio(facts.mlp_width, facts.width),
        "patch_size": facts.patch_size,
    }
    if not facts.norm_first:
        config["no_ln_pre"] = True
    if facts.epsilon != 1e-5:
        config["norm_kwargs"] = {"eps": facts.epsilon}
    if facts.activation == "gelu_tanh":
        config["act_kwargs"] = {"approximate": "tanh"}
    if facts.pooling == "avg":
        config |= {"pool_type": "avg", "final_ln_after_pool": facts.norm_last}
    if facts.layer_scale:
        config["ls_init_value"] = 1.0  # replaced by the weights
    rules = [*open_clip_vit("fc_norm" if facts.norm_last else "norm"), PROJECTION]
    tensors = without_patch_bias(state, tower.trunk)  # type: ignore[arg-type]
    return TheirImage(config, rules, tensors, facts.activation == "quick_gelu")
