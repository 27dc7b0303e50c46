"""One time limit for a whole call to a slow server: connection, TLS, response headers, body.

The servers use real sockets. Each byte arrives before the read timeout.
"""

import contextlib
import socket
import threading
import time

import pytest

from trainer.core.errors import Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.remote import web
from trainer.remote.clock import clock_skew
from trainer.remote.download import download
from trainer.remote.stoppable import stoppable, within
from trainer.remote.storage_api import HttpTimes, StorageApi, Target
from trainer.remote.supabase import CallLimits, Project
from trainer.remote.web import GuardedClient

EVERY = 0.2  # seconds between two bytes
TOTAL = 1.0  # time limit of a call, in seconds
SLACK = 1.0  # seconds that a call may take beyond its limit on a busy host
HEAD = b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 10_000 + b"\r\n"
BODY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10000\r\n\r\n"
# an incomplete TLS handshake record: its header announces 16,384 bytes, and fewer bytes follow
TLS = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" + b"\x00" * 16_000


class DrippingServer:
    """A server that sends `at_once` immediately, and then `dripped` slowly, one byte at a time."""

    def __init__(self, at_once=b"", dripped=b"", *, reads=True):
        self.at_once, self.dripped, self.reads = at_once, dripped, reads
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                self.threads.append(threading.Thread(target=self.answer, args=(connection,), daemon=True))
                self.threads[-1].start()

    def answer(self, connection):
        with connection, contextlib.suppress(OSError):
            if self.reads:
                connection.recv(65536)
            connection.sendall(self.at_once)
            for n in range(len(self.dripped)):
                if self.over.wait(EVERY):
                    return
                connection.sendall(self.dripped[n : n + 1])
            while not self.over.wait(EVERY) and not self.reads:
                connection.recv(1)  # the server reads a large request slowly, one byte at a time

    def close(self):
        self.over.set()
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for thread in self.threads:
            thread.join(5)


@pytest.fixture
def dripping():
    servers = []

    def start(*args, **options):
        servers.append(DrippingServer(*args, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@contextlib.contextmanager
def ends_in_time(seconds=TOTAL):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds + SLACK


CASES = {"head": ("http", b"", HEAD), "body": ("http", BODY, b"x" * 10_000), "tls": ("https", b"", TLS)}


@pytest.mark.parametrize("case", CASES)
def test_database_call_ends_at_time_limit(dripping, case):
    scheme, at_once, dripped = CASES[case]
    url = f"{scheme}://127.0.0.1:{dripping(at_once, dripped).port}"
    with Project(url, "sb_secret_x", CallLimits(connect=30, read=0.9, total=TOTAL)) as project:
        with ends_in_time(), pytest.raises(Unavailable):
            project.call("claim_training_run")
        with ends_in_time(), pytest.raises(Unavailable):
            project.rows(project.table("training_runs").select("id"))


@pytest.mark.parametrize("case", CASES)
def test_storage_api_call_ends_at_time_limit(dripping, case):
    scheme, at_once, dripped = CASES[case]
    times = HttpTimes(connect=30, read=0.9, total=TOTAL, stored=0.9)
    api = StorageApi(f"{scheme}://127.0.0.1:{dripping(at_once, dripped).port}", "key", times=times)
    with contextlib.closing(api):
        with ends_in_time(), pytest.raises(Unavailable):
            api.call("GET", "/bucket/b", Target(bucket="b"))
        with ends_in_time(TOTAL + 0.9), pytest.raises(Unavailable):
            api.call("POST", "/object/b/k", Target(bucket="b"), headers={"Content-Length": "1"}, content=iter([b"x"]))


@pytest.mark.parametrize("case", ["head", "tls"])
def test_download_without_first_byte_ends_at_time_limit(dripping, case):
    scheme, at_once, dripped = CASES[case]
    times = HttpTimes(connect=30, read=0.9, total=TOTAL)
    api = StorageApi(f"{scheme}://127.0.0.1:{dripping(at_once, dripped).port}", "key", times=times)
    with contextlib.closing(api), ends_in_time(), pytest.raises(Unavailable), api.stream("GET", "/object/b/k"):
        pass


def test_slow_download_ends_at_time_limit_for_its_size(dripping, monkeypatch):
    # 10,000 bytes per second, so a body of 10,000 bytes has one more second
    monkeypatch.setattr("trainer.remote.storage_api.SLOWEST", 10_000)
    api = StorageApi(
        f"http://127.0.0.1:{dripping(BODY, b'x' * 10_000).port}", "key", times=HttpTimes(read=0.9, total=TOTAL)
    )
    with contextlib.closing(api), ends_in_time(TOTAL + 1), pytest.raises(Unavailable):  # noqa: SIM117
        with api.stream("GET", "/object/b/k") as response:
            api.read(response)


def test_slow_upload_ends_at_time_limit(dripping, monkeypatch):
    monkeypatch.setattr("trainer.remote.storage_api.SLOWEST", 100_000_000)
    server = dripping(reads=False)
    api = StorageApi(f"http://127.0.0.1:{server.port}", "key", times=HttpTimes(write=0.9, total=TOTAL, stored=0.0))
    content = (b"x" * 65536 for _ in range(800))
    with contextlib.closing(api), ends_in_time(TOTAL + 0.6), pytest.raises(Unavailable):
        api.call(
            "POST", "/object/b/k", Target(bucket="b"), headers={"Content-Length": str(65536 * 800)}, content=content
        )


def test_dataset_download_with_slow_headers_ends_at_time_limit(dripping, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "HEAD_SECONDS", TOTAL)
    server = dripping(b"", HEAD)
    client = GuardedClient(allowed_hosts=[f"127.0.0.1:{server.port}"], policy=RetryPolicy(tries=1))
    with contextlib.closing(client), ends_in_time(), pytest.raises(Unavailable):
        client.download(f"http://127.0.0.1:{server.port}/a.zip", tmp_path / "a.zip", StopSignal())


def test_weights_download_with_slow_headers_ends_at_time_limit(dripping, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.remote.download.HEAD_SECONDS", TOTAL)
    url = f"http://127.0.0.1:{dripping(b'', HEAD).port}/yolo11n.pt"
    with ends_in_time(), pytest.raises(Unavailable):
        download(url, tmp_path / "yolo11n.pt", StopSignal(), largest=1000)


def test_clock_request_ends_at_time_limit(dripping, monkeypatch):
    monkeypatch.setattr("trainer.remote.clock.SECONDS", TOTAL)
    with ends_in_time(), pytest.raises(Unavailable):
        clock_skew(f"http://127.0.0.1:{dripping(b'', HEAD).port}")


def test_stop_ends_call_before_its_time_limit(dripping):
    api = StorageApi(f"http://127.0.0.1:{dripping(b'', HEAD).port}", "key", times=HttpTimes())
    stop = StopSignal()
    timer = threading.Timer(0.3, stop.set, [StopReason.CANCELED])
    timer.start()
    with contextlib.closing(api), ends_in_time(0.5), pytest.raises(Stopped), stoppable(stop):
        api.call("GET", "/bucket/b", Target(bucket="b"))
    timer.join()


def test_each_call_has_its_own_time_limit(dripping):
    """The time limit of a call never extends the limit of the `within` block around it."""
    server = dripping(BODY[:-4].replace(b"10000", b"2") + b"\r\n\r\n[]")
    with Project(f"http://127.0.0.1:{server.port}", "sb_secret_x", CallLimits(total=0.5)) as project:
        assert project.call("a") == []
        time.sleep(0.6)
        assert project.call("a") == []
        with within(-1), pytest.raises(Unavailable):
            project.call("a")
        assert project.call("a") == []


def test_call_to_host_with_many_unresponsive_addresses_ends_at_time_limit(monkeypatch):
    """The connect timeout limits the wait for each address, and the time limit of the call limits all waits."""
    blocked = socket.create_server(("0.0.0.0", 0), backlog=0)
    port = blocked.getsockname()[1]
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:  # a full backlog: further connections are neither accepted nor refused
        filler.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            filler.connect(("127.0.0.1", port))
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in range(1, 11)]
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **o: addresses if host == "dead.example" else resolve(host, *a, **o)
    )
    project = Project(f"http://dead.example:{port}", "sb_secret_x", CallLimits(connect=0.9, total=TOTAL))
    with project, ends_in_time(), pytest.raises(Unavailable, match="no connection within the time limit"):
        project.call("a")
    for each in (*fillers, blocked):
        each.close()
