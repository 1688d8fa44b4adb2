"""The gloo pool itself: results, isolation, failures, deaths, hangs and recovery."""

import os
import signal
import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from waiting import until

from .helpers import pool
from .helpers.pool import WorkerError, WorkerTimeout


@dataclass
class Pair:
    """A class of the test module: travels to the workers and back."""

    tensor: torch.Tensor
    rank: int


def summed(rank, world_size, scale):
    value = torch.tensor(scale * (rank + 1))
    dist.all_reduce(value)
    return value.item(), dist.get_world_size(), dist.get_rank()


def shifted(rank, world_size, pair):
    return Pair(pair.tensor + rank, rank)


def process(rank, world_size):
    return os.getpid()


def dirty(rank, world_size):
    os.environ["COUNTERPOINT_DIRTY"] = "1"
    torch.set_default_dtype(torch.float64)
    return torch.rand(1).item()


def state(rank, world_size):
    return "COUNTERPOINT_DIRTY" in os.environ, torch.get_default_dtype(), torch.rand(1).item()


def ranks_in_environment(rank, world_size):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    return [int(os.environ[name]) for name in names], torch.get_num_threads()


def one_raises(rank, world_size):
    if rank == 1:
        print("about to fail")
        raise KeyError("the culprit")
    dist.all_reduce(torch.zeros(1))


def one_dies(rank, world_size):
    if rank == 0:
        os._exit(7)
    dist.all_reduce(torch.zeros(1))


def one_sleeps(rank, world_size):
    if rank == 1:
        time.sleep(36000)
    dist.all_reduce(torch.zeros(1))


def handlers_restored(rank, world_size):
    """As Lightning's Trainer does at its end."""
    signal.signal(signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))


def unpicklable(rank, world_size):
    return lambda: rank


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_world_size_has_its_own_group(gloo, world_size):
    total = 10 * sum(range(1, world_size + 1))
    assert gloo(world_size, summed, 10) == [(total, world_size, r) for r in range(world_size)]


def test_all_tests_with_ranks_run_in_one_process(gloo, request):
    if not request.config.getoption("loadgroup", default=False):
        pytest.skip("under xdist with --dist loadgroup, as in `make test`")
    assert request.node.nodeid.endswith("@ranks")


def test_classes_of_a_test_file_travel_both_ways(gloo):
    results = gloo(2, shifted, Pair(torch.tensor([1.0, 2.0]), -1))
    assert [result.rank for result in results] == [0, 1]
    assert all(type(result) is Pair for result in results)
    assert results[1].tensor.tolist() == [2.0, 3.0]


def test_workers_are_reused(gloo):
    # Not at once after DeepSpeed, which binds workers to its number of ranks, nor where gloo could
    # not connect them, which happens on busy machines: then there are new ones.
    for _ in range(10):
        three = gloo(3, process)
        if gloo(3, process) == three and gloo(2, process) == three[:2]:
            return
    pytest.fail("ten calls in a row had new workers")


def test_calls_leave_nothing_behind(gloo):
    first = gloo(2, state)
    gloo(2, dirty)
    assert gloo(2, state) == first
    assert first[0][:2] == (False, torch.float32)


def test_workers_look_as_if_under_torchrun_and_use_one_thread(gloo):
    assert gloo(2, ranks_in_environment) == [([0, 0, 2], 1), ([1, 1, 2], 1)]


def test_an_exception_comes_back_with_its_traceback(gloo):
    with pytest.raises(WorkerError) as caught:
        gloo(2, one_raises)
    text = str(caught.value)
    assert text.startswith("rank 1 of 2 failed in one_raises")
    assert "in one_raises" in text and "KeyError: 'the culprit'" in text
    assert "about to fail" in text
    assert gloo(2, summed, 1)[0][0] == 3


def test_a_dead_process_is_named_and_replaced(gloo):
    with pytest.raises(WorkerError, match=r"rank 0 of 2 failed[^\n]*\n.*exit status 7"):
        gloo(2, one_dies)
    assert gloo(2, summed, 1)[0][0] == 3


def test_a_result_that_cannot_be_pickled_is_an_error(gloo):
    with pytest.raises(WorkerError, match="unpicklable"):
        gloo(1, unpicklable)


@pytest.mark.soak
def test_a_hang_names_the_rank_and_the_place_and_the_pool_recovers(gloo, monkeypatch):
    """Time is up once both ranks stand where they will stand for ever."""
    gloo(2, handlers_restored)

    answered = pool.wait

    def stand(pipes, timeout):
        """A rank that answers could not be connected, which happens: then all is done again."""
        if len(pipes) < 2:
            return []
        waits, sleeps = gloo._workers[:2]
        until(
            lambda: (
                answered(pipes, 0)
                or ("distributed_c10d.py" in waits.where() and "in one_sleeps" in sleeps.where())
            )
        )
        return answered(pipes, 0)

    with monkeypatch.context() as patch:
        patch.setattr(pool, "wait", stand)
        with pytest.raises(WorkerTimeout) as caught:
            gloo(2, one_sleeps)
    text = str(caught.value)
    assert f"no answer from rank [1] within {pool.HANG_SECONDS:g} s" in text
    assert "rank [0] waits in a collective" in text
    assert "in one_sleeps" in text
    assert gloo(2, summed, 1)[0][0] == 3


def test_only_top_level_functions(gloo):
    with pytest.raises(ValueError, match="top-level"):
        gloo(1, lambda rank, world_size: rank)
    with pytest.raises(ValueError, match="1 to 4"):
        gloo(5, process)


def test_a_group_that_could_not_be_made_is_made_again(gloo, monkeypatch):
    """By other processes: the first ones may not agree any more on how many groups there were."""
    collect, attempts = gloo._collect, []

    def fails_once(workers, deadline):
        answers = collect(workers, deadline)
        attempts.append({worker.pid for worker in workers})
        return answers if len(attempts) > 1 else answers | {1: ("setup", "no connection", 0.0)}

    monkeypatch.setattr(gloo, "_collect", fails_once)
    assert gloo(2, summed, 1)[0][0] == 3
    assert len(attempts) == 2 and not attempts[0] & attempts[1]


def test_a_group_that_can_never_be_made_is_an_error(gloo, monkeypatch):
    monkeypatch.setattr(gloo, "_collect", lambda *_: {0: ("setup", "no connection", 0.0)})
    with pytest.raises(WorkerError, match=r"rank 0 of 1 failed in summed\nno connection"):
        gloo(1, summed, 1)
