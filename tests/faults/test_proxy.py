"""The proxy causes the faults that other tests request."""

import os
import shutil
import socket
import threading
import time

import pytest

from tests.faults.proxy import Proxy


@pytest.fixture
def echo():
    """The port of an echo server."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        with connection:
            try:
                while piece := connection.recv(65536):
                    connection.sendall(piece)
            except OSError:
                return

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def proxy(echo):
    with Proxy("127.0.0.1", echo) as proxy:
        yield proxy


@pytest.fixture
def wire(proxy):
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as wire:
        wire.sendall(b"hello")
        assert wire.recv(100) == b"hello"
        yield wire


def dead(wire):
    try:
        return not wire.recv(100)
    except ConnectionError:
        return True


def silent(wire, seconds):
    wire.settimeout(seconds)
    try:
        return not wire.recv(100)
    except TimeoutError:
        return True
    finally:
        wire.settimeout(5)


def test_cut_resets_connections_and_refuses_new_ones(proxy, wire):
    proxy.cut()

    assert dead(wire)
    try:
        new = socket.create_connection(("127.0.0.1", proxy.port), timeout=5)
    except OSError:
        return
    with new:
        assert dead(new)


def test_frozen_proxy_delivers_after_restore(proxy, wire):
    proxy.freeze()
    wire.sendall(b"late")
    assert silent(wire, 0.2)

    proxy.restore()

    assert wire.recv(100) == b"late"


def test_slow_proxy_delays_each_piece(proxy, wire):
    proxy.slow(0.15)
    began = time.monotonic()
    wire.sendall(b"slow")

    assert wire.recv(100) == b"slow"
    assert time.monotonic() - began >= 0.3  # one delay in each direction


@pytest.mark.long
def test_lost_packets_are_sent_again(proxy, wire):
    if not shutil.which("nft") or os.geteuid():
        pytest.skip("losing packets needs root and nft")
    wire.settimeout(60)  # TCP doubles its retransmission timeout
    proxy.lose(30)
    began = time.monotonic()
    for _ in range(10):
        wire.sendall(b"again")
        assert wire.recv(100) == b"again"

    assert time.monotonic() - began > 0.2  # the minimum retransmission timeout of TCP


def test_cut_answer_resets_connection(proxy, wire):
    proxy.cut_answer(3)
    wire.sendall(b"an answer")

    assert wire.recv(100) == b"an "
    assert dead(wire)


def test_new_connection_passes_data_after_restore(proxy, wire):
    proxy.cut()
    proxy.restore()

    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as new:
        new.sendall(b"again")
        assert new.recv(100) == b"again"


def test_closed_proxy_leaves_no_thread(echo):
    before = threading.active_count()
    with Proxy("127.0.0.1", echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as wire:
        wire.sendall(b"x")
        proxy.freeze()
    deadline = time.monotonic() + 5
    while threading.active_count() > before + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before + 1  # the thread of the server can still be running
