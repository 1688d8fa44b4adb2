"""Fixtures for every test."""

import pytest

from .helpers.pool import GlooPool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps all tests with several ranks in one process, so that there is one pool of workers."""
    for item in items:
        if "gloo" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ranks"))


@pytest.fixture(scope="session")
def gloo():
    """Calls `gloo(world_size, fn, *args)`: results of fn(rank, world_size, *args)."""
    pool = GlooPool()
    yield pool
    pool.close()
