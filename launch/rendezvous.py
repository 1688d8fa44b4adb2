"""A store of their own for the ranks of one start under torchrun.

In: the store that torchrun's agents share with their workers. Out: `MASTER_PORT` of a new one.

torch 2.5 and later keep that store over restarts. What ranks that have died left in it, such as
their addresses, is then taken for that of the living ones, which wait for partners that do not
exist (pytorch issue 135712). So the first rank serves a new store, and tells the others where.
"""

import os
import socket
import time
from typing import Any

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

KEY = "counterpoint/port"
SECONDS = 600.0
_served: list[Any] = []  # a store ends with the object that serves it


def use_own_store() -> None:
    """Replaces the agents' store; every rank calls it once, the first one serves.

    Raises:
        ValueError: the first rank has not said where to meet.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host = os.environ["MASTER_ADDR"]
    agents = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False)
    if os.environ["RANK"] == "0":
        # torch finds it in this process when it is told to serve one at this port.
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)
        _served.append(store)
        agents.set(KEY, str(store.port))
        port = store.port
    else:
        port = _found(agents, host)
    os.environ["MASTER_PORT"] = str(port)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def _found(agents: TCPStore, host: str) -> int:
    # The first word may be that of a first rank that has died: nobody listens there.
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
