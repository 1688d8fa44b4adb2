"""Shard files to a manifest.

In: brace patterns, globs, folders, paths. Out: a saved `Manifest`. Counts come from the
`NAME_stats.json` that img2dataset leaves beside each shard; without it the headers are walked
once (which also makes the index the reader needs).
"""

import glob
import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa

from .decode import IMAGE_EXTENSIONS, caption_member
from .manifest import SCHEMA, Manifest
from .members import TarDamage, open_index, split_name, walk_members

# How many headers are looked at when the count is known and only the layout is in question.
NUM_PROBED = 64


def index_shards(
    urls: Sequence[str],
    out: str | os.PathLike[str],
    source: str = "default",
    progress: Callable[[int, int], None] | None = None,
    caption: Sequence[str] = ("txt",),
) -> Manifest:
    """Indexes shards and writes the manifest.

    Args:
        urls: Brace patterns (`{00000..00041}`), globs, folders or paths.
        out: The manifest file to write; shards below its folder are listed relative to it.
        source: Name of the source that the shards belong to.
        progress: Called with (shards done, shards in all) after each shard.
        caption: Caption fields that the shards are expected to have.

    Raises:
        ValueError: No or missing shards, a damaged tar, or one without pictures or captions.
    """
    paths = expand_all(urls)
    folder = Path(out).resolve().parent
    rows: dict[str, list] = {name: [] for name in SCHEMA.names}
    for done, path in enumerate(paths, start=1):
        count = count_samples(path, caption)
        absolute = Path(path).resolve()
        below = absolute.is_relative_to(folder)
        rows["source"].append(source)
        rows["url"].append(str(absolute.relative_to(folder) if below else absolute))
        rows["num_samples"].append(count)
        rows["num_bytes"].append(os.path.getsize(path))
        rows["sha256"].append("")
        if progress:
            progress(done, len(paths))
    if not sum(rows["num_samples"]):
        raise ValueError(f"the {len(paths)} shards ({paths[0]}, ...) hold no samples")
    manifest = Manifest(pa.table(rows, schema=SCHEMA), folder)
    manifest.save(out)
    return manifest


def expand_all(urls: Sequence[str]) -> list[str]:
    """Expands patterns and folders to existing files, in order, each once."""
    if isinstance(urls, str):
        urls = [urls]
    paths: dict[str, None] = {}
    missing: list[str] = []
    for url in urls:
        for pattern in expand_braces(url):
            found = _expand_one(pattern)
            if not found:
                missing.append(pattern)
            paths.update(dict.fromkeys(found))
    if missing:
        names = ", ".join(f"'{name}'" for name in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"no shard found for {names}{more}; check the path, or the range in braces"
        )
    if not paths:
        raise ValueError("no shards given; name tar files, a folder, or a pattern of them")
    return list(paths)


def _expand_one(pattern: str) -> list[str]:
    """Returns the files of a folder, glob or path without braces."""
    if pattern.startswith("pipe:") or "://" in pattern:
        raise ValueError(
            f"'{pattern}' is not a local path; copy the shards to a local folder and index it"
        )
    if os.path.isdir(pattern):
        return sorted(glob.glob(os.path.join(glob.escape(pattern), "*.tar")))
    if os.path.isfile(pattern):
        return [pattern]
    return sorted(path for path in glob.glob(pattern) if os.path.isfile(path))


def expand_braces(pattern: str) -> list[str]:
    """Expands `{00..41}` and `{a,b}`; several groups give every combination."""
    pieces: list[list[str]] = []
    for piece in re.split(r"(\{[^{}]*\})", pattern):
        span = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece)
        if span:
            width = len(span[1]) if span[1].startswith("0") else 0
            numbers = range(int(span[1]), int(span[2]) + 1)
            pieces.append([str(number).zfill(width) for number in numbers])
        elif re.fullmatch(r"\{[^{}]*,[^{}]*\}", piece):
            pieces.append(piece[1:-1].split(","))
        else:
            pieces.append([piece])
    return ["".join(combination) for combination in itertools.product(*pieces)]


def count_samples(path: str, caption: Sequence[str] = ("txt",)) -> int:
    """Returns the number of samples in a shard, from its sidecar or by walking the headers.

    Raises:
        ValueError: The tar is damaged, its sidecar disagrees, or pictures or captions are missing.
    """
    stated = _sidecar_count(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if stated is not None and _looks_whole(descriptor, caption):
            return stated
        index = open_index(path, descriptor)
    finally:
        os.close(descriptor)
    if index.damaged:
        raise ValueError(
            f"the shard '{path}' is cut off or damaged ({index.damaged}); fetch it again or leave "
            "it out"
        )
    if stated is not None and stated != len(index):
        raise ValueError(
            f"the shard '{path}' holds {len(index)} samples, its _stats.json says {stated}; fetch "
            "it again, or remove the _stats.json to trust the tar"
        )
    present = {index.extensions[kind] for kind in set(index.kinds.tolist())}
    if len(index) and not present.intersection(IMAGE_EXTENSIONS):
        raise ValueError(
            f"the shard '{path}' has no pictures (found: {_listed(present)}); its members must be "
            "named KEY.jpg, KEY.png or KEY.webp"
        )
    if len(index) and not present.intersection(map(caption_member, caption)):
        raise ValueError(
            f"the shard '{path}' has no captions in {_listed(caption)} (found: "
            f"{_listed(present)}); name the caption members KEY.txt, or set the caption field"
        )
    return len(index)


def _listed(names: Sequence[str] | set[str]) -> str:
    return ", ".join(f".{name}" for name in sorted(names)) or "nothing"


def _sidecar_count(path: str) -> int | None:
    """Returns `successes` of img2dataset's statistics beside a shard, None without them."""
    sidecar = re.sub(r"\.tar$", "", path) + "_stats.json"
    try:
        with open(sidecar, encoding="utf-8") as file:
            successes = json.load(file)["successes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return successes if isinstance(successes, int) and successes >= 0 else None


def _looks_whole(descriptor: int, caption: Sequence[str]) -> bool:
    """Tells whether a tar has its end mark and its first samples pictures and captions."""
    num_bytes = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 1024, max(0, num_bytes - 1024))
    if len(tail) < 1024 or any(tail):
        return False
    try:
        members = list(itertools.islice(walk_members(descriptor, num_bytes), NUM_PROBED))
    except TarDamage:
        return False
    present = {split[1] for name, _, _ in members if (split := split_name(name))}
    wanted = {caption_member(field) for field in caption}
    return bool(present & wanted and present.intersection(IMAGE_EXTENSIONS))
