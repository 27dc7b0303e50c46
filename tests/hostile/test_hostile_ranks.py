"""The network of a training on several GPUs. The row chooses the number of GPUs, so the row could choose the network."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.process.sandbox_host import needs_landlock, order_for, reading, sandbox_host
from trainer.training.wire import encode_order

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
    code = """
import os, sys
from trainer.training.child.access_policy import confine
from trainer.training.wire import decode_command
print(confine(decode_command(sys.stdin.buffer.readline()), os.environ))
"""
    found = [
        subprocess.run(
            [sys.executable, "-c", code], input=encode_order(order_for(host.root, devices=devices)),
            env=host.environment, stdout=subprocess.PIPE, check=True,
        ).stdout
        for devices in ((0, 1), (0,))
    ]  # fmt: skip

    assert found == [b"['network of several GPUs (user namespaces are forbidden)']\n", b"[]\n"]
