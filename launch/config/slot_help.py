"""`counterpoint fit --help SLOT`: every key of a slot, and every class that may stand in it.

In: the parser, and the classes of this package, found by importing its parts. Out: text. Classes of
other libraries are left out: of `nn.Module` alone there are thousands.
"""

import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

from torch import nn

from ...losses.base import Term
from ...losses.components.heads import MLP
from ...train.phases import Phase
from . import signatures
from .fit_help import ABOUT, packaged
from .parser import make_parser
from .signatures import REQUIRED, Parameter

MAX_TYPE = 60
# What the parser has about a slot without words of its own.
GENERIC = "One or more arguments specifying"
OURS = __name__.partition(".")[0]


def listing(slot: str) -> str:
    """Returns the keys of a slot and the classes that may stand there."""
    parts = [f"{slot}: {ABOUT[slot]}", packaged(slot), "Keys:\n" + "\n".join(_keys(slot))]
    kinds = [parameter.kind for parameter in _parameters(slot).values()]
    listed: set[type] = set()
    for base in families(kinds):
        members = _members(base)
        if not members:
            continue
        new = [kind for kind in members if kind not in listed]
        lines = [line for kind in new for line in _class_lines(kind, base)]
        if above := [kind.__name__ for kind in members if kind in listed]:
            lines.append(f"  as above: {', '.join(above)}")
        listed |= set(members)
        parts.append("\n".join([f"{base.__name__} ({_summary(base)}):", *lines]))
    more = "--print_config prints a whole configuration; docs/ explains how slots work together."
    return "\n\n".join([*filter(None, parts), more])


def _parameters(slot: str) -> dict[str, Parameter]:
    if slot == "phases":
        return {f"phases.NAME.{n}": p for n, p in signatures.parameters(Phase).items()}
    keys = signatures.keys_of(make_parser())
    return {n: p for n, p in keys.items() if n == slot or n.startswith(f"{slot}.")}


def _keys(slot: str) -> Iterator[str]:
    for name, parameter in _parameters(slot).items():
        yield _line(f"  --{name}", parameter)


def families(kinds: list[Any]) -> list[type]:
    """Returns the classes of this package that values of these types are made of.

    Those that a user chooses from (an abstract class, or one with others derived from it) and
    those with keys of their own; each after what names it.
    """
    found: dict[type, None] = {}
    queue = list(kinds)
    while queue:
        kind = queue.pop(0)
        if typing.get_args(kind):
            queue += typing.get_args(kind)
            continue
        if kind is nn.Module:
            # A term, or a head of one; what else keeps their contracts is the user's own.
            queue += [Term, MLP]
        if not inspect.isclass(kind) or kind.__module__.partition(".")[0] != OURS or kind in found:
            continue
        found[kind] = None
        for one in _members(kind):
            queue += [parameter.kind for parameter in signatures.parameters(one).values()]
    return list(found)


def _members(base: type) -> list[type]:
    if signatures.is_closed(base):
        return [base]
    own = [k for k in signatures.classes(base).values() if k.__module__.partition(".")[0] == OURS]
    return sorted(own, key=lambda kind: (kind.__module__, kind.__name__))


def _class_lines(kind: type, base: type) -> Iterator[str]:
    if kind is not base or not signatures.is_closed(base):
        yield f"  {kind.__module__}.{kind.__name__}"
        yield f"      {_summary(kind)}"
    for name, parameter in signatures.parameters(kind).items():
        yield _line(f"      {name}", parameter)


def _line(start: str, parameter: Parameter) -> str:
    kind = signatures.described(parameter.kind) if parameter.kind is not REQUIRED else ""
    kind = kind if len(kind) <= MAX_TYPE else f"{kind[:MAX_TYPE]}..."
    default = "required" if parameter.default is REQUIRED else f"default {_value(parameter)}"
    text = " ".join(parameter.text.split())
    text = "" if text.startswith(GENERIC) else text
    facts = "; ".join(filter(None, [kind, default]))
    return f"{start}: {text} ({facts})" if text else f"{start} ({facts})"


def _value(parameter: Parameter) -> str:
    value = parameter.default
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = list(value)
    return re.sub(r"<(\S+) object at \w+>|<class '(.*?)'>", r"\1\2", str(value))


def _summary(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0].rstrip(".")
