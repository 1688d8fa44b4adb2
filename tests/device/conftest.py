"""The null GPU: a CUDA device that takes everything and computes nothing (`null_gpu`)."""

import pytest
from null_gpu.build import missing
from null_gpu.pool import NullGpuPool
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards


@pytest.fixture(scope="session")
def null_gpu():
    """Calls `null_gpu(world_size, fn, *args)`: results of fn(rank, world_size, messages, *args)."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    pool = NullGpuPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def run_file(tmp_path_factory):
    """A tiny run on a CUDA device, of 17 steps that logs every eighth."""
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder)], str(path))
    values = config(path, steps=17)
    values["trainer"] |= {"accelerator": "gpu", "devices": 1, "log_every_n_steps": 8}
    values["data"]["num_workers"] = 0
    values["checkpoint"]["every_n_steps"] = 10
    return write_config(folder, values)
