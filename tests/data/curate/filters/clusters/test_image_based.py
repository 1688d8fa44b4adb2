"""Clusters stay that other images hit."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from counterpoint.data.curate.filters.clusters.image_based import ImageBased
from counterpoint.data.sidecar import write_sidecar

CLUSTER = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])


def keep(folder, **options):
    rows = pa.RecordBatch.from_pydict({"key": np.arange(10), "clusters.id": CLUSTER})
    return ImageBased(folder, **options).apply(rows, {})["keep"]


def test_clusters_stay_that_images_hit(tmp_path):
    for number, ids in enumerate([[1, 9, 9], [5, 9, 1, 7]]):
        columns = {"key": torch.arange(len(ids)), "id": torch.tensor(ids)}
        write_sidecar(tmp_path, "imagenet", f"{number}.tar", columns)
    assert CLUSTER[keep(tmp_path)].tolist() == [1, 1, 5, 9, 5]
    assert CLUSTER[keep(tmp_path, min_images=2)].tolist() == [1, 1, 9]
    assert keep(tmp_path, min_images=4).sum() == 0
    assert len(ImageBased(tmp_path).files()) == 2


def test_what_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(ValueError, match="write it with counterpoint cluster"):
        keep(tmp_path)
    write_sidecar(tmp_path, "imagenet", "0.tar", {"key": torch.arange(2)})
    with pytest.raises(ValueError, match="holds no clusters"):
        keep(tmp_path)
    with pytest.raises(ValueError, match="min_images=0"):
        ImageBased(tmp_path, min_images=0)
