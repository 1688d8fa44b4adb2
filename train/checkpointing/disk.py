"""What the disk says to a checkpoint, and its removal."""

import os
import shutil
from pathlib import Path

from ...data.files import beside


def disk_error(error: Exception, path: Path) -> OSError:
    """Turns torch's error about a write on a full disk into the OSError behind it.

    Any other error becomes an OSError too, to reach the other ranks in the same way.
    """
    if isinstance(error, OSError):
        return error
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < 1 << 20 or "file write failed" in str(error):
        return OSError(28, "No space left on device", str(path))
    return OSError(f"{type(error).__name__}: {error}")


def remove(path: Path) -> None:
    """Removes a checkpoint, if it is there: a kill leaves it whole, or a part of no use."""
    if path.is_dir():
        part = beside(path)
        path.rename(part)
        shutil.rmtree(part, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
