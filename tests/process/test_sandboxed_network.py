"""The sockets and processes that a process in the sandbox can reach, on the real kernel."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.process.sandbox_host import LANDLOCK, PROJECT, needs_landlock

pytestmark = needs_landlock


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


CONNECT = "import socket; socket.create_connection(('127.0.0.1', {0}), 5).close()"


def test_network_is_closed_even_to_this_host(host, listener):
    ring = "import ctypes; c = ctypes.CDLL(None, use_errno=True); c.syscall(425, 1, (ctypes.c_char * 120)()); "
    ring += "raise OSError(ctypes.get_errno(), 'io_uring')"
    snippets = [
        CONNECT.format(listener.getsockname()[1]),
        "import socket; socket.create_server(('127.0.0.1', 0)).close()",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()",
        "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()",
        # io_uring could open a connection without the blocked system calls
        ring,
    ]

    assert host.results_of(snippets) == {"PermissionError"}


def test_network_is_closed_for_existing_threads(tmp_path, listener):
    code = f"""
import threading, socket
from trainer.sandbox.seccomp import Sockets, restrict_system_calls
go, done = threading.Event(), []
def connect():
    go.wait()
    try:
        {CONNECT.format(listener.getsockname()[1]).partition("; ")[2]}
    except PermissionError:
        done.append("refused")
thread = threading.Thread(target=connect); thread.start()
restrict_system_calls(Sockets()); go.set(); thread.join(); print(done)
"""
    results = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)

    assert results.stdout == "['refused']\n"


def test_run_can_use_pairs_and_routes(host):
    code = "import socket; a, b = socket.socketpair(); a.sendall(b'x'); "
    code += "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET); socket.if_nameindex(); "
    code += "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()"

    assert host.results_of([code]) == {"done"}


@pytest.mark.skipif(LANDLOCK < 6, reason="Landlock restricts signals since version 6")
def test_other_processes_cannot_be_signaled(host):
    own = "import subprocess; p = subprocess.Popen(['sleep', '60']); p.kill(); p.wait()"
    results = host.execute("import os; os.kill(os.getppid(), 0)", own)["results"]

    assert list(results.values()) == ["PermissionError", "done"]
