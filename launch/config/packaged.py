"""Where packaged configurations lie.

In: what a user wrote after `--config` or `--suite`: a path, or the name of a file the package
brings along. Out: the path of an existing file.
"""

from difflib import get_close_matches
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUM_SHOWN = 8  # names in a message


def config_names(kind: str = "run") -> list[str]:
    """Returns the sorted names of the packaged files of one kind (a folder of configs/)."""
    return sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml"))


def find_config(name_or_path: str | Path, kind: str = "run") -> Path:
    """Finds a configuration by path or by name.

    Args:
        name_or_path: an existing file, else a packaged name, with or without `.yaml`. A folder of
            that name does not count: `emoji` is a suite and, often, a data folder as well.
        kind: folder of configs/, such as "run" or "suite".

    Raises:
        ValueError: there is neither such a file nor such a name.
    """
    path = Path(name_or_path).expanduser()
    return path if path.is_file() else packaged_config(str(name_or_path), kind)


def packaged_config(name: str, kind: str = "run") -> Path:
    """Finds a configuration of the package by name alone.

    Raises:
        ValueError: there is none of that name.
    """
    if found := _packaged(name, kind):
        return found
    raise ValueError(f"'{name}' is neither a file nor a packaged {kind}: {nearest(name, kind)}")


def find_part(name: str, slot: str, place: str) -> Path:
    """Finds the packaged file for a slot of a run by name.

    Args:
        name: with or without `.yaml`.
        slot: folder of configs/.
        place: where the name was written, for the message.

    Raises:
        ValueError: there is none of that name.
    """
    if found := _packaged(name, slot):
        return found
    if not config_names(slot):
        raise ValueError(f"{slot} ({place}): '{name}' is no file; write its keys below `{slot}:`")
    known = nearest(name, slot)
    raise ValueError(f"{slot} ({place}): '{name}' is no file and no packaged {slot}: {known}")


def nearest(name: str, kind: str) -> str:
    """Returns which packaged file may be meant, and which others there are."""
    names = config_names(kind)
    close = get_close_matches(Path(name).stem, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    if len(names) <= NUM_SHOWN:
        return f"{hint}there are {', '.join(names) or 'none'}"
    some = "" if close else f", such as {', '.join(names[:NUM_SHOWN])}"
    return f"{hint}there are {len(names)}{some} (counterpoint fit --help {kind} lists them)"


def _packaged(name: str, kind: str) -> Path | None:
    stem = name.removesuffix(".yaml")
    return CONFIGS / kind / f"{stem}.yaml" if stem in config_names(kind) else None
