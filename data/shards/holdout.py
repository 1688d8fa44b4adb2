"""Holds out shards for validation.

In: the manifest of all shards. Out: a manifest to train on and one to validate on, without common
shards. The choice depends on names alone: indexing again, elsewhere or with further shards in the
folder, holds out the same ones first.
"""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np

from ..urls import shown
from .manifest import Manifest
from .transport import FetchError, Transport


def hold_out(manifest: Manifest, num_pairs: int) -> tuple[Manifest, Manifest]:
    """Splits a manifest by whole shards.

    Shards are taken in the order of a hash of source and file name until they hold `num_pairs`
    samples or more. The last shard of a source is never taken: every source stays to train on.

    Args:
        manifest: all shards.
        num_pairs: how many samples to hold out at least.

    Returns:
        The manifest to train on and the one to validate on, shards in their order.

    Raises:
        ValueError: `num_pairs` is below 1, or more than the shards that may be taken hold.
    """
    if num_pairs < 1:
        raise ValueError(f"--holdout {num_pairs}: give a number of pairs, such as 5000")
    names = manifest.urls.names()
    sources = [manifest.sources[source] for source in manifest.source_ids]
    remaining = Counter(sources)
    order = sorted(range(len(names)), key=lambda shard: _rank(sources[shard], names[shard]))
    taken = np.zeros(len(names), dtype=bool)
    num_taken = 0
    for shard in order:
        if num_taken >= num_pairs:
            break
        if remaining[sources[shard]] > 1 and manifest.counts[shard]:
            remaining[sources[shard]] -= 1
            taken[shard] = True
            num_taken += int(manifest.counts[shard])
    if num_taken < num_pairs:
        raise ValueError(
            f"--holdout {num_pairs}: whole shards are held out and each source keeps one to train "
            f"on, which leaves {num_taken} of {manifest.num_samples} pairs in {len(names)} shards "
            "to hold out; ask for fewer, or write smaller shards"
        )
    return manifest.part(~taken), manifest.part(taken)


def fetch(manifest: Manifest, folder: Path, subfolder: str, transport: Transport) -> Manifest:
    """Copies remote shards to this machine, since evaluation reads files.

    Args:
        manifest: some shards.
        folder: folder of the manifest.
        subfolder: folder of the copies in it.
        transport: fetches them.

    Returns:
        The manifest with paths of the copies in place of addresses.

    Raises:
        ValueError: a shard cannot be fetched.
    """
    copies: dict[int, str] = {}
    for shard in np.flatnonzero(manifest.remote).tolist():
        url, name = manifest.urls[shard], f"{subfolder}/{shard:05d}.tar"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        num_bytes, sha256 = int(manifest.num_bytes[shard]), manifest.checksums[shard]
        try:
            transport.download(url, path, num_bytes, sha256)
        except FetchError as error:
            raise ValueError(
                f"the shard {shown(url)} cannot be fetched to be held out: {error}; try again, or "
                "leave out --holdout"
            ) from error
        copies[shard] = name
    return manifest.relocated(copies)


def _rank(source: str, name: str) -> bytes:
    return hashlib.blake2b(f"{source}/{name}".encode(), digest_size=16).digest()
