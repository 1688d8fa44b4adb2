"""Indexes shard files into a manifest.

In: brace patterns, globs, folders, paths, remote addresses, lists of these. Out: a saved
`Manifest`. Counts come from the `NAME_stats.json` that img2dataset leaves beside each shard;
without it the headers are walked once (which also writes the reader's index), for which a remote
shard is fetched to a temporary folder and removed again.
"""

import functools
import itertools
import json
import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from ..urls import find_shards, scheme, shown, sidecar
from .fields import IMAGE_EXTENSIONS, caption_member
from .manifest import SCHEMA, Manifest
from .members import TarDamage, open_index, split_name, walk_members
from .transport import FetchError, Refused, Transport

# Headers to look at when the count is known and only the layout is checked.
NUM_PROBED = 64
# Names such as `img.0001.jpg` make every number an extension.
MAX_LISTED = 8
# Walking fewer local shards than this takes less time than starting processes for it.
MANY_SHARDS = 64
# Shards handed to the workers at one time, so that their bookkeeping stays small.
SLICE = 4096

Measure = Callable[[str, int], tuple[int, int]]


def index_shards(
    urls: Sequence[str] | Mapping[str, Sequence[str]],
    out: str | os.PathLike[str],
    source: str = "default",
    progress: Callable[[int, int], None] | None = None,
    caption: Sequence[str] = ("txt",),
    transport: Transport | None = None,
    num_workers: int = 8,
    images: Collection[str] = IMAGE_EXTENSIONS,
) -> Manifest:
    """Indexes shards and writes the manifest.

    Args:
        urls: brace patterns (`{00000..00041}`), globs, folders, paths, addresses, `@FILE` lists; or
            these by the name of their source.
        out: the manifest file; shards below its folder are listed relative to it.
        source: the shards' source when `urls` names none.
        progress: called with (shards done, shards in all) after each shard.
        caption: caption fields that the shards are expected to have.
        transport: fetches remote shards.
        num_workers: threads for remote shards, processes for many local ones.
        images: extensions of which samples are expected to have one; none: they are texts alone.

    Raises:
        ValueError: no or missing shards, a damaged tar, or one without images or captions.
    """
    transport = transport or Transport()
    sources = urls if isinstance(urls, Mapping) else {source: urls}
    shards = [
        (name, url, num_bytes)
        for name, patterns in sources.items()
        for url, num_bytes in find_shards(patterns, transport.listing).items()
    ]
    for kind in {scheme(url): url for _, url, _ in shards if scheme(url)}.values():
        transport.require(kind)
    folder = Path(out).parent.resolve()
    rows: list[tuple[str, str, int, int, str]] = []
    measure = functools.partial(measure_shard, caption=caption, transport=transport, images=images)
    measured = _measured([item[1:] for item in shards], measure, num_workers)
    for done, ((name, url, _), (count, num_bytes)) in enumerate(
        zip(shards, measured, strict=True), start=1
    ):
        rows.append((name, _listed_url(url, folder), count, num_bytes, ""))
        if progress:
            progress(done, len(shards))
    columns = dict(zip(SCHEMA.names, zip(*rows, strict=True), strict=True))
    if not sum(columns["num_samples"]):
        raise ValueError(f"the {len(shards)} shards ({shown(shards[0][1])}, ...) hold no samples")
    manifest = Manifest(pa.table(columns, schema=SCHEMA), folder)
    manifest.save(out)
    return manifest


def _listed_url(url: str, folder: Path) -> str:
    """Returns a shard's address as the manifest in `folder` writes it."""
    if scheme(url):
        return url
    # A link's own name is listed: Hugging Face's cache names the files by checksums.
    absolute = Path(url).parent.resolve() / Path(url).name
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)


def _measured(
    shards: Sequence[tuple[str, int]], measure: Measure, num_workers: int
) -> Iterator[tuple[int, int]]:
    """Yields (samples, bytes) of each shard in order, several at a time."""
    if any(scheme(url) for url, _ in shards):
        executor: Executor = ThreadPoolExecutor(num_workers)
        chunk = 1
    elif len(shards) >= MANY_SHARDS and num_workers > 1:
        executor = ProcessPoolExecutor(num_workers, multiprocessing.get_context("fork"))
        chunk = 16
    else:
        yield from (measure(url, num_bytes) for url, num_bytes in shards)
        return
    with executor:
        for first in range(0, len(shards), SLICE):
            urls, sizes = zip(*shards[first : first + SLICE], strict=True)
            try:
                yield from executor.map(measure, urls, sizes, chunksize=chunk)
            except BaseException:
                executor.shutdown(cancel_futures=True)
                raise


def measure_shard(
    url: str,
    num_bytes: int,
    caption: Sequence[str],
    transport: Transport,
    images: Collection[str] = IMAGE_EXTENSIONS,
) -> tuple[int, int]:
    """Returns the samples and bytes of one shard.

    Args:
        url: its path or address.
        num_bytes: its size if a listing has it, else 0.
        caption: caption fields that it is expected to have.
        transport: fetches a remote shard, or its sidecar.
        images: extensions of which samples are expected to have one.

    Raises:
        ValueError: it cannot be read, is damaged, or has no images or captions.
    """
    if not scheme(url):
        return count_samples(url, caption, images=images), os.path.getsize(url)
    try:
        stated = _remote_count(url, transport)
        if stated is not None:
            return stated, num_bytes or transport.num_bytes(url)
        with transport.temporary_copy(url, num_bytes) as path:
            return count_samples(str(path), caption, shown(url), images), path.stat().st_size
    except FetchError as error:
        raise ValueError(
            f"a shard cannot be indexed: {error}; check the address, or leave it out"
        ) from error


def _remote_count(url: str, transport: Transport) -> int | None:
    if scheme(url) == "pipe":
        return None
    try:
        return _stated_count(transport.content(sidecar(url)))
    except Refused:
        # Stores without permission to list, and signatures of other addresses, answer 403 or 401
        # for absent files.
        return None


def count_samples(
    path: str,
    caption: Sequence[str] = ("txt",),
    name: str = "",
    images: Collection[str] = IMAGE_EXTENSIONS,
) -> int:
    """Returns the number of samples in a shard, from its sidecar or by walking the headers.

    Args:
        path: a tar on this machine.
        caption: caption fields that it is expected to have.
        name: its name in messages; the path by default.
        images: extensions of which samples are expected to have one.

    Raises:
        ValueError: the tar is damaged, its sidecar disagrees, or images or captions are missing.
    """
    name = name or path
    stated = _sidecar_count(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if stated is not None and _looks_whole(descriptor, caption, images):
            return stated
        index = open_index(path, descriptor)
    finally:
        os.close(descriptor)
    if index.damaged:
        raise ValueError(
            f"the shard '{name}' is cut off or damaged ({index.damaged}); fetch it again or leave "
            "it out"
        )
    if stated is not None and stated != len(index):
        raise ValueError(
            f"the shard '{name}' holds {len(index)} samples, its _stats.json says {stated}; fetch "
            "it again, or remove the _stats.json to trust the tar"
        )
    present = {index.extensions[kind] for kind in set(index.kinds.tolist())}
    if len(index) and images and not present.intersection(images):
        raise ValueError(
            f"the shard '{name}' has no images (found: {_listed(present)}); its members must be "
            "named KEY.jpg, KEY.png or KEY.webp (`--texts`: there are to be none)"
        )
    if len(index) and not present.intersection(map(caption_member, caption)):
        raise ValueError(
            f"the shard '{name}' has no captions in {_listed(caption)} (found: "
            f"{_listed(present)}); name the caption members KEY.txt, or set the "
            "caption field (`--caption json:NAME`)"
        )
    return len(index)


def _listed(names: Sequence[str] | set[str]) -> str:
    shown = [f".{name}" for name in sorted(names)[:MAX_LISTED]]
    return ", ".join([*shown, "..."] if len(names) > MAX_LISTED else shown) or "nothing"


def _sidecar_count(path: str) -> int | None:
    """Returns `successes` of img2dataset's statistics beside a shard, None without them."""
    try:
        with open(sidecar(path), "rb") as file:
            return _stated_count(file.read())
    except OSError:
        return None


def _stated_count(statistics: bytes) -> int | None:
    try:
        successes = json.loads(statistics)["successes"]
    except (ValueError, KeyError, TypeError):
        return None
    return successes if isinstance(successes, int) and successes >= 0 else None


def _looks_whole(descriptor: int, caption: Sequence[str], images: Collection[str]) -> bool:
    """Whether a tar has its end mark, and images and captions in its first samples."""
    num_bytes = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 1024, max(0, num_bytes - 1024))
    if len(tail) < 1024 or any(tail):
        return False
    try:
        members = list(itertools.islice(walk_members(descriptor, num_bytes), NUM_PROBED))
    except TarDamage:
        return False
    present = {split[1] for name, _, _ in members if (split := split_name(name))}
    caption_members = {caption_member(field) for field in caption}
    has_images = not images or bool(present.intersection(images))
    return has_images and bool(present & caption_members)
