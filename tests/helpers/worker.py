"""The gloo workers' process: imports torch once, forks workers on request.

The other arguments are modules that it imports as well. In: over the socket whose descriptor is the
first argument, `fork LOG` together with the descriptor of the new worker's pipe (answer: its
process id), or `status PID` (answer: its exit status, or `running`). A worker takes pairs of
messages from its pipe: a call as a dict, then the pickled positional arguments (unpickled only once
the function's module is loaded, since they may be of its classes). It answers each pair with ("ok"
| "error", pickled result | traceback text, time of the end).
"""

import faulthandler
import importlib
import importlib.util
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def load_module(name: str, path: str, folders: list[str]) -> types.ModuleType:
    """Imports the file `path` under `name`, the name it has in the test process.

    Under pytest's importlib mode a test module is not on `sys.path`. Its parent folders become
    packages here as they do there, so that pickles name the same classes on both sides and
    relative imports find their neighbours. `folders` is the test process's `sys.path`.
    """
    if name in sys.modules:
        return sys.modules[name]
    sys.path += [folder for folder in folders if folder not in sys.path]
    if name.startswith("counterpoint."):
        return importlib.import_module(name)
    folder, parent = Path(path).parent, name.rpartition(".")[0]
    while parent:
        package = sys.modules.setdefault(parent, types.ModuleType(parent))
        package.__path__ = [str(folder)]
        folder, parent = folder.parent, parent.rpartition(".")[0]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def clean_state(env: dict[str, str]):
    """A call sees `env` and fixed seeds, and leaves nothing behind for the next one."""
    import numpy as np
    import torch

    saved, folder = dict(os.environ), os.getcwd()
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    os.environ.update(env)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - resets what the code under test may use
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call imports a lot
            torch.use_deterministic_algorithms(deterministic)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(saved)


def run_call(call: dict, arguments: bytes) -> tuple[str, Any, float]:
    """Runs one call inside its own process group; returns the answer to send."""
    import torch.distributed as dist

    try:
        module = load_module(call["module"], call["path"], call["folders"])
        function: Callable = getattr(module, call["function"])
        with clean_state(call["env"]):
            try:
                if call["backend"] is not None:
                    dist.init_process_group(
                        call["backend"],
                        init_method=f"file://{call['rendezvous']}",
                        rank=call["rank"],
                        world_size=call["world_size"],
                        timeout=timedelta(seconds=call["timeout"]),
                    )
            except RuntimeError:
                return "setup", traceback.format_exc(), time.monotonic()
            result = function(call["rank"], call["world_size"], *pickle.loads(arguments))
            return "ok", pickle.dumps(result), time.monotonic()
    except BaseException:  # pytest.fail and SystemExit are answers too
        # The time is taken before the group is destroyed: that makes the other ranks fail as well,
        # and the pool reports the first.
        return "error", traceback.format_exc(), time.monotonic()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        # Code that saves and restores signal handlers, as Lightning's Trainer does, removes this
        # one: Python does not see a handler that is registered in C.
        faulthandler.unregister(signal.SIGUSR1)
        faulthandler.register(signal.SIGUSR1, all_threads=False)


def exit_with_parent() -> None:
    """Ends this process, wherever it hangs, soon after its parent is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve(pipe: Connection) -> None:
    """Takes calls until the pipe is closed."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    while True:
        try:
            call, arguments = pickle.loads(pipe.recv_bytes()), pipe.recv_bytes()
        except EOFError:
            return
        answer = run_call(call, arguments)
        if getattr(sys.modules.get("deepspeed.comm.comm"), "cdb", None) is not None:
            answer = (*answer, "deepspeed")
        sys.stdout.flush()
        pipe.send_bytes(pickle.dumps(answer))


def fork(log: str, descriptor: int) -> int:
    """Starts a worker that serves the pipe `descriptor` and prints to `log`; returns its id."""
    pid = os.fork()
    if pid == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            serve(Connection(descriptor))
        finally:
            os._exit(0)  # nothing of the parent's is to be cleaned up here
    os.close(descriptor)
    return pid


def status(pid: int) -> str:
    """Returns the exit status of a worker, or `running`."""
    ended, code = os.waitpid(pid, os.WNOHANG)
    return str(os.waitstatus_to_exitcode(code)) if ended else "running"


def main() -> None:
    """Serves the pool until it closes the socket. Starts no thread, so that forking is safe."""
    sys.path.pop(0)  # tests/: its folders are named like modules
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        importlib.import_module(name)
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
        word, _, rest = message.decode().partition(" ")
        if word == "fork":
            control.send(str(fork(rest, descriptors[0])).encode())
        elif word == "status":
            control.send(status(int(rest)).encode())
        else:
            return


if __name__ == "__main__":
    main()
