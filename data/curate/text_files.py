"""Texts that filters are given as files: entries, classes, words, values.

In: a file in UTF-8, with or without a byte order mark. Out: its text.
"""

from pathlib import Path


def read_text(path: Path) -> str:
    """Returns the text of a file.

    Raises:
        ValueError: it is not in UTF-8.
        OSError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"'{path}' is not in UTF-8 (byte {error.start}); save it in that encoding"
        ) from error
