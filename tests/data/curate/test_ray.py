"""A curation on a Ray cluster of two machines, both of them here: the same bytes as on one."""

import os

import pytest
from helpers import engine_tasks as tasks
from helpers.engine_pool import TESTS, content, curate, make_pool

from counterpoint.data.curate.engine import RayTasks, Serial

pytestmark = pytest.mark.soak

STORE_BYTES = 100_000_000


@pytest.fixture
def cluster(monkeypatch):
    """A head and another machine with a core each, which start tasks in other folders than ours."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    options = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={**options, "include_dashboard": False}
    )
    cluster.other = cluster.add_node(**options)
    yield cluster
    cluster.shutdown()


def test_results_come_in_order_and_errors_are_the_callers(cluster):
    with RayTasks(cluster.address) as engine:
        assert list(engine.map(tasks.square, range(100))) == [n * n for n in range(100)]
        assert len(set(engine.map(tasks.node_of, range(40)))) == 2
        assert set(engine.map(tasks.threads, range(4))) == {(1, 1)}
        assert set(engine.map(tasks.folder_of, range(4))) == {os.getcwd()}
        with pytest.raises(ValueError, match="is below 1") as caught:
            list(engine.map(tasks.refuse, range(20)))
        assert str(caught.value) == "max_aspect=0.5 is below 1, which no image is"
        with pytest.raises(ZeroDivisionError):
            list(engine.map(tasks.divide, range(20)))
        with pytest.raises(ValueError, match="lost with its worker 4 times"):
            list(engine.map(tasks.die, range(20)))
    with pytest.raises(ValueError, match=r"has a core and 1024\.0 GiB"):
        RayTasks(cluster.address, memory=2**40)


def test_a_curation_has_the_same_bytes_though_workers_are_killed(tmp_path, many_tasks, cluster):
    make_pool(tmp_path)
    killed = [tmp_path / f"x-{place}" for place in ("map", "groups")]
    for path in killed:
        path.touch()
    curate(tmp_path, "one", Serial(), "x")
    for path in killed:
        path.unlink()
    with RayTasks(cluster.address) as engine:
        curate(tmp_path, "two", engine, "x")
    assert all(path.exists() for path in killed)
    assert content(tmp_path / "one") == content(tmp_path / "two")


class Loses:
    """An engine whose cluster loses a machine after some results."""

    def __init__(self, engine, cluster):
        self.engine, self.cluster, self.results = engine, cluster, 0

    def map(self, function, items):
        for result in self.engine.map(function, items):
            self.results += 1
            if self.results == 15:
                self.cluster.remove_node(self.cluster.other, allow_graceful=False)
            yield result


def test_a_curation_has_the_same_bytes_though_a_machine_is_lost(tmp_path, many_tasks, cluster):
    make_pool(tmp_path)
    curate(tmp_path, "one", Serial())
    with RayTasks(cluster.address) as engine:
        losing = Loses(engine, cluster)
        curate(tmp_path, "two", losing)
    assert losing.results > 40
    assert content(tmp_path / "one") == content(tmp_path / "two")
