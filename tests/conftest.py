"""Fixtures for every test, and which tests run in one process."""

import pytest

from .helpers.pool import GlooPool


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]):
    """Keeps tests together that would otherwise make the same thing in several processes.

    All tests with several ranks, so that there is one pool of workers, and those of a file that
    share a fixture of the file (a trained run, a corpus), which is made once.
    """
    for item in items:
        if "gloo" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ranks"))
        elif shares_fixture(item) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    result = yield
    # xdist deals tests out by what follows "@" in their names. Up to 3.8 it sets an attribute that
    # pytest 9.2 no longer reads, so that marks alone do nothing there.
    for item in items if config.getoption("loadgroup", default=False) else ():
        mark = item.get_closest_marker("xdist_group")
        if mark is not None and not item.nodeid.endswith(f"@{mark.args[0]}"):
            item._id = type(item._id).parse(f"{item.nodeid}@{mark.args[0]}")
    return result


def shares_fixture(item: pytest.Item) -> bool:
    """Whether the test uses a fixture that is made once for its file."""
    info = getattr(item, "_fixtureinfo", None)
    fixtures = info.name2fixturedefs.values() if info is not None else ()
    return any(fixture.scope == "module" for each in fixtures for fixture in each)


@pytest.fixture(scope="session")
def gloo():
    """Calls `gloo(world_size, fn, *args)`: results of fn(rank, world_size, *args)."""
    pool = GlooPool()
    yield pool
    pool.close()
