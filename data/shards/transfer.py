"""One attempt at a transfer, watched for stalls and checked at the end.

In: a call that writes a file. Out: the complete file, or an error; never a hang.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from webdataset.gopen import Pipe

Result = TypeVar("Result")

# A server that sends less than this in a stall time-out counts as silent.
MIN_PROGRESS_BYTES = 64 << 10
BLOCK = 1 << 20


class Incomplete(Exception):
    """The transfer stalled, or its result is not the expected file."""


def copy_output(
    url: str, path: Path, stall_timeout: float, max_bytes: float = float("inf")
) -> None:
    """Writes the output of the command of a `pipe:COMMAND` address to a file.

    A shell runs it with the rights of this user. webdataset's own opener would leave the command's
    children alive when it is abandoned, and reads the terminal's input.

    Raises:
        Incomplete: it fails or stalls.
    """
    stream = Pipe(
        url.removeprefix("pipe:"),
        mode="rb",
        shell=True,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def copy() -> None:
        with open(path, "wb") as file:
            while block := _checked(stream, lambda: stream.read(BLOCK)):
                file.write(block)
                check_arrived(file.tell(), max_bytes)
        _checked(stream, stream.close)

    try:
        watched(copy, stall_timeout, path)
    except BaseException:
        # The shell's own children write on if it alone is killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(stream.proc.pid, signal.SIGKILL)
        stream.proc.wait()
        raise


def _checked(stream: Pipe, call: Callable[[], Result]) -> Result:
    """Calls, and turns webdataset's error for an exit status into a short one."""
    try:
        return call()
    except OSError as error:
        if error.errno is None and stream.proc.returncode:
            status = stream.proc.returncode
            raise Incomplete(f"the command ended with status {status}") from None
        raise


def watched(call: Callable[[], Result], stall_timeout: float, part: Path | None = None) -> Result:
    """Calls in a thread, which is abandoned when it stalls.

    Drivers differ in what can be interrupted; the growth of a file is visible with all.

    Args:
        call: the transfer.
        stall_timeout: seconds within which the file has to grow or the call has to end.
        part: the file that the call writes.

    Raises:
        Incomplete: the transfer stalled. Errors of the call are raised, too.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    done, abandoned = threading.Event(), threading.Event()

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        done.set()
        if abandoned.is_set() and part is not None:
            part.unlink(missing_ok=True)

    threading.Thread(target=run, daemon=True, name="counterpoint-fetch").start()
    seen = 0
    while not done.wait(stall_timeout):
        grown = part.stat().st_size if part is not None and part.exists() else 0
        if grown - seen < MIN_PROGRESS_BYTES:
            abandoned.set()
            raise Incomplete(f"nothing arrived in {stall_timeout:g} s")
        seen = grown
    if errors:
        raise errors[0]
    return results[0]


def check_arrived(num_bytes: int, max_bytes: float) -> None:
    """Raises Incomplete when more has arrived than was expected or is there room for."""
    if num_bytes > max_bytes:
        raise Incomplete(f"it goes on after the {max_bytes:.0f} bytes that were expected")


def check(path: Path, num_bytes: int, sha256: str) -> None:
    """Raises Incomplete unless a tar has its size, end mark and checksum."""
    if not path.exists():
        raise Incomplete(f"'{path}' was removed while it was written")
    size = path.stat().st_size
    if num_bytes and size != num_bytes:
        raise Incomplete(f"{size} bytes arrived, {num_bytes} were expected")
    if not num_bytes:
        # A broken server may state a wrong length: check the tar's end mark instead.
        with open(path, "rb") as file:
            file.seek(max(0, size - 512))
            tail = file.read()
        if len(tail) < 512 or any(tail):
            raise Incomplete(f"the {size} bytes that arrived do not end like a tar")
    if sha256 and digest(path) != sha256:
        raise Incomplete("its SHA-256 is not the one in the manifest")


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()
