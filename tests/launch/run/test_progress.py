"""The progress bar: where there is one, and that the log gets lines and no bar."""

import io
import sys
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from counterpoint.launch.run.progress import progress
from counterpoint.launch.run.run_log import RunLog, keep_screen
from counterpoint.train.callbacks.metrics import Metrics


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def use_terminal(monkeypatch):
    """Makes the screen a terminal, inside of the test: pytest sets it before each phase."""
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    return terminal


def test_the_bar_is_drawn_below_the_lines_and_not_in_the_log(tmp_path, monkeypatch):
    terminal = use_terminal(monkeypatch)
    monkeypatch.delenv("RANK", raising=False)
    metrics, trainer = Metrics(), SimpleNamespace(is_global_zero=True, max_steps=4, global_step=2)
    with RunLog():
        keep_screen(tmp_path, 2)
        before = sys.stdout.screen
        (bar,) = progress([], metrics)
        bar.on_train_start(trainer, None)
        print("a line")
        metrics.latest = {"loss": 1.25}
        trainer.global_step = 4
        bar.on_train_batch_end(trainer, None)
        bar.on_train_end(trainer, None)
        assert sys.stdout.screen is before
        print("afterwards")
    shown = terminal.getvalue()
    assert "━" in shown and "4/4" in shown and "loss 1.250" in shown
    assert "a line" in shown and shown.endswith("afterwards\n")
    assert (tmp_path / "log.txt").read_text().splitlines()[1:] == ["a line", "afterwards"]


def test_an_exception_gives_the_terminal_back(tmp_path, monkeypatch):
    use_terminal(monkeypatch)
    trainer = SimpleNamespace(is_global_zero=True, max_steps=4, global_step=0)
    with RunLog():
        before = sys.stdout.screen
        (bar,) = progress([], Metrics())
        bar.on_train_start(trainer, None)
        assert sys.stdout.screen is not before
        bar.on_exception(trainer, None, ValueError())
        assert sys.stdout.screen is before


def test_no_bar_on_other_ranks_in_files_or_beside_the_users(monkeypatch):
    terminal = use_terminal(monkeypatch)
    assert progress([pl.callbacks.TQDMProgressBar()], Metrics()) == []
    (bar,) = progress([pl.callbacks.EarlyStopping("loss")], Metrics())
    bar.on_train_start(SimpleNamespace(is_global_zero=False), None)
    bar.on_train_batch_end(SimpleNamespace(), None)
    assert terminal.getvalue() == ""
    monkeypatch.setitem(sys.modules, "rich", None)
    assert progress([], Metrics()) == []
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert progress([], Metrics()) == []
