"""Downloads from a trusted URL."""

import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from trainer.core.errors import BadRequest, ObjectMissing, Unavailable
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.remote.download import download


@contextmanager
def answering(reply: bytes, *, hold: float = 0.0):
    """Run a server that sends `reply` to one connection and closes it after `hold` seconds or when the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    released = threading.Event()

    def serve() -> None:
        with suppress(OSError):  # no client connected, or the client closed the connection early
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)
                released.wait(hold)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/weights.pt"
    finally:
        released.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # this ends `accept` in the thread
        thread.join()
        listener.close()


def ok(body: bytes, length: int | None = None) -> bytes:
    declared = b"" if length is None else b"Content-Length: %d\r\n" % length
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + declared + b"\r\n" + body


def test_file_is_downloaded_unchanged(tmp_path):
    body = bytes(range(256)) * 5000
    with answering(ok(body, len(body))) as url:
        download(url, tmp_path / "a", StopSignal(), largest=1 << 30)
    assert (tmp_path / "a").read_bytes() == body


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        (ok(b"half", 8), Unavailable, "the download of weights.pt was interrupted"),
        (b"", Unavailable, "was interrupted"),
        (b"SSH-2.0-OpenSSH\r\n", Unavailable, "was interrupted"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", Unavailable, "answers 500"),
        (b"HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n", Unavailable, "answers 429"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", ObjectMissing, "answers 404"),
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", Unavailable, "answers 403"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: ftp://elsewhere/\r\nContent-Length: 0\r\n\r\n",
            Unavailable,
            "was interrupted",
        ),
        (ok(b"x" * 2000), BadRequest, "larger than 1000 bytes"),
        (ok(b"x" * 2000, 2000), BadRequest, "larger than 1000 bytes"),
    ],
)
def test_every_failed_download_raises_error_with_reason(tmp_path, reply, error, message):
    with answering(reply) as url, pytest.raises(error, match=message):
        download(url, tmp_path / "a", StopSignal(), largest=1000)


def test_connection_error_names_host(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unavailable, match=r"no connection to 127\.0\.0\.1"):
        download(f"http://127.0.0.1:{port}/weights.pt", tmp_path / "a", StopSignal(), largest=1000)


def test_stop_ends_wait_for_silent_server(tmp_path):
    stop = StopSignal()
    timer = threading.Timer(0.1, stop.set, (StopReason.SHUTDOWN,))
    started = time.monotonic()
    with answering(ok(b"x", 100), hold=20) as url:
        timer.start()
        with pytest.raises(Stopped):
            download(url, tmp_path / "a", stop, largest=1000)
    timer.join()
    assert time.monotonic() - started < 3
