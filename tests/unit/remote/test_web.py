"""Downloads with `GuardedClient`: content, limits, retries and stops."""

import hashlib
import threading
import time

import pytest

from tests.web_server import body, endless, in_turn, raw, redirect, silent
from trainer.core.errors import DatasetError, ObjectMissing, Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import Stopped, StopReason, StopSignal


def test_download_returns_size_checksum_etag_and_content_type(server, client, tmp_path):
    server.pages["/a.yaml"] = body(b"names: [a]", 'ETag: "v1"', "Content-Type: text/yaml")
    got = client.download(server.url("/a.yaml"), tmp_path / "a", StopSignal())
    assert (tmp_path / "a").read_bytes() == b"names: [a]"
    assert (got.bytes, got.sha256) == (10, hashlib.sha256(b"names: [a]").hexdigest())
    assert (got.etag, got.content_type, got.url) == ('"v1"', "text/yaml", server.url("/a.yaml"))


def test_reported_bytes_are_subtracted_after_failed_try(server, client, tmp_path):
    cut = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 40)
    server.pages["/a"] = in_turn(cut, body(b"y" * 100))
    moved = []
    client.download(server.url("/a"), tmp_path / "a", StopSignal(), on_bytes=moved.append)
    assert sum(moved) == 100
    assert -40 in moved
    assert (tmp_path / "a").read_bytes() == b"y" * 100


def test_content_with_known_etag_is_not_downloaded(server, client, tmp_path):
    server.pages["/a"] = body(b"x" * 50, 'ETag: "v1"')
    seen = []
    got = client.download(
        server.url("/a?token=1"),
        tmp_path / "a",
        StopSignal(),
        is_known=lambda *known: seen.append(known) or True,
    )
    assert seen == [(server.url("/a?token=1"), '"v1"', 50)]
    assert got.sha256 == ""
    assert not (tmp_path / "a").exists()


def test_weak_etag_is_ignored(server, client, tmp_path):
    server.pages["/a"] = body(b"x", 'ETag: W/"v1"')
    got = client.download(server.url("/a"), tmp_path / "a", StopSignal(), is_known=lambda *_: True)
    assert (got.etag, got.bytes) == ("", 1)


def test_content_length_is_reported_before_body(server, client, tmp_path):
    server.pages["/a"] = body(b"x" * 7)
    lengths = []
    client.download(server.url("/a"), tmp_path / "a", StopSignal(), on_length=lengths.append)
    assert lengths == [7]


def test_two_redirects_in_a_row_are_followed(server, client, tmp_path):
    server.pages["/a"] = redirect("/b")
    server.pages["/b"] = redirect(server.url("/c"), "308 Permanent Redirect")
    server.pages["/c"] = body(b"there")
    got = client.download(server.url("/a"), tmp_path / "a", StopSignal())
    assert got.url == server.url("/c")


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        ("401 Unauthorized", DatasetError, "401: the URL needs a login; use a signed URL"),
        ("403 Forbidden", DatasetError, "403: access is denied"),
        ("404 Not Found", ObjectMissing, "404: the file does not exist; check the URL"),
        ("410 Gone", ObjectMissing, "410"),
        ("418 Teapot", DatasetError, "418"),
        ("206 Partial Content", DatasetError, "206"),
    ],
)
def test_rejection_has_status_and_advice_and_is_not_retried(server, client, tmp_path, status, kind, words):
    server.pages["/a"] = body(b"no", status=status)
    with pytest.raises(kind, match=words):
        client.download(server.url("/a?token=secret"), tmp_path / "a", StopSignal())
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", ["500 Oops", "503 Busy", "429 Slow Down"])
def test_download_is_retried_and_then_raises_unavailable(server, client, tmp_path, status):
    server.pages["/a"] = body(b"no", status=status)
    with pytest.raises(Unavailable, match=status[:3]):
        client.download(server.url("/a"), tmp_path / "a", StopSignal())
    assert len(server.asked) == 2


def test_download_succeeds_after_server_recovers(server, client, tmp_path):
    server.pages["/a"] = in_turn(body(b"", status="503 Busy"), body(b"fine"))
    assert client.download(server.url("/a"), tmp_path / "a", StopSignal()).bytes == 4


def test_error_contains_no_secret_of_url(server, client, tmp_path):
    server.pages["/a"] = body(b"", status="403 Forbidden")
    for url in (server.url("/a?token=SECRET#SECRET"), f"http://SECRET:SECRET@{server.host}/a"):
        with pytest.raises(DatasetError) as caught:
            client.download(url, tmp_path / "a", StopSignal())
        assert "SECRET" not in str(caught.value)


def test_endless_body_is_rejected_at_size_limit(server, make_client, tmp_path):
    server.pages["/a"] = endless
    client = make_client(allowed_hosts=[server.host], max_bytes=1 << 20)
    with pytest.raises(DatasetError, match="larger than 1,048,576 bytes"):
        client.download(server.url("/a"), tmp_path / "a", StopSignal())
    assert list(tmp_path.iterdir()) == []


def test_content_length_over_limit_is_rejected_before_reading(server, client, tmp_path):
    server.pages["/a"] = body(b"x" * 1000)
    with pytest.raises(DatasetError, match="larger than 10 bytes"):
        client.download(server.url("/a"), tmp_path / "a", StopSignal(), max_bytes=10)


def test_download_with_slow_body_ends_at_time_limit(server, make_client, tmp_path):
    def drip(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    server.pages["/a"] = drip
    client = make_client(allowed_hosts=[server.host], max_seconds=0.4, policy=RetryPolicy(tries=1))
    began = time.monotonic()
    with pytest.raises((DatasetError, Unavailable)):
        client.download(server.url("/a"), tmp_path / "a", StopSignal())
    assert time.monotonic() - began < 15


def test_call_can_have_shorter_time_limit_than_client(server, make_client, tmp_path):
    server.pages["/a"] = silent
    client = make_client(allowed_hosts=[server.host], policy=RetryPolicy(tries=1))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="the time limit of the call is exceeded"):
        client.download(server.url("/a"), tmp_path / "a", StopSignal(), max_seconds=0.3)
    assert time.monotonic() - began < 15


def test_download_with_slow_headers_ends_at_time_limit(server, make_client, tmp_path):
    def drip(connection, _):
        connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    server.pages["/a"] = drip
    client = make_client(allowed_hosts=[server.host], max_seconds=0.4, policy=RetryPolicy(tries=1))
    began = time.monotonic()
    with pytest.raises(Unavailable):
        client.download(server.url("/a"), tmp_path / "a", StopSignal())
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("page", [silent, endless])
def test_stop_ends_download_immediately(server, client, tmp_path, page):
    server.pages["/a"] = page
    stop = StopSignal()
    threading.Timer(0.2, stop.set, [StopReason.CANCELED]).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        client.download(server.url("/a"), tmp_path / "a", stop)
    assert time.monotonic() - began < 2
    assert list(tmp_path.iterdir()) == []
