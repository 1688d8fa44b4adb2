"""Why a configuration is refused, as one sentence with the key, its place, and the fix.

In: what the user wrote, after the parser has refused it. Out: the first thing that is wrong with
it. The parser's own message names neither the file nor, for a value that may be of several types,
the key. Where nothing is found here, its message is shortened (`messages`).
"""

import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from . import signatures
from .messages import shortened
from .packaged import packaged_files
from .run_files import EXAMPLES, KEYS, NAMED, SLOTS, STAGES, Written
from .signatures import REQUIRED, Parameter
from .stages import split_stages
from .vocabulary import PHASE_WORDS, TRAINER_WORDS, accepted_value, meaning

Part = TypeVar("Part")
Values = Callable[[Any, str], Any]

NUM_SHOWN = 10  # names in a message
TIMM = "counterpoint.train.optim.timm_optimizers"
CLASS_NAME = re.compile(r"(\w+\.)+\w+|[A-Z]\w+")
NEEDED = ("samples", "batch_size", "learning_rate")  # of a phase
HINTS = {
    "data.manifest": "--data.manifest FILE.parquet (`counterpoint data index` writes it)",
    "phases": "phases: {train: {samples: ..., batch_size: ..., learning_rate: ...}}",
}
# What a number in the place of a slot is meant to be.
NUMBERS = {
    "grad_clip": "the largest norm of a gradient is grad_clip.init_args.max_norm of `norm`",
    "ema": "the decay of the average is ema.decay",
    "evaluation": "steps between evaluations are evaluation.every_n_steps",
    "checkpoint": "steps between checkpoints are checkpoint.every_n_steps",
    "optim": meaning("lr"),
    "phases": meaning("epochs"),
}


class Fault(Exception):
    """What is wrong, with the key it is wrong with."""

    def __init__(self, key: str, text: str):
        super().__init__(text)
        self.key = key


def diagnose(parser: ArgumentParser, written: Written) -> str | None:
    """Returns the first mistake of a configuration, or None if all seems right."""
    tree = written.whole()
    try:
        _check_new_phases(written.tree.get("phases"), tree.get("phases"))
        for option in written.options:
            if option.value is None and option.key.partition(".")[0] in tree:
                raise Fault(option.key, "it needs a value")
        _check_slots(parser, tree, bool(written.files))
    except Fault as fault:
        return _sentence(fault, written, tree)
    return None


def _check_new_phases(in_files: Any, phases: Any) -> None:
    """Refuses a phase that only options name and that lacks something: its name is misspelt."""
    if not isinstance(in_files, Mapping) or not isinstance(phases, Mapping):
        return
    for name in phases.keys() - in_files.keys():
        given = phases[name] if isinstance(phases[name], Mapping) else {}
        if missing := [key for key in NEEDED if key not in given]:
            text = f"the run has no phase {name}, it has {listed(sorted(in_files))}"
            key = ".".join(["phases", name, *given][:3])
            raise Fault(key, f"{text} (a new one lacks {listed(missing)})")


def _sentence(fault: Fault, written: Written, tree: Mapping[str, Any]) -> str:
    place, text, phases = written.place(fault.key), str(fault), tree.get("phases")
    if isinstance(phases, Mapping) and len(phases) == 1:
        text = text.replace("phases.NAME", f"phases.{next(iter(phases))}")
    return f"{fault.key}{f' ({place})' if place else ''}: {text}"


def _check_slots(parser: ArgumentParser, tree: dict[str, Any], written_files: bool) -> None:
    keys, linked = signatures.keys_of(parser), signatures.linked_keys(parser)
    _check_group(tree, "", keys, linked)
    for name in signatures.required_keys(parser):
        if not _is_missing(tree, name):
            continue
        how = HINTS.get(name, f"it takes {signatures.described(keys[name].kind)}")
        if not written_files:
            raise Fault(name, f"is missing, and so is a run file: name {EXAMPLES}")
        raise Fault(name, f"is missing: {how}")


def _is_missing(tree: Any, name: str) -> bool:
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree is None


def check_words(written: Written) -> None:
    """Refuses what cannot be right, without knowing the classes: before they are imported."""
    for name, stage in split_stages(written).items():
        try:
            _check_words(stage)
        except ValueError as error:
            raise ValueError(f"{STAGES}.{name}: {error}" if name else f"{error}") from None


def _check_words(written: Written) -> None:
    tree = written.whole()
    try:
        for name in tree:
            if name not in KEYS:
                raise Fault(str(name), unknown(str(name), KEYS, ""))
            if name in SLOTS and isinstance(tree[name], int | float | list):
                fix = f"write its keys below `{name}:`, or name a file"
                if not isinstance(tree[name], list):
                    fix = NUMBERS.get(name, fix)
                raise Fault(name, f"is {shown(tree[name])}; {fix}")
        _check_bare(tree.get("trainer"), "trainer", TRAINER_WORDS)
        phases = tree.get("phases")
        for name, phase in phases.items() if isinstance(phases, Mapping) else ():
            _check_bare(phase, f"phases.{name}", PHASE_WORDS)
    except Fault as fault:
        raise ValueError(_sentence(fault, written, tree)) from None


def _check_bare(values: Any, group: str, ours: frozenset[str]) -> None:
    for name in values if isinstance(values, Mapping) else ():
        if str(name) not in ours and meaning(str(name)):
            raise Fault(f"{group}.{name}", unknown(str(name), (), group))


def _check_group(
    values: Mapping[str, Any], group: str, keys: dict[str, Parameter], linked: dict[str, str]
) -> None:
    """Checks the keys that the parser knows by their dotted names."""
    prefix = f"{group}." if group else ""
    known = {name[len(prefix) :].partition(".")[0] for name in keys if name.startswith(prefix)}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in linked:
            raise Fault(key, f"it is set by {linked[key]}: write it there")
        if key in keys:
            check(keys[key].kind, value, key)
        elif name not in known:
            raise Fault(key, unknown(str(name), known, group, keys))
        elif isinstance(value, Mapping):
            _check_group(value, key, keys, linked)
        elif value is not None:
            below = sorted(n[len(key) + 1 :] for n in keys if n.startswith(f"{key}."))
            raise Fault(key, f"is {shown(value)}; it takes the keys {listed(below)}, or a file")


def build(
    parser: ArgumentParser,
    kind: type[Part],
    file: object,
    key: str,
    written: Any,
    values_of: Values,
) -> Part:
    """Returns the object of a class derived from `kind` that is written at a key of a file.

    `parser` has one option, called like `kind`; `values_of` takes what is written and the key, and
    returns class_path and init_args.

    Raises:
        ValueError: something in it is wrong.
    """
    option = kind.__name__.lower()
    try:
        values = values_of(written, key)
        try:
            return parser.instantiate(parser.parse_object({option: values}))[option]
        except ArgumentError as error:
            check(kind, values, key)
            raise Fault(key, shortened(str(error))) from None
    except Fault as fault:
        raise ValueError(f"{file}: {fault.key}: {fault}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {key}: {error}") from error


def check(kind: Any, value: Any, key: str) -> None:
    """Raises what is wrong with a value of a key, or with something in it."""
    kinds = signatures.members(kind)
    if isinstance(value, Mapping):
        for inside in filter(None, map(signatures.values_of, kinds)):
            for name, below in value.items():
                check(inside, below, f"{key}.{name}")
            return
        if bases := [one for one in kinds if signatures.is_class(one)]:
            check_class(bases, value, key)
            return
    if isinstance(value, list):
        for inside in filter(None, map(signatures.items_of, kinds)):
            for i, below in enumerate(value):
                check(inside, below, f"{key}.{i}")
    if not signatures.accepts(kind, value):
        raise Fault(key, refused(kind, kinds, value, key))


def refused(kind: Any, kinds: tuple[Any, ...], value: Any, key: str) -> str:
    """Returns the sentence about a value that is of none of the accepted types."""
    if meant := accepted_value(key, value):
        return f"is {shown(value)}; that is called {meant} here"
    bases = [one for one in kinds if signatures.is_class(one) and not signatures.is_closed(one)]
    others = [one for one in kinds if one not in (*bases, types.NoneType)]
    if (bases and isinstance(value, str) and CLASS_NAME.fullmatch(value)) or (bases and not others):
        # One of these raises: what is wrong with the name, or the argument that is missing.
        check_arguments(resolve(bases, str(value), key), {}, f"{key}.init_args")
    accepted = signatures.described(kind)
    lists = [one for one in kinds if signatures.items_of(one) is not None]
    if isinstance(value, str) and any(signatures.accepts(one, [value]) for one in lists):
        return f"is {shown(value)}; write it as a list: [{value}]"
    if isinstance(value, str) and (words := accepted.split(", ")) and len(words) > 2:
        close = get_close_matches(value, [word.split(" or ")[0] for word in words], n=1)
        accepted = f"{accepted} (did you mean {close[0]}?)" if close else accepted
    return f"is {shown(value)}; it takes {accepted}"


def check_class(bases: list[Any], value: Mapping[str, Any], key: str) -> None:
    """Raises what is wrong with a class and its arguments, written as a mapping."""
    plain = [base for base in bases if not inspect.isabstract(base)]
    if plain and "class_path" not in value:
        inside = value.get("init_args")
        arguments = inside if isinstance(inside, Mapping) else {}
        rest = {name: one for name, one in value.items() if name not in NAMED}
        check_arguments(plain[0], {**rest, **arguments}, key)
        return
    name = value.get("class_path")
    if not isinstance(name, str):
        known = sorted(n for base in bases for n in signatures.classes(base))
        hint = f", such as {listed(known)}" if known else ""
        raise Fault(key, f"names no class: write class_path: CLASS{hint}, and its arguments below")
    kind = resolve(bases, name, f"{key}.class_path")
    for extra in value.keys() - NAMED:
        inside = extra in signatures.parameters(kind)
        fix = "write it below init_args" if inside else unknown(extra, NAMED, key)
        raise Fault(f"{key}.{extra}", fix)
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        raise Fault(f"{key}.init_args", f"is {shown(arguments)}; it takes the class's arguments")
    check_arguments(kind, arguments, f"{key}.init_args")
    if "." not in name and kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
        raise Fault(f"{key}.class_path", f"write its whole name: {kind.__module__}.{name}")


def check_arguments(kind: Any, values: Mapping[str, Any], key: str) -> None:
    """Raises what is wrong with the arguments of a class."""
    known = signatures.parameters(kind)
    for name, value in values.items():
        if name not in known:
            raise Fault(f"{key}.{name}", unknown(str(name), known, key))
        if known[name].kind is not REQUIRED:
            check(known[name].kind, value, f"{key}.{name}")
    for name, parameter in known.items():
        if parameter.default is REQUIRED and name not in values:
            accepted = signatures.described(parameter.kind)
            raise Fault(f"{key}.{name}", f"is missing: {kind.__name__} needs it ({accepted})")


def resolve(bases: list[Any], name: str, key: str) -> Any:
    """Returns the class of that name; refuses one that may not stand here."""
    known = {n: kind for base in bases for n, kind in signatures.classes(base).items()}
    if "." not in name:
        found = known.get(name)
        if found is None and name.lower() in packaged_files(key):
            raise Fault(
                key, f"there is no class '{name}'; did you mean the packaged {name.lower()}?"
            )
        if found is None:
            raise Fault(key, f"there is no class '{name}'{_suggested(name, known)}")
        return found
    module, _, short = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), short, None)
    except ImportError as error:
        raise Fault(key, _not_imported(name, module, error, known)) from None
    if found is None:
        # Not those that the module imports, which may be of another kind.
        members = inspect.getmembers(importlib.import_module(module), inspect.isclass)
        own = [n for n, one in members if one.__module__ == module]
        close = get_close_matches(short, own, n=1, cutoff=0.5)
        hint = f"; did you mean {module}.{close[0]}?" if close else _suggested(short, known)
        if module == TIMM:
            hint = f"; name timm's optimisers by {TIMM}.Timm with init_args: {{opt: NAME}}"
        raise Fault(key, f"{module} has no class '{short}'{hint}")
    wanted = tuple(base for base in bases if inspect.isclass(base))
    if inspect.isclass(found) and not issubclass(found, wanted):
        names = " or ".join(f"{base.__module__}.{base.__name__}" for base in wanted)
        raise Fault(key, f"{name} is not derived from {names}, as what stands here has to be")
    return found


def _not_imported(name: str, module: str, error: ImportError, known: dict[str, type]) -> str:
    top = module.partition(".")[0]
    if getattr(error, "name", None) != top:
        short = name.rpartition(".")[2]
        missing = f"no module {error.name}" if error.name else str(error)
        return f"{name} cannot be imported ({missing}){_suggested(short, known)}"
    here = any(Path(entry).exists() for entry in (f"{top}.py", top))
    fix = (
        f"start as PYTHONPATH=. counterpoint ... ({top} lies in this folder)"
        if here
        else f"put the folder that holds {top}.py into PYTHONPATH, or install it"
    )
    return f"there is no module '{top}': {fix}"


def _suggested(name: str, known: Mapping[str, type]) -> str:
    lower = {n.lower(): n for n in known}
    close = get_close_matches(name.lower(), lower, n=1)
    if close:
        kind = known[lower[close[0]]]
        return f"; did you mean {kind.__module__}.{kind.__name__}?"
    return f"; there are {listed(sorted(known))}" if known else ""


def unknown(
    name: str, known: Iterable[str], group: str, keys: Mapping[str, Parameter] | None = None
) -> str:
    """Returns the sentence about a key that is not there."""
    known = list(known)
    same = {one.lower(): one for one in known}
    plain = name.lower().replace("-", "_")
    longer = sorted((one for one in same if one.startswith(f"{plain}_")), key=len)
    close = get_close_matches(plain, same, n=1, cutoff=0.7) or longer
    elsewhere = [key for key in keys or () if key.rpartition(".")[2] == name]
    slot, prefix = group.partition(".")[0], f"{group}." if group else ""
    found = meaning(name)
    if found and slot and f"slot is {slot}" in found:
        found = None
    # Inside a class a word means what is close to it rather than what it means to a trainer.
    if close and (found is None or plain in same or "init_args" in group):
        return f"there is no such key; did you mean {prefix}{same[close[0]]}?"
    if found:
        return f"there is no such key; {found}"
    if elsewhere:
        return f"there is no such key; did you mean {elsewhere[0]}?"
    more = f" (counterpoint fit --help {slot})" if slot in SLOTS else ""
    more = more if slot else " (counterpoint fit --help)"
    return f"there is no such key; there are {listed(sorted(known))}{more}"


def listed(names: list[str]) -> str:
    """Returns some names as a list of words."""
    more = f", ... ({len(names)} in all)" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more if names else "none"


def shown(value: Any) -> str:
    """Returns a value as it may stand in a sentence."""
    text = " ".join(str(value).split())
    return f"'{text}'" if len(text) <= 60 else f"'{text[:57]}...'"
