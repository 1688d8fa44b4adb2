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
    if path.is_file():
        return path
    name = str(name_or_path).removesuffix(".yaml")
    names = config_names(kind)
    if name in names:
        return CONFIGS / kind / f"{name}.yaml"
    close = get_close_matches(Path(name).name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ValueError(
        f"no {kind} file '{name_or_path}': {hint}It is neither a file here nor one of the "
        f"packaged names ({', '.join(names) or 'none'})"
    )
