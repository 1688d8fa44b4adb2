"""What is logged of time: on a GPU the host runs ahead of it."""

import time
from types import SimpleNamespace

import pytest
import torch
from small_run import module

from counterpoint.train.callbacks.metrics import Metrics


@pytest.mark.parametrize(("device", "busy"), [("cuda", 13.0), ("cpu", 6.0)])
def test_the_clock_is_read_when_the_device_is_done(monkeypatch, device, busy):
    clock, seen = [0.0], []
    made = module(1)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(type(made), "device", torch.device(device))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: clock.__setitem__(0, clock[0] + 7.0))
    metrics = Metrics(peak_tflops=1.0)
    metrics._meter = SimpleNamespace()

    def noted(*args):
        seen.append(metrics._busy)
        return {}

    monkeypatch.setattr(metrics, "_training_values", noted)
    data = SimpleNamespace(error_counts=dict)
    trainer = SimpleNamespace(
        log_every_n_steps=2, max_steps=9, datamodule=data, loggers=[], is_global_zero=False
    )
    for name in ("callback_metrics", "logged_metrics", "progress_bar_metrics"):
        setattr(trainer, name, {})
    for trainer.global_step in (1, 2):
        made.step_ended = clock[0]
        clock[0] += 3.0  # the host queues a step
        metrics.on_train_batch_end(trainer, made)
    assert seen == [busy]


@pytest.mark.parametrize("known", [None, (989.0, "a datasheet")])
def test_the_peak_that_mfu_is_a_share_of_is_said(monkeypatch, capsys, known):
    monkeypatch.setattr("counterpoint.train.callbacks.metrics.measure_peak", lambda *_: 2.5e12)
    made = module(1)
    trainer = SimpleNamespace(global_step=0, precision="32-true", is_global_zero=True)
    metrics = Metrics(known_peak=known)
    metrics.on_train_start(trainer, made)
    said = capsys.readouterr().out
    assert metrics._peak == (2.5e12 if known is None else 989e12)
    assert (
        "2.5 TFLOP/s a device (measured" if known is None else "989 TFLOP/s a device (a d"
    ) in said
    Metrics(peak_tflops=1.0, known_peak=known).on_train_start(trainer, made)
    assert capsys.readouterr().out == ""
