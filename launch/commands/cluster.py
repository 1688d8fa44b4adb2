"""`counterpoint cluster`: which cluster each sample of a store is in, stored beside it.

In: a store that `counterpoint embed` wrote (or any sidecar with a column of embeddings). Out: a
sidecar with the column `id`, the number of the sample's cluster, for `losses.clusters`; and the
clusters' centres. Spherical k-means by faiss, over a part of the samples that a hash of the seed
and their keys draws: how the store is cut into files changes nothing. Or no k-means, and the
clusters of another store's centres: which of a pool's clusters other images fall into.
An et al., "Unicom" (2023); Yang et al., "CLIP-CID" (2024): clusters of a frozen model's features.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from ...data.curate.numerics.similarity import nearest, rounded
from ...data.files import check_own, whole_file, write_json
from ...data.hashing import mix, seeded
from ...data.sidecar import KEY, write_sidecar
from .. import arguments
from ..experiments.work_claims import claimed

ABOUT, CENTRES = "clusters.json", "centres.safetensors"


def main(argv: list[str]) -> int:
    """Writes what is missing of the clusters; returns 0."""
    chosen = arguments.cluster().parse_args(argv)
    files = checked(chosen)
    counts = [rows_in(path, chosen.column)[0] for path in files]
    if sum(counts) < (chosen.clusters or 1):
        raise ValueError(
            f"{chosen.store} has {sum(counts):,} rows in SOURCE/SHARD.safetensors, too few for "
            f"--clusters {chosen.clusters or 1:,}: give fewer, or check the folder"
        )
    centres = get_centres(chosen, files, counts)
    sizes = torch.zeros(len(centres), dtype=torch.int64)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for path in files:
        target = chosen.out / path.relative_to(chosen.store)
        if not target.exists():
            keys, rows = read(path, chosen.column)
            number = nearest(rounded(rows.numpy()), rounded(centres.numpy()), device)
            columns = {KEY: keys, "id": torch.from_numpy(number)}
            write_sidecar(chosen.out, path.parent.name, path.stem, columns)
        sizes += torch.bincount(load_file(target)["id"], minlength=len(centres))
    print(
        f"{chosen.out}: {int(sizes.sum()):,} samples in {int((sizes > 0).sum()):,} of "
        f"{len(centres):,} clusters, {int(sizes.min()):,} to {int(sizes.max()):,} in each"
    )
    return 0


def checked(chosen: argparse.Namespace) -> list[Path]:
    """Returns the store's files; refuses options and folders that cannot be used."""
    if (chosen.clusters is None) == (chosen.centres is None):
        raise ValueError("give --clusters N, or --centres FILE for clusters that are there already")
    for name in ("clusters", "iterations", "samples_per_cluster"):
        if (value := getattr(chosen, name)) is not None and value < 1:
            raise ValueError(f"--{name} {value}: give 1 or more")
    if chosen.out.resolve().is_relative_to(chosen.store.resolve()):
        raise ValueError(f"--out {chosen.out} lies in the store; choose a folder outside of it")
    check_own(chosen.out, ABOUT, CENTRES, Path(CENTRES).with_suffix(".claim").name)
    if claims := sorted(chosen.store.glob("*/*.claim")):
        raise ValueError(
            f"{chosen.store} is still being written ({claims[0]}): wait for counterpoint embed; if "
            "no process works on it any more, delete that file and finish the store first"
        )
    files = sorted(chosen.store.glob("*/*.safetensors"))
    widths = {rows_in(path, chosen.column)[-1] for path in files}
    if len(widths) > 1:
        raise ValueError(
            f"{chosen.store} has embeddings of widths {sorted(widths)}; give one store"
        )
    try:
        import faiss  # noqa: F401, used when all is read
    except ImportError:
        raise ValueError(
            "counterpoint cluster needs faiss, which is not installed; "
            "run `pip install -e '.[curate]'` in Counterpoint's folder"
        ) from None
    return files


def get_centres(chosen: argparse.Namespace, files: list[Path], counts: list[int]) -> Tensor:
    """Returns the centres [clusters, d], unit rows: the folder's, given ones, or new ones."""
    names = ("column", "clusters", "iterations", "samples_per_cluster", "seed")
    wanted: dict[str, Any] = {name: getattr(chosen, name) for name in names}
    if chosen.centres:
        wanted = {"column": chosen.column, "centres": str(chosen.centres.resolve())}
    wanted |= {"store": str(chosen.store.resolve()), "rows": sum(counts)}
    about, path = chosen.out / ABOUT, chosen.out / CENTRES
    with claimed(path.with_suffix(".claim")) as ours:
        if not about.exists():
            if not ours:
                raise ValueError(f"another process makes the centres in {chosen.out}; wait for it")
            if chosen.centres:
                centres = given_centres(chosen.centres, rows_in(files[0], chosen.column)[-1])
            else:
                centres = k_means(draw_rows(chosen, files, counts), chosen)
            with whole_file(path) as part:
                part.write_bytes(save({"centres": centres}))
            write_json(about, wanted)  # last: without it the centres are made again
            return centres
    found = json.loads(about.read_text(encoding="utf-8"))
    if changed := sorted(key for key in wanted if found.get(key) != wanted[key]):
        raise ValueError(
            f"{chosen.out} holds clusters of other {', '.join(changed)}; choose another --out"
        )
    return load_file(path)["centres"]


def given_centres(path: Path, width: int) -> Tensor:
    """Returns the centres [clusters, width] of other clusters.

    Raises:
        ValueError: the file has none of this width.
    """
    try:
        centres = load_file(path)["centres"]
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"--centres {path} is no file of centres ({error})") from error
    if centres.shape[1:] != (width,):
        raise ValueError(
            f"--centres {path} has the shape {list(centres.shape)}, and the store's embeddings "
            f"have {width} numbers: both must come from the same model"
        )
    return centres


def draw_rows(chosen: argparse.Namespace, files: list[Path], counts: list[int]) -> Tensor:
    """The embeddings that k-means looks at [n, d]: those whose keys have the lowest hashes.

    In the order of these hashes, so that they are the same for any order of the store's rows.
    """
    size = min(sum(counts), chosen.clusters * chosen.samples_per_cluster)
    drawn = np.empty(0, dtype=np.uint64)
    for path in files:
        drawn = np.unique(np.append(drawn, hashed_keys(path, chosen.seed)))[:size]
    width = rows_in(files[0], chosen.column)[-1]
    print(
        f"{chosen.out}: k-means over {len(drawn):,} of {sum(counts):,} rows, "
        f"{len(drawn) * width * 4 / 1e9:,.1f} GB in memory",
        flush=True,
    )
    rows = torch.empty(len(drawn), width)
    for path in files:
        hashes = hashed_keys(path, chosen.seed)
        at = np.searchsorted(drawn, hashes).clip(max=len(drawn) - 1)
        hits = np.flatnonzero(drawn[at] == hashes)
        if len(hits):
            rows[torch.from_numpy(at[hits])] = read(path, chosen.column)[1][torch.from_numpy(hits)]
    return rows


def hashed_keys(path: Path, seed: int) -> np.ndarray:
    """Hashes of the keys of a file's rows, uint64 [n]."""
    with safe_open(str(path), framework="pt") as file:
        return mix(file.get_tensor(KEY).numpy(), seeded(seed, "k-means"))


def k_means(rows: Tensor, chosen: argparse.Namespace) -> Tensor:
    """Centres [clusters, d] of unit rows [n, d]; of length one themselves."""
    import faiss

    means = faiss.Kmeans(
        rows.shape[1],
        chosen.clusters,
        niter=chosen.iterations,
        spherical=True,
        seed=chosen.seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
        gpu=faiss.get_num_gpus() > 0,
    )
    means.train(rows.numpy())
    return F.normalize(torch.from_numpy(np.array(means.centroids)), dim=-1)


def rows_in(path: Path, column: str) -> list[int]:
    """Shape of a file's embeddings, [n, d] or [n, variants, d]."""
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
    return shape


def read(path: Path, column: str) -> tuple[Tensor, Tensor]:
    """Keys [n] and unit embeddings [n, d] of a file; of several variants, their mean."""
    with safe_open(str(path), framework="pt") as file:
        keys, rows = file.get_tensor(KEY), file.get_tensor(column).float()
    if not rows.isfinite().all():
        raise ValueError(f"the store's file '{path}' has '{column}' that are not finite")
    if rows.ndim == 3:
        rows = F.normalize(rows, dim=-1).mean(1)
    return keys, F.normalize(rows, dim=-1)
