"""Tensors of one layout under the names of another, in both directions, by one table.

In: tensors by name, and rules. Out: the same numbers under other names, cut apart or joined, with
other axes of length one. Nothing is computed, so that a way forth and back changes no byte.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

HOLE = re.compile(r"\{\*?\}")
Change = Literal["", "transposed", "+1", "+2"]


@dataclass(frozen=True)
class Rule:
    """Tensors of ours and the same of theirs.

    Attributes:
        ours: name, or names of tensors that stand joined along their first axis. `{}` is the same
            on both sides, a layer's number, `weight` or `bias`; `{*}` may be several, with dots.
        theirs: likewise.
        change: of a tensor: theirs is ours `transposed`, or ours has one or two leading axes of
            length one more.
        parts: where one side is joined, how long each part is compared with the others.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    change: Change = ""
    parts: tuple[int, ...] = (1, 1, 1)


def to_ours(rules: Sequence[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames each of `tensors` by the first rule that names it; see `unnamed` for the others."""
    flipped = {"+1": "-1", "+2": "-2"}
    renamed, rest = {}, dict(tensors)
    for rule in rules:
        change = flipped.get(rule.change, rule.change)
        renamed |= _renamed(rest, _many(rule.theirs), _many(rule.ours), change, rule.parts)
    return renamed


def to_theirs(rules: Sequence[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back."""
    renamed, rest = {}, dict(tensors)
    for rule in rules:
        renamed |= _renamed(rest, _many(rule.ours), _many(rule.theirs), rule.change, rule.parts)
    return renamed


def unnamed(rules: Sequence[Rule], theirs: Iterable[str]) -> list[str]:
    """Names of theirs that no rule has a place for."""
    patterns = [_pattern(name) for rule in rules for name in _many(rule.theirs)]
    return [name for name in theirs if not any(p.fullmatch(name) for p in patterns)]


def _renamed(
    tensors: dict[str, Tensor],
    source: tuple[str, ...],
    target: tuple[str, ...],
    change: str,
    parts: tuple[int, ...],
) -> dict[str, Tensor]:
    """Takes what the first pattern of `source` names out of `tensors`."""
    pattern, renamed = _pattern(source[0]), {}
    for name in list(tensors):
        if (match := pattern.fullmatch(name)) is None:
            continue
        names = [_filled(template, match.groups()) for template in source]
        if missing := [name for name in names if name not in tensors]:
            raise ValueError(f"the weights hold {name} and no {missing[0]}: the file is incomplete")
        joined = [tensors.pop(name) for name in names]
        tensor = torch.cat(joined) if len(names) > 1 else joined[0]
        pieces = [_changed(tensor, change)]
        if len(target) > 1:
            unit = len(tensor) // sum(parts)
            pieces = [piece.clone() for piece in tensor.split([unit * part for part in parts])]
        for template, piece in zip(target, pieces, strict=True):
            renamed[_filled(template, match.groups())] = piece
    return renamed


def _changed(tensor: Tensor, change: str) -> Tensor:
    match change:
        case "transposed":
            return tensor.T.contiguous()
        case "+1" | "+2":  # towards theirs
            return tensor.reshape(tensor.shape[int(change) :])
        case "-1" | "-2":
            return tensor.reshape(*(1,) * -int(change), *tensor.shape)
    return tensor


def _pattern(template: str) -> re.Pattern[str]:
    literals = HOLE.split(template)
    holes = [".+" if hole == "{*}" else "[^.]+" for hole in HOLE.findall(template)]
    return re.compile(
        "".join(
            re.escape(literal) + f"({hole})" * bool(hole)
            for literal, hole in zip(literals, [*holes, ""], strict=True)
        )
    )


def _filled(template: str, values: Sequence[str]) -> str:
    rest = iter(values)
    return HOLE.sub(lambda _: next(rest), template)


def _many(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def ratio(inner: int, width: int) -> float:
    """Returns the factor that gives `inner` when `width` times it is rounded down."""
    factor = inner / width
    return factor if int(width * factor) == inner else (inner + 0.5) / width
