"""What a run prints, on the screen and in its folder: `log.txt`, of further ranks `log-rankN.txt`.

In: everything that goes through Python's `sys.stdout` and `sys.stderr`, warnings, loggers and the
stack trace of what ends the command included. Out: the same on the screen, and its lines in a file
that is appended to on resume. What is printed before the folder is known is kept until then. Text
that libraries in C write by themselves is on the screen alone.
"""

import contextlib
import datetime
import errno
import io
import logging
import os
import platform
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TextIO

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours and cursor moves of a terminal
NUM_BYTES_KEPT = 1 << 20  # that could not be written yet: a full disk may have room later


def announce(argv: Sequence[str]) -> None:
    """Prints at once what is started: `fit` imports for ten seconds before it knows anything."""
    asks = any(word.startswith(("-h", "--help", "--print_config")) for word in argv)
    if argv[:1] == ["fit"] and rank() == 0 and not asks:
        print(f"counterpoint {version('counterpoint')}: loading torch and lightning", flush=True)


def rank() -> int:
    """This process's rank by the environment; 0 if it was not launched as one of several."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def keep_screen(run_dir: Path, step: int) -> None:
    """Keeps the screen, and what was on it so far, in the run folder, which may come later."""
    if isinstance(sys.stdout, Copied):
        sys.stdout.log.open(run_dir, step)


class RunLog:
    """While it is entered, everything printed is copied; `open` names the file.

    A line that cannot be written (the disk is full) is tried again with the next one, and never
    ends the run.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._path: Path | None = None
        self._file: int | None = None

    def __enter__(self) -> "RunLog":
        self._screen = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = Copied(sys.stdout, self), Copied(sys.stderr, self)
        # Handlers keep the stream of the time when they were made.
        self._handlers = list(_handlers_on(self._screen[1]))
        for handler in self._handlers:
            handler.setStream(sys.stderr)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, SystemExit):
            self.write("".join(traceback.format_exception(kind, error, trace)))
        for handler in self._handlers:
            handler.setStream(self._screen[1])
        sys.stdout, sys.stderr = self._screen
        if self._file is not None:
            os.close(self._file)

    def open(self, run_dir: Path, step: int) -> None:
        """Opens the file, new or to append, with a line of the time, host and command."""
        if self._path is not None:
            return
        number = rank()
        self._path = run_dir / (f"log-rank{number}.txt" if number else "log.txt")
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        after = f", after step {step}" if step else ""
        header = f"==== {now} on {platform.node()}: {shlex.join(sys.argv)}{after}\n"
        self._pending = header.encode() + self._pending
        # Further ranks mostly have nothing to add: theirs is made with the first line.
        if number == 0:
            self.write("")

    def write(self, text: str) -> None:
        """Appends text at once, so that it is there whatever happens next."""
        self._pending += text.encode("utf-8", errors="replace")
        if self._path is not None:
            try:
                if self._file is None:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                    self._file = os.open(self._path, flags, 0o644)
                while self._pending:
                    self._pending = self._pending[os.write(self._file, self._pending) :]
            except OSError:
                pass
        self._pending = self._pending[-NUM_BYTES_KEPT:]


class Copied(io.TextIOBase):
    """A stream of the screen whose whole lines also go to the log.

    Attributes:
        screen: where text goes; a progress bar puts itself in between.
        log: where lines go, as they look in the end: without colours, and without what was
            overwritten in place.
    """

    def __init__(self, screen: TextIO, log: RunLog):
        self.screen = screen
        self.log = log
        self._line = ""
        self._encoding = screen.encoding

    def write(self, text: str) -> int:
        """Writes to the screen, and finished lines to the log."""
        self._line += text
        *lines, self._line = self._line.split("\n")
        # A bar overwrites its line for hours: only what it looks like in the end is kept.
        end = "\r" * self._line.endswith("\r")
        self._line = _last(self._line) + end
        shown = (CONTROL.sub("", _last(line)) for line in lines)
        if kept := "".join(f"{line}\n" for line in shown):
            self.log.write(kept)
        with _closed_terminal():
            self.screen.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the screen; the log always is."""
        with _closed_terminal():
            self.screen.flush()

    def isatty(self) -> bool:
        return self.screen.isatty()

    def fileno(self) -> int:
        """Returns the screen's, for child processes and fault handlers."""
        return self.screen.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


@contextlib.contextmanager
def _closed_terminal() -> Iterator[None]:
    """Lets a run go on, or save and end, whose terminal has been closed."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def _last(line: str) -> str:
    """What is seen of a line that was overwritten in place."""
    return line.rstrip("\r").rpartition("\r")[2]


def _handlers_on(stream: TextIO) -> Iterator[logging.StreamHandler]:
    known = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(each for each in known if isinstance(each, logging.Logger))]
    for handler in dict.fromkeys(each for logger in loggers for each in logger.handlers):
        if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
            yield handler
