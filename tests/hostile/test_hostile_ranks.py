"""The network of a training on several GPUs. The row chooses the number of GPUs, so the row could choose the network."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests.process.sandbox_host import LANDLOCK, needs_landlock, order_for, reading, sandbox_host

pytestmark = needs_landlock

CONNECT = "import socket; socket.create_connection({peer!r}, 5)"
OWN_LOOPBACK = (
    "import socket; server = socket.create_server(('127.0.0.1', 0)); "
    "socket.create_connection(server.getsockname()); server.accept()"
)


@pytest.fixture
def host(tmp_path):
    return sandbox_host(tmp_path, tmp_path / "home")


@pytest.fixture
def service():
    """A service on the loopback interface of this host, which trusts every process of this host."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def test_ranks_reach_each_other_and_nobody_else(host, service):
    order = order_for(host.root, devices=(0, 1))
    abstract = "import socket; socket.socket(socket.AF_UNIX).connect('\\0service')"
    peers = [service.getsockname(), ("169.254.169.254", 80), ("192.0.2.1", 443)]
    snippets = [CONNECT.format(peer=peer) for peer in peers]
    results = host.execute(OWN_LOOPBACK, *snippets, abstract, reading(host.root / "queue.db"), order=order)

    assert results["missing"] == []
    assert results["results"].pop(OWN_LOOPBACK) == "done"
    assert set(results["results"].values()) == {"ConnectionRefusedError", "OSError", "PermissionError"}
    with pytest.raises(BlockingIOError):
        service.accept()


def test_missing_namespace_is_reported_for_several_ranks_only(host):
    reports = [
        host.execute(order=order_for(host.root, devices=devices), has_network=False) for devices in ((0, 1), (0,))
    ]

    assert [each["missing"] for each in reports] == [["network of several GPUs (user namespaces are forbidden)"], []]


@pytest.mark.skipif(LANDLOCK < 4, reason="Landlock restricts ports since version 4")
def test_ranks_without_namespace_reach_only_ephemeral_ports(host):
    """The ranks cannot choose the ports on which they listen, and services have lower ports."""
    order = order_for(host.root, devices=(0, 1))
    with low_port() as server:
        snippets = [
            OWN_LOOPBACK,
            CONNECT.format(peer=server.getsockname()),
            CONNECT.format(peer=("169.254.169.254", 80)),
        ]
        results = host.execute(*snippets, order=order, has_network=False)["results"]
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()

    assert list(results.values()) == ["done", "PermissionError", "PermissionError"]


def low_port():
    """Return a server on a free port below the ephemeral ports."""
    for port in range(20_000, 21_000):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    raise AssertionError("no free port")
