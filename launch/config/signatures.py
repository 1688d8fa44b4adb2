"""What a configuration may hold: keys, their types and defaults, and the classes there are.

All that is read from jsonargparse's private parts (the type of an option; the parameters of a
class, with those of `**kwargs`) is read here; tests/launch/config/test_messages.py would notice a
change.
"""

import collections.abc
import contextlib
import copy
import inspect
import pkgutil
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, Union

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse._link_arguments import ActionLink
from jsonargparse._parameter_resolvers import get_signature_parameters

PARTS = ("losses", "data", "models", "train")
# Where the classes come from that are written as one value.
VALUES = ("builtins", "datetime", "jsonargparse", "pathlib", "typing")
REQUIRED = inspect.Parameter.empty
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Parameter:
    """An argument of a class.

    Attributes:
        kind: its type.
        default: or `REQUIRED`.
        text: what the class's docstring has about it.
    """

    kind: Any
    default: Any
    text: str


def keys_of(parser: ArgumentParser) -> dict[str, Parameter]:
    """Returns the keys of a parser by dotted name; groups are not among them."""
    return {
        action.dest: Parameter(
            getattr(action, "_typehint", None), action.default, action.help or ""
        )
        for action in parser._actions
        if hasattr(action, "_typehint") and not action.dest.endswith(".help")
    }


def required_keys(parser: ArgumentParser) -> list[str]:
    """Returns the keys without which nothing is parsed."""
    return [action.dest for action in parser._actions if action.required]


def linked_keys(parser: ArgumentParser) -> dict[str, str]:
    """Returns the keys that are set by others, with those."""
    links = [action for action in parser._actions if isinstance(action, ActionLink)]
    return {link.target[0]: link.source[0][0] for link in links}


@cache
def parameters(kind: Any) -> dict[str, Parameter]:
    """Returns the arguments of a class by name, inherited ones too."""
    arguments = get_signature_parameters(kind, None)
    return {p.name: Parameter(p.annotation, p.default, p.doc or "") for p in arguments}


def accepts(kind: Any, value: Any) -> bool:
    """Whether a parser takes a value for a type."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=kind)
    except ValueError:
        return True  # a type it does not know is not checked
    try:
        parser.parse_object({"value": copy.deepcopy(value)})
    except ArgumentError:
        return False
    return True


def members(kind: Any) -> tuple[Any, ...]:
    """Returns the types of a union, or the one type."""
    return typing.get_args(kind) if is_union(kind) else (kind,)


def is_union(kind: Any) -> bool:
    """Whether a type is one of several."""
    return typing.get_origin(kind) in (Union, types.UnionType)


def values_of(kind: Any) -> Any:
    """Returns the type of a mapping's values, or None."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    is_mapping = inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping)
    return inside[1] if is_mapping and len(inside) == 2 else None


def items_of(kind: Any) -> Any:
    """Returns the type of a sequence's items, or None."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    is_sequence = inspect.isclass(origin) and issubclass(origin, collections.abc.Iterable)
    return inside[0] if is_sequence and inside and values_of(kind) is None else None


def is_class(kind: Any) -> bool:
    """Whether a value of this type is written with its arguments."""
    # Python 3.10 takes list[int] for a class.
    if not inspect.isclass(kind) or typing.get_origin(kind) is not None:
        return False
    return kind.__module__.partition(".")[0] not in VALUES


def is_closed(kind: Any) -> bool:
    """Whether a class has no others in its place (a dataclass), so that none is named."""
    return hasattr(kind, "__dataclass_fields__") and not inspect.isabstract(kind)


def described(kind: Any) -> str:
    """Returns what a type accepts in plain words."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in (None, types.NoneType):
        return "null"
    if is_union(kind):
        parts = _flat(kind)
        of_these = any(is_union(items_of(part)) for part in parts)
        rest = [part for part in parts if not is_union(items_of(part))]
        words = [described(part) for part in rest] + ["a list of these"] * of_these
        return " or ".join(dict.fromkeys(words))
    if typing.get_origin(kind) is Literal:
        return ", ".join(map(str, typing.get_args(kind)))
    if (inside := values_of(kind)) is not None:
        return "keys and values" if inside is Any else f"names, each with {described(inside)}"
    if (inside := items_of(kind)) is not None:
        if is_class(inside):
            return "a list of such classes"
        one = described(inside).partition(", such as")[0].removeprefix("a ")
        return f"a list of {one}s, such as [a, b]"
    if is_class(kind):
        return f"{'keys of' if is_closed(kind) else 'a class of kind'} {kind.__name__}"
    name = getattr(kind, "__name__", str(kind))
    words = {"PositiveInt": "a whole number above 0", "PositiveFloat": "a number above 0"}
    return words.get(name, "a value of another kind" if kind is Any else name)


def _flat(kind: Any) -> list[Any]:
    """Members of a union; its literals as one, since several are written as one list."""
    found = members(kind)
    literals = [v for m in found if typing.get_origin(m) is Literal for v in typing.get_args(m)]
    texts = list(dict.fromkeys(map(str, literals)))
    rest = [m for m in found if typing.get_origin(m) is not Literal]
    return ([Literal[tuple(texts)]] if texts else []) + rest  # type: ignore[misc]


@cache
def classes(base: type) -> dict[str, type]:
    """Returns the classes that may stand for a base, by name: ours, and Lightning's for its own."""
    _import_all()
    return {kind.__name__: kind for kind in _derived(base)}


def _derived(base: type) -> Iterator[type]:
    ours = __name__.partition(".")[0]
    for kind in (base, *type.__subclasses__(base)):
        if kind is not base:
            yield from _derived(kind)
        elif not (inspect.isabstract(kind) or kind.__name__.startswith("_")) and (
            kind.__module__.partition(".")[0] in (ours, "lightning")
        ):
            yield kind


@cache
def _import_all() -> None:
    root = __name__.partition(".")[0]
    for part in PARTS:
        package = import_module(f"{root}.{part}")
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):  # of an extra that is not installed
                import_module(found.name)
