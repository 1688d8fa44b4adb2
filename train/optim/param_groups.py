"""Parameter groups: each parameter's learning rate and weight decay.

Weight decay as usual for CLIP (open_clip, from Radford et al. 2021, section 2.5): on matrices
only; gains, biases, the logit scale and bias and the objective's heads get none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from torch import nn

from ...losses.distributed.sharded_rows import RowShard

OBJECTIVE = "objective."
KINDS = ("matrices", "vectors", "scalars", "heads", "row_shards")


@dataclass(frozen=True)
class Tower:
    """Settings of one tower, its projection included.

    Attributes:
        rate: learning rate as a multiple of the phase's.
        weight_decay: None: the optimizer's.
        layer_decay: each layer's rate as a multiple of that of the layer above it (Bao et al.
            2021): 1 for what follows the layers, this for the last layer, and so on down to the
            embeddings.
    """

    rate: float = 1.0
    weight_decay: float | None = None
    layer_decay: float = 1.0


@dataclass(frozen=True)
class Groups:
    """Exceptions from the usual groups.

    Attributes:
        image, text: rates and decays of a tower.
        no_decay: patterns of matrices without decay, such as "*.pos_embed".
        frozen: patterns of parameters that are not trained, such as "image.*" (LiT).
    """

    image: Tower = Tower()
    text: Tower = Tower()
    no_decay: Sequence[str] = field(default_factory=tuple)
    frozen: Sequence[str] = field(default_factory=tuple)


USUAL = Groups()


def parameter_groups(
    model: nn.Module,
    objective: nn.Module | None,
    weight_decay: float,
    scalar_rate: float = 1.0,
    groups: Groups = USUAL,
) -> list[dict[str, Any]]:
    """Splits trainable parameters into KINDS; only matrices have weight decay.

    Each group's `rate` is what the phase's learning rate is multiplied by. Without exceptions there
    is one group a kind, in this order; exceptions split them in the order of their parameters.
    """
    named = {n: p for n, p in named_parameters(model, objective).items() if p.requires_grad}
    check_patterns("no_decay", groups.no_decay, list(named))
    layers = layer_rates(model, groups)
    by_setting: dict[tuple[int, float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        kind = kind_of(name, parameter)
        tower = _tower(name, groups)
        rate, decay = 1.0, 0.0
        if kind == "scalars":
            rate = scalar_rate
        elif kind not in ("heads", "row_shards"):
            rate = tower.rate * layers.get(parameter, 1.0)
        if kind == "matrices" and not matches(name, groups.no_decay):
            decay = weight_decay if tower.weight_decay is None else tower.weight_decay
        by_setting.setdefault((KINDS.index(kind), rate, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "rate": rate}
        for (_, rate, decay), parameters in sorted(by_setting.items(), key=lambda item: item[0][0])
    ]


def kind_of(name: str, parameter: nn.Parameter) -> str:
    """Returns one of KINDS.

    Row shards are a kind of their own: torch steps no sharded tensors (FSDP2) together with others.
    """
    if isinstance(parameter, RowShard):
        return "row_shards"
    if parameter.ndim < 2 and parameter.numel() == 1:
        return "scalars"
    if name.startswith(OBJECTIVE):
        return "heads"
    return "matrices" if parameter.ndim >= 2 else "vectors"


def tower_of(name: str) -> str:
    """Returns `image` or `text` (projections included), else `rest`."""
    first = name.split(".")[0].removesuffix("_projection")
    return first if first in ("image", "text") else "rest"


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a shell-style pattern matches a parameter's name."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def check_patterns(key: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuses patterns that match no name."""
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise ValueError(
                f"optim.groups.{key} names {pattern!r}, which no parameter is called; names look "
                f"like {names[len(names) // 2]!r}"
            )


def _tower(name: str, groups: Groups) -> Tower:
    return getattr(groups, tower_of(name), Tower())


def layer_rates(model: nn.Module, groups: Groups) -> dict[nn.Parameter, float]:
    """Returns the multiples by `layer_decay` of the parameters of towers that have one.

    What precedes a tower's layers (embeddings, tokens, positions) is one below the lowest, what
    follows them is one above the last; parameters between two layers belong to the upper one.

    Raises:
        ValueError: a tower with a `layer_decay` has no layers.
    """
    rates = {}
    for name in ("image", "text"):
        decay = getattr(groups, name).layer_decay
        if decay == 1:
            continue
        layers = (tower := getattr(model, name)).layers()
        if not layers:
            raise ValueError(
                f"optim.groups.{name}.layer_decay is {decay}, and a {type(tower).__name__} has no "
                "layers of its own; return them from its method `layers`, or remove layer_decay"
            )
        numbers = {p: i for i, layer in enumerate(layers, start=1) for p in layer.parameters()}
        top = number = len(layers) + 1
        for parameter in reversed(list(tower.parameters())):
            number = numbers.get(parameter, number)
            is_below = number == 1 and parameter not in numbers
            rates[parameter] = decay ** (top - (0 if is_below else number))
    return rates


def named_parameters(
    model: nn.Module, objective: nn.Module | None = None
) -> dict[str, nn.Parameter]:
    """Returns parameters by the names that patterns use, the objective's as `objective.*`."""
    named = dict(model.named_parameters())
    if objective is not None:
        named |= {f"{OBJECTIVE}{name}": p for name, p in objective.named_parameters()}
    return named
