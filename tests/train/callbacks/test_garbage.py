"""Python's garbage is collected at the same steps on all ranks, and only then."""

import gc
import weakref

import lightning.pytorch as pl
import pytest
import torch
from small_run import module, train
from torch.utils.data import DataLoader

from counterpoint.data.workers import start_worker
from counterpoint.train.callbacks import garbage
from counterpoint.train.callbacks.garbage import CollectGarbage


class Circle:
    """An object that only the collector can free."""

    def __init__(self):
        self.itself = self


class Litter(pl.Callback):
    """Leaves a circle in each step; notes how many are left of them all."""

    def __init__(self):
        self.left, self.circles, self.enabled = [], [], []

    def on_train_batch_end(self, *args):
        self.circles.append(weakref.ref(Circle()))
        self.left.append(sum(circle() is not None for circle in self.circles))
        self.enabled.append(gc.isenabled())


def test_it_is_collected_every_so_many_steps(monkeypatch):
    monkeypatch.setattr(garbage, "EVERY", 4)
    litter, frozen = Litter(), gc.get_freeze_count()
    train(module(10), 1, "auto", [litter, CollectGarbage()])
    assert litter.left == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    assert litter.enabled == [False] * 10
    assert gc.isenabled() and gc.get_freeze_count() == frozen


def test_a_run_that_fails_gives_the_collector_back():
    class Failing(pl.Callback):
        def on_train_batch_end(self, *args):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(module(2), 1, "auto", [CollectGarbage(), Failing()])
    assert gc.isenabled()


def test_whoever_has_switched_it_off_keeps_it_so():
    gc.disable()
    try:
        train(module(2), 1, "auto", [CollectGarbage()])
        assert not gc.isenabled()
    finally:
        gc.enable()


class Enabled(torch.utils.data.Dataset):
    """Whether the process that loads collects garbage."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return gc.isenabled()


def test_loader_workers_collect_their_own():
    gc.disable()
    try:
        options = {"num_workers": 1, "multiprocessing_context": "fork"}
        loader = DataLoader(Enabled(), None, worker_init_fn=start_worker, **options)
        assert [bool(enabled) for enabled in loader] == [True]
    finally:
        gc.enable()
