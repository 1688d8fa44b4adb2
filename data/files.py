"""Small text files that are there as a whole or as they were before."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a file; a kill or a full disk leaves what was there.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
