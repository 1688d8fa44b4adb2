"""What the result of a filter depends on, as one hash: other inputs, and it runs again.

In: the filter, the stores, and the hash of what comes before it. Out: the hash in the name of its
folder.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..hashing import text_hash
from .base import Filter
from .stores import Store

PACKAGE = __name__.partition(".")[0]


def digest(before: str, each: Filter, stores: Mapping[str, Store]) -> str:
    """Returns a hash of all that a filter's result depends on.

    The code of the package stands for itself by `runner.VERSION`; of a class of the user's own,
    the file that it is written in counts.

    Args:
        before: hash of the table and the earlier filters.
        each: the filter.
        stores: by name.

    Raises:
        ValueError: a file of the filter cannot be read.
    """
    used = {name.partition(".")[0] for name in each.reads if "." in name}
    parts = [before, repr(each), *(stores[name].fingerprint for name in sorted(used))]
    parts += [f"{type(each).__module__}.{type(each).__qualname__}", *_own_code(type(each))]
    for path in each.files():
        try:
            parts.append(_content(Path(path)))
        except OSError as error:
            raise ValueError(
                f"'{path}', which {type(each).__name__} needs, cannot be read ({error.strerror})"
            ) from error
    return f"{text_hash(*parts) & 0xFFFFFFFFFFFF:012x}"


def _own_code(kind: type) -> Iterator[str]:
    """Yields the content of each file with code of the class that is not this package's."""
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] in (PACKAGE, "abc", "builtins"):
            continue
        try:
            yield _content(Path(inspect.getfile(each)))
        except (OSError, TypeError):  # written in no file, such as in a notebook
            yield ""


def _content(path: Path) -> str:
    found = hashlib.blake2b()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()
