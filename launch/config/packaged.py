"""Where packaged configurations lie.

In: what a user wrote after `--config`, `--suite` or a slot: a path, or the name of a file that the
package brings along. Out: the path of an existing file. A packaged file is named by its stem alone,
whichever folder below its kind's it lies in.
"""

from difflib import get_close_matches
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NUM_SHOWN = 8  # names in a message
WITHOUT_HELP = ("curation", "filter", "ablation", "sweep")  # `fit --help` knows the others


def packaged_files(kind: str = "run") -> dict[str, Path]:
    """Returns the packaged files of one kind (a folder of configs/) by name, sorted."""
    files = {path.stem: path for path in (CONFIGS / kind).rglob("*.yaml")}
    return dict(sorted(files.items()))


def find(name_or_path: str | Path, kind: str = "run") -> Path:
    """Finds a configuration by path or by name.

    Args:
        name_or_path: an existing file, else a packaged name, with or without `.yaml`. A folder of
            that name does not count: `emoji` is a suite and, often, a data folder as well.
        kind: folder of configs/, such as "run" or "suite".

    Raises:
        ValueError: there is neither such a file nor such a name.
    """
    path = Path(name_or_path).expanduser()
    return path if path.is_file() else find_packaged(str(name_or_path), kind)


def find_packaged(name: str, kind: str = "run") -> Path:
    """Finds a configuration of the package by name alone."""
    files = packaged_files(kind)
    if path := files.get(name.removesuffix(".yaml")):
        return path
    if not files:
        raise ValueError(f"'{name}' is no file; write its keys below `{kind}:`")
    # A path was hardly meant to be a packaged name, unless it is one.
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    close = get_close_matches(Path(name).stem, files, n=3, cutoff=0.8 if is_path else 0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    if len(files) <= NUM_SHOWN or (kind in WITHOUT_HELP and not close):
        known = f"there are {', '.join(files)}"
    else:
        some = "" if close else f", such as {', '.join(list(files)[:NUM_SHOWN])}"
        known = f"there are {len(files)}{some}"
        known += "" if kind in WITHOUT_HELP else f" (counterpoint fit --help {kind} lists them)"
    raise ValueError(f"'{name}' is neither a file nor a packaged {kind}: {hint}{known}")
