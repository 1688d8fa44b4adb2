"""What the user wrote: run files, the files of their slots, and options of the command line.

In: the arguments of `counterpoint fit`. Out: one tree of what stands in files, the options that
override its leaves, and the place of every key. Imports nothing heavy, so that a misspelt name is
refused at once.

A file in a slot, by path or by the name of a packaged one, on the command line too, replaces the
whole slot: no argument of the class that stood there before is left.

`stages` is written out at once: each stage then holds all slots, those of the run that it does not
change as well (`stages.split_stages` makes a run file of each).
"""

import copy
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from .identity import flatten
from .packaged import CONFIGS, find, find_packaged

SLOTS = (
    *("trainer", "data", "model", "objective", "optim", "grad_clip", "guard", "phases", "teachers"),
    *("ema", "evaluation", "checkpoint", "watch", "trace"),
)
STAGES = "stages"
KEYS = (
    *("config", "run_dir", "mirror", "name", "seed", "init_from", "inherit_from"),
    *SLOTS,
    STAGES,
)
GROUPS = (
    *("trainer", "data", "model", "objective", "guard", "evaluation", "checkpoint"),
    *("watch", "trace"),
)
# Slots whose value may be the name of a class.
CLASSES = ("optim", "grad_clip")
# What a class and its arguments are written with.
NAMED = frozenset({"class_path", "init_args", "dict_kwargs"})
# Classes below names of the user's own: the parser takes such a value whole, not by its keys.
NAMES = ("teachers.", "objective.terms.", "objective.weights.", "objective.scalars.")
# Options without a value.
FLAGS = ("--print_config", "--help", "-h")
COMMAND_LINE = "on the command line"
EXAMPLES = "--config RUN_FILE, or the name of a packaged run such as --config emoji_clip"


@dataclass(frozen=True)
class Option:
    """One option of the command line: its dotted name and its value as text, if it has one."""

    name: str
    value: str | None

    @property
    def key(self) -> str:
        """The key it sets (`--data.keep_lists+=x` adds to a list)."""
        return self.name.removesuffix("+")

    @property
    def word(self) -> str:
        """The option as one word for a parser."""
        return f"--{self.name}" if self.value is None else f"--{self.name}={self.value}"


@dataclass
class Written:
    """What the user wrote.

    Attributes:
        tree: what stands in files, slots' files put in their places.
        options: of the command line, which override leaves, in their order.
        files: which file a key stands in; the longest dotted name that fits counts, "" is all.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    options: list[Option] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Returns the arguments for the parser: all files as one, and the options."""
        tree, options = copy.deepcopy(self.tree), []
        for option in self.options:
            if option.value is not None and option.name.startswith(NAMES):
                _set(tree, option.key.split("."), value_of(option.value))
            else:
                options.append(option.word)
        if not tree:
            return options
        text = yaml.dump(tree, Dumper=_Quoted, sort_keys=False, width=float("inf"))
        return ["--config", text, *options]

    def place(self, key: str) -> str:
        """Returns where a key was written: `in FILE`, or on the command line; "" if nowhere."""
        places = {name: f"in {file}" for name, file in self.files.items()}
        places |= {option.key.replace(".init_args", ""): COMMAND_LINE for option in self.options}
        key = key.replace(".init_args", "")
        named = [name for name in places if _is_below(key, name.replace(".init_args", ""))]
        return places[max(named, key=len)] if named else ""

    def whole(self) -> dict[str, Any]:
        """Returns the tree with the options put in, as far as their keys allow."""
        tree = copy.deepcopy(self.tree)
        for option in self.options:
            if option.value is not None and not option.key.startswith("print_config"):
                _set(tree, option.key.split("."), value_of(option.value))
        return tree


class _Quoted(yaml.SafeDumper):
    """Writes texts in quotes: a parser reads more of them as numbers than YAML's own does."""


_Quoted.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def read(argv: list[str]) -> Written:
    """Reads the files that the arguments name.

    Raises:
        ValueError: a file is missing or cannot be read, or a word belongs to no option.
    """
    options = list(split(argv))
    found = Written()
    for option in options:
        if option.name == "config":
            if option.value is None:
                raise ValueError(f"--{option.name} needs a value: {EXAMPLES}")
            _merge_file(found, find(option.value))
    _write_out_stages(found)
    for option in options:
        if option.name == "config":
            continue
        stage, slot = of_stage(option.name)
        file = _slot_file(slot, option.value, Path(), COMMAND_LINE)
        is_null = option.value is not None and value_of(option.value) is None
        if file is None and not (is_null and slot in GROUPS):
            found.options.append(option)
            continue
        for name in found.tree.get(STAGES, [""]):
            if stage in ("", name):
                _put(found, f"{STAGES}.{name}.{slot}" if name else slot, file)
    return found


def of_stage(key: str) -> tuple[str, str]:
    """Returns the stage that a key names, or "", and the key within it."""
    if key.startswith(f"{STAGES}."):
        _, stage, *rest = key.split(".", 2)
        return stage, "".join(rest)
    return "", key


def _write_out_stages(found: Written) -> None:
    """Gives each stage all slots: its own over those of the run.

    Raises:
        ValueError: `stages` is no mapping of names to slots, or the run has phases beside it.
    """
    stages = found.tree.pop(STAGES, None)
    if stages is None:
        return
    place = found.place(STAGES)
    values = stages.values() if isinstance(stages, dict) else ()
    if not values or not all(isinstance(stage, dict) for stage in values):
        raise ValueError(f"{STAGES} ({place}): write `NAME: {{objective: ..., phases: ...}}` below")
    if wrong := [name for name in stages if not re.fullmatch(r"\w[\w-]*", str(name))]:
        raise ValueError(f"{STAGES}.{wrong[0]} ({place}): name it with letters, digits, _ and -")
    if "phases" in found.tree:
        raise ValueError(
            f"phases ({found.place('phases')}): a run with stages has phases in each of them; move "
            f"these to {STAGES}.{next(iter(stages), 'NAME')}.phases"
        )
    common, files = found.tree, found.files
    found.tree, found.files = {STAGES: {}}, {"": files.get("", "")}
    for name, own in stages.items():
        of = f"{STAGES}.{name}."
        stage = Written(copy.deepcopy(common))
        stage.files = {k: v for k, v in files.items() if k and not k.startswith(f"{STAGES}.")}
        stage.files |= {k.removeprefix(of): v for k, v in files.items() if k.startswith(of)}
        for key, value in own.items():
            _is_taken_whole(stage, str(key), value, Path(), place)
        found.tree[STAGES][name] = stage.tree
        found.files |= {f"{of}{key}": file for key, file in stage.files.items() if key}


def split(argv: list[str]) -> Iterator[Option]:
    """Cuts arguments into options; a first word without dashes is a run file."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = [f"--config={words[0]}", *words[1:]]
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"'{word}' belongs to no option: write --KEY VALUE, or --KEY=VALUE")
        name, equals, value = word[2:].partition("=")
        if equals:
            yield Option(name, value)
        elif word in FLAGS or not words or words[0].startswith("--"):
            yield Option(name, None)
        else:
            yield Option(name, words.pop(0))


def load(path: Path, example: str = "name: my_run") -> dict[str, Any]:
    """Returns the keys of a YAML file, read as the parser of run files reads them.

    Args:
        path: the file.
        example: of a line in such a file, for the message.

    Raises:
        ValueError: it is no YAML, or holds no keys.
    """
    try:
        found = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML ({' '.join(str(error).split())}); mend it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is it a YAML file?") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no keys: write lines such as `{example}`")
    return found


def refuse_repeated(text: str, file: str | Path) -> None:
    """Refuses YAML with a name twice in a mapping, of which it would drop the first.

    Raises:
        ValueError: the whole, or a mapping in it, has one.
    """
    for name in _repeated(yaml.compose(text, yaml.SafeLoader)):
        raise ValueError(f"{file}: {name} comes twice; give one of them another name")


def _repeated(node: yaml.Node | None, depth: int = 2) -> Iterator[str]:
    """Yields names that come twice in a mapping, or in one below it."""
    seen: set[str] = set()
    for key, value in node.value if depth and isinstance(node, yaml.MappingNode) else ():
        name = str(key.value)
        if name in seen:
            yield name
        seen.add(name)
        yield from (f"{name}.{below}" for below in _repeated(value, depth - 1))


def value_of(text: str) -> Any:
    """Returns what the text of an option means; as it is, if it is no YAML."""
    try:
        return get_loader("yaml")(text) if text.strip() else text
    except yaml.YAMLError:
        return text


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Puts a value in, as the parser of run files would: `init_args` may be left out."""
    *above, last = path
    for name, below in zip(above, path[1:], strict=True):
        if not isinstance(tree.get(name), dict):
            is_class = isinstance(tree.get(name), str)
            tree[name] = {"class_path": tree[name]} if is_class else {}
        tree = tree[name]
        if "class_path" in tree and below not in NAMED:
            tree = tree.setdefault("init_args", {})
    old = tree.get(last)
    if last == "class_path" and old not in (None, value):
        tree.pop("init_args", None)  # the arguments of another class
    if isinstance(old, dict) and "class_path" in old and isinstance(value, str):
        value = {"class_path": value}
    tree[last] = _merged(old, value)


def _merge_file(found: Written, path: Path) -> None:
    content = load(path)
    shown = shown_path(path)
    found.files.setdefault("", shown)
    if isinstance(stages := content.get(STAGES), dict):
        content[STAGES] = {n: _with_paths(stage, path.parent) for n, stage in stages.items()}
    for key, value in content.items():
        if not _is_taken_whole(found, key, value, path.parent, f"in {shown}"):
            found.files |= {name: shown for name, _ in flatten({key: value})}


def _with_paths(stage: Any, folder: Path) -> Any:
    """Returns the slots of a stage, files beside the run file by their whole paths."""
    if not isinstance(stage, dict):
        return stage
    files = {slot: folder / value for slot, value in stage.items() if isinstance(value, str)}
    return stage | {slot: str(file.absolute()) for slot, file in files.items() if file.is_file()}


def _is_taken_whole(found: Written, key: str, value: Any, folder: Path, place: str) -> bool:
    """Takes a key of a run file or of a stage; returns whether it replaced all that was there."""
    file = _slot_file(key, value, folder, place) if isinstance(value, str) else None
    if file is not None or (value is None and key in GROUPS):
        _put(found, key, file)
        return True
    found.tree[key] = _merged(found.tree.get(key), value)
    return False


def _put(found: Written, key: str, file: Path | None) -> None:
    """Replaces all of a slot by a file, or by its defaults."""
    found.files = {k: v for k, v in found.files.items() if not (k and _is_below(k, key))}
    tree = found.tree
    *above, slot = key.split(".")
    for name in above:
        tree = tree[name]
    if file is None:
        tree.pop(slot, None)
    else:
        tree[slot] = load(file)
        found.files[key] = shown_path(file)


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    if "class_path" in new and new["class_path"] != old.get("class_path"):
        return dict(new)
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def _slot_file(slot: str, value: str | None, folder: Path, place: str) -> Path | None:
    """The file that stands for a slot; None: the value is no file's name."""
    if slot not in SLOTS or value is None or not isinstance(value_of(value), str):
        return None
    path = folder / Path(value).expanduser()
    if path.is_file():
        return path
    is_class = re.fullmatch(r"([a-z_]\w*\.)*[A-Z]\w*", value) is not None
    if slot in CLASSES and is_class:
        return None
    try:
        return find_packaged(value, slot)
    except ValueError as error:
        raise ValueError(f"{slot} ({place}): {error}") from None


def _is_below(key: str, prefix: str) -> bool:
    return not prefix or key == prefix or key.startswith(f"{prefix}.")


def shown_path(path: Path) -> str:
    """Returns a path as people write it: from here, if it is below."""
    path = Path(os.path.normpath(path.absolute()))
    for folder, prefix in ((Path.cwd(), ""), (CONFIGS, "the package's configs/")):
        if path.is_relative_to(folder):
            return f"{prefix}{path.relative_to(folder)}"
    return str(path)
