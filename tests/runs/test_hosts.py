"""Two hosts on one machine: network namespaces joined by a pair of virtual interfaces."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import test_faults
from agents import Node, until
from pool import free_port
from progress import fence, where
from test_faults import assert_unharmed, starts

from counterpoint.train.checkpointing.checkpoint import newest, step_of

pytestmark = pytest.mark.soak
written, whole = test_faults.written, test_faults.whole


@dataclass
class Host:
    """A machine of its own, as far as the network goes."""

    name: str | None
    address: str
    interface: str

    def plug(self, state: str) -> None:
        """Connects ("up") or cuts off ("down")."""
        if self.name is not None:
            ip("-n", self.name, "link", "set", self.interface, state)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(params=["namespaces", "agents"])
def hosts(request):
    """Two hosts; or, where namespaces may not be made, this one twice."""
    if request.param == "agents":
        yield [Host(None, "127.0.0.1", "lo")] * 2
        return
    names = [f"cp{os.getpid() % 10000}h{i}" for i in range(2)]
    found = [Host(name, f"10.77.9.{i + 1}", f"veth{i}") for i, name in enumerate(names)]
    try:
        for name in names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces need root and `ip`")
    try:
        second = ["peer", "name", "veth1", "netns", names[1]]
        ip("link", "add", "name", "veth0", "netns", names[0], "type", "veth", *second)
        for host in found:
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            ip("-n", host.name, "link", "set", "lo", "up")
            host.plug("up")
        yield found
    finally:
        for name in names:
            ip("netns", "del", name)


def start(hosts: list[Host], number: int, arguments: list[str], log: Path, port: int) -> Node:
    host = hosts[number]
    return Node(
        ["fit", *arguments],
        log,
        host.name,
        min_nodes=2,
        max_nodes=2,
        rdzv_endpoint=f"{hosts[0].address}:{port}",
        rdzv_configs={"is_host": number == 0, "keep_alive_interval": 2, "timeout": 300},
        local_addr=host.address,
        environment={
            "GLOO_SOCKET_IFNAME": host.interface,
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # docs/clusters.md
        },
    )


def test_a_node_is_lost_and_returns(hosts, written, whole, tmp_path):
    arguments = [*written(tmp_path), "--watch.timeout=60"]
    fence(tmp_path / "at", 20)
    port = free_port()
    logs = [tmp_path / "log0", tmp_path / "log1"]
    nodes = [start(hosts, i, arguments, logs[i], port) for i in range(2)]
    until(lambda: (at := where(tmp_path / "at", 1)) and at[1] >= 15, nodes[0])
    # No word of farewell reaches the other host.
    hosts[1].plug("down")
    nodes[1].lose()
    if hosts[1].name is not None:
        until(lambda: f"rank 1 ({hosts[1].name}) hangs" in nodes[0].text(), nodes[0])
    reached = step_of(newest(tmp_path / "run"))
    fence(tmp_path / "at", None)
    hosts[1].plug("up")
    nodes[1] = start(hosts, 1, arguments, logs[1], port)
    assert [node.wait() for node in nodes] == [0, 0], [node.text()[-3000:] for node in nodes]
    assert reached > 0 and reached in starts(tmp_path / "run")
    assert_unharmed(tmp_path / "run", whole)
