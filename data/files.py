"""Writes files and folders beside their path, then renames them: none is seen half-written.

In: a path. Out: the new content or the old one; a kill or a full disk leaves at most a hidden
`.NAME.part-TOKEN`, which a later process removes.
"""

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PART = re.compile(r"\.+(?P<name>.+?)(\.part-[0-9a-f]{16})+")
# At this age no process writes to a part any more.
OLD_SECONDS = 600.0


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which is renamed to `path` at the end of the block.

    Several processes and threads may write the same file at once: the last one wins.

    Raises:
        OSError: it cannot be written; the old file stays.
    """
    _sweep_once(path.parent)
    part = beside(path)
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        # Some libraries write files that only the owner can read.
        if part.stat().st_mode != mode:
            part.chmod(mode)
        os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def durable_file(path: Path) -> Iterator[Path]:
    """As `whole_file`, and synced: the file survives a loss of power."""
    with whole_file(path) as part:
        yield part
        sync(part)
    sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path, near: Path | None = None) -> Iterator[Path]:
    """Yields an empty folder to fill; at the end of the block it replaces the one at `path`.

    An old folder is removed just before: a kill between the two leaves none.

    Args:
        path: the folder.
        near: the path beside which the new folder is filled; `path` by default.
    """
    near = near or path
    near.parent.mkdir(parents=True, exist_ok=True)
    _sweep_once(near.parent)
    part = beside(near)
    part.mkdir()
    try:
        yield part
        if path.exists():
            shutil.rmtree(path)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def folder_of_results(path: Path) -> Iterator[None]:
    """Makes a folder; if the block fails, what was made is removed again, unless it holds a file.

    A refusal leaves nothing behind, and work that is done stays.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def check_own(folder: Path, *names: str) -> None:
    """Refuses a folder of other things: it holds some, and nothing by the `names` of results.

    Raises:
        ValueError: it is one.
    """
    there = {path.name for path in folder.glob("[!.]*")}
    if there and there.isdisjoint(names):
        raise ValueError(
            f"'{folder}' holds other things ('{min(there)}'); name a new or an empty folder as "
            "--out"
        )


def write_whole(path: Path, text: str) -> None:
    """Writes a text file atomically; raises OSError."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes `record` atomically, and creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=2, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def beside(path: Path) -> Path:
    """Returns a new path for a part of `path`."""
    return path.with_name(f".{path.name}.part-{secrets.token_hex(8)}")


def remove_parts(folder: Path, name: str = "", older_than: float = float("-inf")) -> None:
    """Removes the parts that killed processes left in a folder.

    Args:
        folder: folder of the parts.
        name: removes only parts of this file; any by default.
        older_than: minimum seconds since the last write; by default no other process may write
            here.
    """
    for part in folder.glob(".*.part-*"):
        match = PART.fullmatch(part.name)
        if not match or (name and match["name"] != name):
            continue
        with contextlib.suppress(FileNotFoundError):
            if time.time() - max(map(_written, [part, *part.rglob("*")])) >= older_than:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _written(path: Path) -> float:
    return path.lstat().st_mtime


# Once per folder: listing many shards takes time, and each of them gets an index.
@functools.cache
def _sweep_once(folder: Path) -> None:
    with contextlib.suppress(OSError):
        remove_parts(folder, older_than=OLD_SECONDS)
