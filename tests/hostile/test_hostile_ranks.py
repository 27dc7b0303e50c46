"""The network of a training on several GPUs. The row chooses the number of GPUs, so the row could choose the network."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.process import conftest as processes
from tests.process.sandbox_host import LANDLOCK, needs_landlock, order_for, reading, sandbox_host
from trainer.core.errors import HostUnfit
from trainer.sandbox import private_network
from trainer.training.child.access_policy import access_policy
from trainer.training.supervisor import process

pytestmark = needs_landlock
home, program, leak_check = processes.home, processes.program, processes.leak_check

CONNECT = "import socket; socket.create_connection({peer!r}, 5)"
OWN_LOOPBACK = (
    "import socket; server = socket.create_server(('127.0.0.1', 0)); "
    "socket.create_connection(server.getsockname()); server.accept()"
)

# TCP Fast Open: the connection is made by a function that sends, so a rule about `connect` does not apply
FAST_OPEN = "import socket; sender = socket.socket(); sender.{}"
SENDING = ("sendto(b'x', {flag}, {peer})", "sendmsg([b'x'], [], {flag}, {peer})")


@pytest.fixture
def host(tmp_path):
    return sandbox_host(tmp_path, tmp_path / "home")


@pytest.fixture
def service():
    """A service on the loopback interface of this host, which trusts every process of this host."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def test_ranks_reach_each_other_and_no_other_service(host, service):
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
            *(FAST_OPEN.format(how.format(flag=0x20000000, peer=server.getsockname())) for how in SENDING),
        ]
        results = host.execute(*snippets, order=order, has_network=False)["results"]
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()

    assert list(results.values()) == ["done", *(len(snippets) - 1) * ["PermissionError"]]


@pytest.mark.parametrize("devices", [(), (0,), (0, 1)])
def test_infiniband_adapters_are_not_allowed(host, monkeypatch, devices):
    listed = os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda path: ["infiniband", "nvidia0", "null"] if path == "/dev" else listed(path)
    )
    policy = access_policy(order_for(host.root, devices=devices), host.environment)
    allowed = {path for kind in (policy.write, policy.fill, policy.unlisted, policy.read, policy.run) for path in kind}

    assert Path("/dev/nvidia0") in allowed
    assert Path("/dev/infiniband") not in allowed
    assert Path("/dev") not in allowed


def low_port():
    """Return a server on a free port below the ephemeral ports."""
    for port in range(20_000, 21_000):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    raise AssertionError("no free port")


# starts a program in a network of its own on a host where a system call fails
FAILING = """
import runpy, sys
sys.path[:0] = [{programs!r}, {project!r}]
from refused_calls import refuse
refuse({number}, {error})
sys.argv[:1] = [{script!r}]
runpy.run_path({script!r}, run_name="__main__")
"""
UNSHARE = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
SOCKET = {"x86_64": 41, "aarch64": 198}[os.uname().machine]


@pytest.fixture
def training(program, monkeypatch):
    """Return a function that makes a training on several GPUs, on a host where a system call fails."""

    def make(setting, number, error):
        programs, project = str(processes.PROGRAMS), str(processes.PROGRAMS.parents[2])
        script = private_network.__file__
        code = FAILING.format(programs=programs, project=project, number=number, error=error, script=script)
        monkeypatch.setattr(process, "_IN_PRIVATE_NETWORK", (sys.executable, "-c", code))
        made = program("enters_sandbox").behave()
        made.trainer.sandbox = setting
        return made

    return make


@pytest.mark.parametrize(
    ("call", "error"),
    [(UNSHARE, errno.ENOSPC), (UNSHARE, errno.ENOMEM), (UNSHARE, errno.EAGAIN), (SOCKET, errno.EMFILE), (SOCKET, errno.ENFILE)],
)  # fmt: skip
def test_error_that_a_run_could_cause_does_not_open_the_network_of_the_host(training, leak_check, call, error):
    if error == errno.ENOSPC and private_network._has_no_namespaces():
        pytest.skip("this host forbids namespaces")
    made = training("auto", call, error)

    with pytest.raises(HostUnfit, match=os.strerror(error)):
        made.train(devices=(0, 1))

    assert made.events == []


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.EINVAL])
def test_host_without_namespaces_trains_with_warning_or_not_at_all(training, leak_check, error):
    made = training("auto", UNSHARE, error)

    assert made.train(devices=(0, 1)).report["sandbox"] == ["network of several GPUs (user namespaces are forbidden)"]
    assert [event.code for event in made.of("warning")] == ["unconfined"]
    with pytest.raises(HostUnfit, match="SANDBOX=required"):
        training("required", UNSHARE, error).train(devices=(0, 1))
