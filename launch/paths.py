"""Where packaged configurations lie.

In: what a user wrote after `--config` or `--suite`: a path, or the name of a file the package
brings along. Out: the path of an existing file.
"""

from difflib import get_close_matches
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


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
    names = config_names(kind)
    if name.removesuffix(".yaml") in names:
        return CONFIGS / kind / f"{name.removesuffix('.yaml')}.yaml"
    close = get_close_matches(Path(name).stem, names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(
        f"'{name}' is neither a file nor a packaged {kind} "
        f"(those are: {', '.join(names) or 'none'}){hint}"
    )
