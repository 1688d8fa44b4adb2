"""timm's optimizers by name, over the same groups as AdamW.

`optim: {class_path: counterpoint.train.optim.timm_optimizers.Timm, init_args: {opt: lion}}` chooses
one; `timm.optim.list_optimizers()` lists the names.
"""

# timm's public names are imported names of its package.
# pyright: reportPrivateImportUsage=false

import difflib
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from timm.optim import (
    Muon,
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
)
from timm.optim.kron import Kron
from torch import nn

from .adamw import AdamW
from .param_groups import USUAL, Groups, kind_of, matches
from .probe import Traits, probe

# Some optimizers refuse 0. The phases set the learning rate before every step.
UNSET_RATE = 1e-12
ELSEWHERE = {
    "weight_decay": "; weight_decay stands beside args",
    "lr": "; the learning rate is the phases'",
}
# Not Muon's: embeddings, class and register tokens, positions, the towers' projections.
FALLBACK = ("*embed*", "*_token", "*_projection.weight")


class Timm(AdamW):
    """One of timm's optimisers, made by its `create_optimizer_v2`.

    The learning rate is the phases'. Optimizers with corrected decay (`adamc`, `lionc`, ...)
    compare it with the largest one of the run, which has to be given as `args: {lr: ...}`.

    Args:
        opt: timm's name: `lion`, `lamb`, `adafactorbv`, `nmuon`, `adopt`, ...
        args: arguments of its class besides parameters and decay: `{betas: [0.9, 0.99]}`.
        weight_decay, scalar_rate, groups: as of AdamW.
        fallback: of Muon and its relatives: patterns of matrices that AdamW takes instead,
            embeddings and projections by default. AdamW also takes vectors, single numbers and
            the objective's heads.
    """

    def __init__(
        self,
        opt: str,
        args: dict[str, Any] | None = None,
        weight_decay: float = 0.2,
        scalar_rate: float = 1.0,
        groups: Groups = USUAL,
        fallback: Sequence[str] | None = None,
    ):
        self.opt = check_name(opt)
        self.args: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in (args or {}).items()
        }
        self.fallback = fallback
        super().__init__(weight_decay=weight_decay, scalar_rate=scalar_rate, groups=groups)
        check_arguments(self.opt, self.args)
        if fallback is not None and not self.is_muon:
            raise ValueError(
                "optim.fallback names matrices that AdamW takes in place of Muon; leave it out for "
                f"'{opt}'"
            )
        if not isinstance(get_optimizer_info(self.opt).opt_class, str):
            self.create([{"params": [nn.Parameter(torch.zeros(2))]}])  # so that values are checked

    @property
    def name(self) -> str:
        return f"timm's {self.opt}"

    @property
    def is_muon(self) -> bool:
        """Whether it steps matrices only, and AdamW the rest."""
        return get_optimizer_info(self.opt).opt_class is Muon

    @cached_property
    def traits(self) -> Traits:
        """What strategies must know of its updates, measured by `probe`."""
        decay = {"weight_decay": self.weight_decay}
        return probe(lambda parameters: self.create([{"params": parameters} | decay]))

    @property
    def whole_tensors(self) -> bool:  # type: ignore[override]
        return self.traits.whole_tensors

    @property
    def own_shapes(self) -> bool:  # type: ignore[override]
        return self.traits.own_shapes

    def make(
        self, groups: list[dict[str, Any]], named: dict[str, nn.Parameter], fused: bool
    ) -> torch.optim.Optimizer:
        """Returns timm's optimizer; under Muon each group is split between Muon and AdamW."""
        if self.is_muon:
            groups = split(groups, named, FALLBACK if self.fallback is None else self.fallback)
        return self.create(groups)

    def create(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Returns the optimizer over finished groups."""
        try:
            options: dict[str, Any] = {"lr": UNSET_RATE, **self.args}
            return create_optimizer_v2(groups, self.opt, **options)
        except (AssertionError, ImportError, TypeError, ValueError) as error:
            raise ValueError(f"optim.opt '{self.opt}' cannot be made: {error}") from error


def check_name(opt: str) -> str:
    """Returns timm's spelling of a name; refuses one that does not fit a training step."""
    names = cast(list[str], list_optimizers())
    name = opt.lower()
    if name not in names:
        near = difflib.get_close_matches(name.removeprefix("lookahead_"), names, n=4, cutoff=0.5)
        guess = f"did you mean {', '.join(near)}? " if near else ""
        raise ValueError(
            f"optim.opt is '{opt}', which is no optimiser of timm: {guess}"
            "timm.optim.list_optimizers() lists them"
        )
    info = get_optimizer_info(name)
    reason = "needs second derivatives of the loss" if info.second_order else ""
    if info.opt_class is Kron:
        reason = "updates preconditioners at random, differently on every rank"
    if reason:
        raise ValueError(
            f"optim.opt is '{opt}', which {reason}: choose another optimiser "
            "(counterpoint.train.optim.sophia.SophiaG estimates curvature)"
        )
    return name


def check_arguments(opt: str, args: Mapping[str, Any]) -> None:
    """Checks the arguments' names, which timm would ignore."""
    info = get_optimizer_info(opt)
    if isinstance(info.opt_class, str):  # of a package that may be on other machines only
        return
    key, lr = "corrected_weight_decay", args.get("lr", 0)
    is_corrected = args.get(key, (info.defaults or {}).get(key, False))
    if is_corrected and not (isinstance(lr, int | float) and lr > 0):
        raise ValueError(
            f"optim.opt is '{opt}', whose decay depends on the largest learning rate of the run: "
            "give it as optim.args.lr"
        )
    accepted = set(inspect.signature(get_optimizer_class(opt, bind_defaults=False)).parameters)
    accepted -= {"params", "weight_decay"} if is_corrected else {"params", "weight_decay", "lr"}
    accepted -= set() if info.has_eps else {"eps"}
    accepted -= set() if info.has_betas else {"betas"}
    for name in args:
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            place = ELSEWHERE.get(name, "")
            raise ValueError(
                f"optim.args.{name}: '{opt}' takes no such argument{place}; {guess}it takes "
                f"{', '.join(sorted(accepted))}"
            )


def split(
    groups: Sequence[dict[str, Any]], named: Mapping[str, nn.Parameter], fallback: Sequence[str]
) -> list[dict[str, Any]]:
    """Splits groups between Muon and AdamW (`use_fallback`)."""
    fallbacks = {
        id(p)
        for name, p in named.items()
        if kind_of(name, p) != "matrices" or matches(name, fallback)
    }
    halves = [
        group
        | {"params": [p for p in group["params"] if (id(p) in fallbacks) == use_fallback]}
        | {"use_fallback": use_fallback}
        for group in groups
        for use_fallback in (False, True)
    ]
    return [group for group in halves if group["params"]]
