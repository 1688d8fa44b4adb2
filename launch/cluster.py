"""`counterpoint cluster`: which cluster each sample of a store is in, stored beside it.

In: a store that `counterpoint embed` wrote (or any sidecar with a column of embeddings). Out: a
sidecar with the column `id`, the number of the sample's cluster, for `losses.clusters`; and the
clusters' centres. Spherical k-means by faiss, over a part of the samples that is drawn by the seed.
An et al., "Unicom" (2023); Yang et al., "CLIP-CID" (2024): clusters of a frozen model's features.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ..data.sidecar import KEY, write_sidecar
from .results import write_json

ABOUT, CENTRES = "clusters.json", "centres.safetensors"
BLOCK = 1 << 16  # rows put into clusters at once


def main(argv: list[str]) -> int:
    """Writes what is missing of the clusters; returns 0."""
    options = argparse.ArgumentParser(
        prog="counterpoint cluster",
        description="Puts the samples of a store into clusters of similar embeddings (k-means). "
        "Start it again to go on where it stopped.",
    )
    options.add_argument("store", type=Path, help="folder that counterpoint embed wrote")
    options.add_argument("--out", required=True, type=Path, help="folder of the sidecar to write")
    options.add_argument("--clusters", required=True, type=int, help="how many")
    options.add_argument("--column", default="image", help="which embeddings (image)")
    options.add_argument("--iterations", type=int, default=20, help="of k-means (20)")
    options.add_argument(
        "--samples_per_cluster", type=int, default=256, help="that k-means looks at, at most (256)"
    )
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args(argv)
    files = sorted(chosen.store.glob("*/*.safetensors"))
    counts = [rows_in(path, chosen.column) for path in files]
    if sum(counts) < chosen.clusters or chosen.clusters < 1:
        raise ValueError(
            f"{chosen.store} has {sum(counts):,} rows in SOURCE/SHARD.safetensors, too few for "
            f"--clusters {chosen.clusters:,}: give fewer, at least 1, or check the folder"
        )
    centres = found_centres(chosen, files, counts)
    sizes = torch.zeros(len(centres), dtype=torch.int64)
    for path in files:
        target = chosen.out / path.relative_to(chosen.store)
        if not target.exists():
            keys, rows = read(path, chosen.column)
            columns = {KEY: keys, "id": nearest(rows, centres)}
            write_sidecar(chosen.out, path.parent.name, path.stem, columns)
        sizes += torch.bincount(load_file(target)["id"], minlength=len(centres))
    print(
        f"{chosen.out}: {int(sizes.sum()):,} samples in {int((sizes > 0).sum()):,} of "
        f"{len(centres):,} clusters, {int(sizes.min()):,} to {int(sizes.max()):,} in each"
    )
    return 0


def found_centres(chosen: argparse.Namespace, files: list[Path], counts: list[int]) -> Tensor:
    """The clusters' centres [clusters, d], unit rows: those in the folder, or made and put there.

    Raises:
        ValueError: the folder has those of other options.
    """
    names = ("column", "clusters", "iterations", "samples_per_cluster", "seed")
    wanted: dict[str, Any] = {name: getattr(chosen, name) for name in names}
    wanted |= {"store": str(chosen.store), "rows": sum(counts)}
    about, path = chosen.out / ABOUT, chosen.out / CENTRES
    if about.exists():
        found = json.loads(about.read_text(encoding="utf-8"))
        if changed := sorted(key for key in wanted if found.get(key) != wanted[key]):
            raise ValueError(
                f"{chosen.out} holds clusters of other {', '.join(changed)}; choose another --out"
            )
        return load_file(path)["centres"]
    rows = drawn(chosen, files, counts)
    print(f"{chosen.out}: k-means over {len(rows):,} of {sum(counts):,} rows", flush=True)
    centres = k_means(rows, chosen.clusters, chosen.iterations, chosen.seed)
    chosen.out.mkdir(parents=True, exist_ok=True)
    save_file({"centres": centres}, path)
    write_json(about, wanted)  # last: without it the centres are made again
    return centres


def drawn(chosen: argparse.Namespace, files: list[Path], counts: list[int]) -> Tensor:
    """The embeddings that k-means looks at [n, d], drawn from all shards alike."""
    total = sum(counts)
    size = min(total, chosen.clusters * chosen.samples_per_cluster)
    chosen_rows = np.random.default_rng(chosen.seed).choice(total, size, replace=False)
    places = np.split(
        np.sort(chosen_rows), np.searchsorted(np.sort(chosen_rows), np.cumsum(counts))
    )
    starts = np.cumsum([0, *counts])
    parts = [
        read(path, chosen.column)[1][torch.from_numpy(at - start)]
        for path, at, start in zip(files, places, starts, strict=False)
        if len(at)
    ]
    return torch.cat(parts)


def k_means(rows: Tensor, num_clusters: int, iterations: int, seed: int) -> Tensor:
    """Centres [num_clusters, d] of unit rows [n, d]; of length one themselves.

    Raises:
        ValueError: faiss is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise ValueError("counterpoint cluster needs faiss; install counterpoint[curate]") from None
    means = faiss.Kmeans(
        rows.shape[1],
        num_clusters,
        niter=iterations,
        spherical=True,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
        gpu=faiss.get_num_gpus() > 0,
    )
    means.train(rows.numpy())
    return F.normalize(torch.from_numpy(np.array(means.centroids)), dim=-1)


def nearest(rows: Tensor, centres: Tensor) -> Tensor:
    """Number of each row's centre [n], by cosine; int64."""
    return torch.cat([(part @ centres.T).argmax(1) for part in rows.split(BLOCK)])


def rows_in(path: Path, column: str) -> int:
    """Number of rows of a file.

    Raises:
        ValueError: it is damaged, or has no such column of vectors.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys()) - {KEY}
            shape = file.get_slice(column).get_shape() if column in names else []
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the store's file '{path}' is damaged ({error})") from error
    if len(shape) not in (2, 3):
        raise ValueError(
            f"the store's file '{path}' has no embeddings named '{column}'; it has "
            f"{', '.join(sorted(names))}: choose another --column"
        )
    return shape[0]


def read(path: Path, column: str) -> tuple[Tensor, Tensor]:
    """Keys [n] and unit embeddings [n, d] of a file; of several variants, their mean."""
    with safe_open(str(path), framework="pt") as file:
        keys, rows = file.get_tensor(KEY), file.get_tensor(column).float()
    if rows.ndim == 3:
        rows = F.normalize(rows, dim=-1).mean(1)
    return keys, F.normalize(rows, dim=-1)
