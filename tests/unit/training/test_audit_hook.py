"""After `refuse_network`, a process cannot reach another host; local connections work."""

import subprocess
import sys
import textwrap

import pytest


def run_without_network(attempt):
    """Run `attempt` after `refuse_network` in a new process, because `refuse_network` cannot be undone."""
    program = "import socket, urllib.request\nfrom trainer.sandbox.audit_hook import refuse_network\nrefuse_network()\n"
    return subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(attempt)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.getaddrinfo('example.org', 443)",
        "socket.getaddrinfo(b'example.org', 443)",
        "socket.create_connection(('192.0.2.1', 80), 5)",
        "socket.socket().connect(('192.0.2.1', 80))",
        "socket.gethostbyname('example.org')",
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    ],
)
def test_connection_to_other_host_is_refused(attempt):
    result = run_without_network(attempt)

    assert "ConnectionError: the training process has no network" in result.stderr


def test_download_raises_os_error():
    result = run_without_network(
        """
        import urllib.error
        try:
            urllib.request.urlopen("https://example.org/yolo26n.pt")
        except OSError as error:
            print("failed", error)
        """,
    )

    assert result.stdout.startswith("failed"), result.stderr


def test_download_of_missing_amp_weights_fails_at_once(tmp_path, monkeypatch):
    """After this failure, Ultralytics skips the AMP check and keeps AMP on.

    If packets were dropped instead, the failure would take 155 s.
    """
    monkeypatch.setenv("YOLO_OFFLINE", "1")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    result = run_without_network(
        f"""
        import time
        from ultralytics import YOLO
        began = time.monotonic()
        try:
            YOLO({str(tmp_path / "yolo26n.pt")!r})
        except ConnectionError:
            print("missed" if time.monotonic() - began < 2 else "missed late")
        """,
    )

    assert result.stdout.splitlines()[-1:] == ["missed"], result.stderr


def test_loopback_and_unix_sockets_are_allowed():
    result = run_without_network(
        """
        import os, tempfile
        server = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(server.getsockname()).close()
        socket.getaddrinfo("localhost", 80)
        socket.getaddrinfo(None, 80)
        path = os.path.join(tempfile.mkdtemp(), "s")
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(path)
        unix.listen()
        socket.socket(socket.AF_UNIX).connect(path)
        print("reached")
        """,
    )

    assert result.stdout == "reached\n", result.stderr
