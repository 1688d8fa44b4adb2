"""Image-based filter: images like those of an evaluation's training set, by clusters of the pool.

Gadre et al., "DataComp" (2023), section 4.3 and appendix: the pool's embeddings fall into clusters,
and those clusters stay whose centre is the nearest to some image of ImageNet's training set.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from ...base import KEEP, Columns, Filter, State, integers


@dataclass(frozen=True)
class ImageBased(Filter):
    """Keeps the samples of clusters that other images hit.

    Args:
        hits: folder with the clusters of those images, of the same centres: counterpoint cluster
            THEIR_STORE --centres CLUSTERS/centres.safetensors --out HITS.
        cluster: column with the pool's clusters.
        min_images: how many images have to hit a cluster.

    Raises:
        ValueError: `min_images` is below 1.
    """

    hits: Path
    cluster: str = "clusters.id"
    min_images: int = 1

    def __post_init__(self):
        if self.min_images < 1:
            raise ValueError(f"min_images={self.min_images}: give 1 or more")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The cluster."""
        return (self.cluster,)

    def files(self) -> list[Path]:
        return sorted(self.hits.glob("*/*.safetensors"))

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        return {KEEP: np.isin(integers(rows, self.cluster), self._hit())}

    def _hit(self) -> np.ndarray:
        files = tuple((path, path.stat().st_mtime_ns) for path in self.files())
        return _hit(self, files)


@functools.lru_cache(maxsize=2)
def _hit(of: ImageBased, files: tuple[tuple[Path, int], ...]) -> np.ndarray:
    """Returns the clusters that are hit, int64 [k]; `files` are theirs, and when they changed."""
    ids = []
    for path, _ in files:
        try:
            with safe_open(str(path), framework="pt") as file:
                ids.append(file.get_tensor("id").numpy())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"'{path}' holds no clusters ({error})") from error
    if not ids:
        raise ValueError(
            f"'{of.hits}' holds no SOURCE/SHARD.safetensors; write it with counterpoint cluster "
            "STORE --centres FILE --out FOLDER"
        )
    clusters, images = np.unique(np.concatenate(ids), return_counts=True)
    return clusters[images >= of.min_images]
