"""Fixtures for every test."""

import pytest

from .pool import GlooPool


@pytest.fixture(scope="session")
def gloo():
    """Calls `gloo(world_size, fn, *args, timeout=60)`: results of fn(rank, world_size, *args)."""
    pool = GlooPool()
    yield pool
    pool.close()
