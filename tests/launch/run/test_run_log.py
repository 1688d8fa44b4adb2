"""The log of the screen: what is in it, what is not, and that nothing about it ends a run."""

import errno
import io
import logging
import os
import sys

import pytest

from counterpoint.launch.run import run_log
from counterpoint.launch.run.run_log import RunLog, announce, keep_screen


class Terminal(io.StringIO):
    """A screen that somebody looks at."""

    encoding = "utf-8"

    def isatty(self):
        return True


def use_terminal(monkeypatch):
    """Makes both streams one terminal, inside of the test: pytest sets them before each phase."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "argv", ["counterpoint", "fit", "--name=a b"])
    return terminal


def lines_of(path):
    """Lines of a log after its header, which is checked."""
    first, *rest = path.read_text().splitlines()
    assert first.startswith("==== 20") and "counterpoint fit '--name=a b'" in first, first
    return rest


def test_everything_printed_is_kept_from_before_the_folder_is_known(tmp_path, monkeypatch):
    screen = use_terminal(monkeypatch)
    handler = logging.StreamHandler(sys.stderr)  # made by a library before the command starts
    logger = logging.getLogger("some.library")
    logger.addHandler(handler)
    with RunLog():
        print("before")
        keep_screen(tmp_path, step=0)
        print("after", end="")
        print(" all")
        logger.warning("logged")
        print("went wrong", file=sys.stderr)
        assert sys.stdout.isatty()
    assert sys.stdout is screen and handler.stream is screen
    logger.removeHandler(handler)
    print("not of the run")
    kept = ["before", "after all", "logged", "went wrong"]
    assert lines_of(tmp_path / "log.txt") == kept
    assert screen.getvalue().splitlines() == [*kept, "not of the run"]


def test_the_trace_of_what_ends_the_run_is_kept(tmp_path, monkeypatch):
    screen = use_terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError), RunLog():
        keep_screen(tmp_path, 0)
        1 / 0  # noqa: B018
    text = (tmp_path / "log.txt").read_text()
    assert "Traceback (most recent call last)" in text and "1 / 0" in text
    assert text.endswith("ZeroDivisionError: division by zero\n")
    assert screen.getvalue() == ""  # whoever catches it prints it


def test_a_terminal_that_is_closed_ends_no_run(tmp_path, monkeypatch):
    screen = use_terminal(monkeypatch)

    def gone(*_):
        raise OSError(errno.EIO, "Input/output error")

    with RunLog():
        keep_screen(tmp_path, step=0)
        monkeypatch.setattr(screen, "write", gone)
        monkeypatch.setattr(screen, "flush", gone)
        print("saved", flush=True)
        monkeypatch.setattr(screen, "write", lambda _: (_ for _ in ()).throw(BrokenPipeError()))
        with pytest.raises(BrokenPipeError):
            print("to a reader that has seen enough")
        monkeypatch.undo()
    assert lines_of(tmp_path / "log.txt")[0] == "saved"


def test_a_resumed_run_appends(tmp_path, monkeypatch):
    use_terminal(monkeypatch)
    for step in (0, 40):
        with RunLog():
            keep_screen(tmp_path, step)
            print(f"started at {step}")
    starts = (tmp_path / "log.txt").read_text().split("\n==== ")
    first, second = (start.splitlines() for start in starts)
    assert first[1:] == ["started at 0"]
    assert second[0].endswith("after step 40") and second[1:] == ["started at 40"]


def test_what_is_drawn_over_is_kept_as_it_looks_in_the_end(tmp_path, monkeypatch):
    use_terminal(monkeypatch)
    with RunLog():
        keep_screen(tmp_path, 0)
        for percent in (1, 50, 100):
            sys.stderr.write(f"\r\x1b[2K\x1b[32m{percent}%\x1b[0m")
        sys.stderr.write("\n")
    assert lines_of(tmp_path / "log.txt") == ["100%"]


def test_other_ranks_have_a_file_once_they_have_something_to_say(tmp_path, monkeypatch):
    use_terminal(monkeypatch)
    monkeypatch.setenv("RANK", "3")
    with RunLog():
        keep_screen(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), RunLog():
        keep_screen(tmp_path / "later", 0)  # which rank 0 has not made yet
        print("early")
        (tmp_path / "later").mkdir()
        raise KeyError("gone")
    kept = lines_of(tmp_path / "later" / "log-rank3.txt")
    assert kept[0] == "early" and kept[-1] == "KeyError: 'gone'"


def test_a_full_disk_costs_no_line_once_there_is_room(tmp_path, monkeypatch):
    use_terminal(monkeypatch)
    real, full = os.write, [False]

    def write(file, data):
        if full[0]:
            raise OSError(28, "No space left on device")
        return real(file, data[:5])  # a disk that takes a little at a time

    monkeypatch.setattr(run_log.os, "write", write)
    with RunLog() as log:
        keep_screen(tmp_path, 0)
        print("one")
        full[0] = True
        print("two")
        print("x" * 3 * run_log.NUM_BYTES_KEPT)
        assert len(log._pending) == run_log.NUM_BYTES_KEPT  # memory is bounded
        print("three")
        full[0] = False
        print("four")
    kept = lines_of(tmp_path / "log.txt")
    assert kept[0] == "one" and kept[-2:] == ["three", "four"]


def test_nothing_is_written_for_a_command_that_never_had_a_folder(tmp_path, monkeypatch):
    use_terminal(monkeypatch)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError), RunLog():
        print("refused")
        raise ValueError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_start_prints_at_once(capsys, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    for silent in (["fit", "--help"], ["fit", "--print_config"], ["report", "x"], []):
        announce(silent)
    assert capsys.readouterr().out == ""
    announce(["fit", "--config", "x"])
    assert capsys.readouterr().out.startswith("counterpoint 0.")
    monkeypatch.setenv("LOCAL_RANK", "1")
    announce(["fit", "--config", "x"])
    assert capsys.readouterr().out == ""


def test_a_bar_that_never_ends_its_line_takes_no_memory(tmp_path, monkeypatch):
    use_terminal(monkeypatch)
    with RunLog() as log:
        keep_screen(tmp_path, step=0)
        copied = run_log.Copied(Terminal(), log)
        sizes = []
        for step in range(100):
            copied.write(f"\r{step:3d} " + "#" * 20)
            sizes.append(len(copied._line))
        assert len(set(sizes)) == 1
        copied.write("\r")
        copied.write("done\r")
        copied.write("\n")
    assert lines_of(tmp_path / "log.txt") == ["done"]
