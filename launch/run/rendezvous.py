"""A store of their own for the ranks of one start under torchrun, and what they agree on there.

In: the store that torchrun's agents share with their workers. Out: `MASTER_PORT` of a new one, and
decisions of the first process, before there are process groups.

torch 2.5 and later keep that store over restarts. What ranks that have died left in it, such as
their addresses, is then taken for that of the living ones, which wait for partners that do not
exist (pytorch issue 135712). So the first rank serves a new store, and publishes its port.
"""

import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

KEY = "counterpoint/port"
SECONDS = 600.0
REFUSED = "refused: "
_served: list[Any] = []  # a store ends with the object that serves it
_num_asked: Counter[str] = Counter()


def use_own_store() -> None:
    """Replaces the agents' store; every rank calls it once, the first one serves."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host = os.environ["MASTER_ADDR"]
    agents = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["RANK"] == "0":
        store = _serve(host, 0)
        agents.set(KEY, str(store.port))
        port = store.port
    else:
        port = _found(agents, host)
    os.environ["MASTER_PORT"] = str(port)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def agreed(name: str, decide: Callable[[], str]) -> str:
    """Returns what the first process of the run decides, in each of its processes.

    Those that Lightning starts inherit it, and decide themselves what is asked again later; those
    of torchrun and srun ask the store at `MASTER_PORT`, which the first of them serves, now or
    already.

    Args:
        name: of the decision, in capitals. All processes ask as often for one of a name.
        decide: is called in the first process only.

    Raises:
        ValueError: `decide` does, in the first process.
    """
    env, key = os.environ, f"COUNTERPOINT_{name}"
    if "TORCHELASTIC_RUN_ID" not in env:
        is_child = int(env.get("LOCAL_RANK", "0")) > 0
        if is_child:
            return env.pop(key, None) or decide()
        env[key] = decide()
        return env[key]
    if env["WORLD_SIZE"] == "1":
        return decide()
    _num_asked[name] += 1
    key += f"/{_num_asked[name]}"
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    if env["RANK"] == "0":
        store = _served[-1] if _served else _serve(host, port)
        try:
            choice = decide()
        except ValueError as error:
            store.set(key, f"{REFUSED}{error}")
            raise
        store.set(key, choice)
        return choice
    try:
        limit = timedelta(seconds=SECONDS)
        choice = TCPStore(host, port, is_master=False, timeout=limit).get(key).decode()
    except RuntimeError as error:  # torch's errors of stores, that of time among them
        raise ValueError(f"rank 0 at {host}:{port} does not answer: {error}") from None
    if choice.startswith(REFUSED):
        raise ValueError(choice.removeprefix(REFUSED))
    return choice


def _serve(host: str, port: int) -> Any:
    # torch finds it in this process when it is to serve one at this port.
    store = TCPStore(host, port, is_master=True, wait_for_workers=False, multi_tenant=True)
    _served.append(store)
    return store


def _found(agents: TCPStore, host: str) -> int:
    # The first port may be that of a first rank that has died, so that nothing listens there.
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        port = int(agents.get(KEY))
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return port
    raise ValueError(f"rank 0 on {host} did not start within {SECONDS:.0f} s; see its output")
