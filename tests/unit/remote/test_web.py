import hashlib
import socket
import threading
import time

import pytest

from tests.web_server import body, endless, in_turn, raw, redirect, silent, web_server
from trainer.core.errors import DatasetError, ObjectMissing, Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.remote.web import GuardedClient

QUICK = RetryPolicy(tries=2, first_wait=0.01, longest_wait=0.02, total_seconds=5)


@pytest.fixture
def server():
    with web_server() as started:
        yield started


@pytest.fixture
def make_client():
    clients = []

    def make(**options):
        clients.append(GuardedClient(**{"policy": QUICK, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(server, make_client):
    return make_client(allowed_hosts=[server.host])


def test_body_arrives_with_its_size_digest_etag_and_type(server, client, tmp_path):
    server.pages["/a.yaml"] = body(b"names: [a]", 'ETag: "v1"', "Content-Type: text/yaml")
    got = client.download(server.url("/a.yaml"), tmp_path / "a", StopSignal())
    assert (tmp_path / "a").read_bytes() == b"names: [a]"
    assert (got.bytes, got.sha256) == (10, hashlib.sha256(b"names: [a]").hexdigest())
    assert (got.etag, got.content_type, got.url) == ('"v1"', "text/yaml", server.url("/a.yaml"))


def test_reported_bytes_are_taken_back_after_failed_try(server, client, tmp_path):
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


def test_weak_etag_identifies_nothing(server, client, tmp_path):
    server.pages["/a"] = body(b"x", 'ETag: W/"v1"')
    got = client.download(server.url("/a"), tmp_path / "a", StopSignal(), is_known=lambda *_: True)
    assert (got.etag, got.bytes) == ("", 1)


def test_content_length_is_reported_before_body(server, client, tmp_path):
    server.pages["/a"] = body(b"x" * 7)
    lengths = []
    client.download(server.url("/a"), tmp_path / "a", StopSignal(), on_length=lengths.append)
    assert lengths == [7]


def test_redirects_are_followed_to_end(server, client, tmp_path):
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
def test_failing_server_is_retried_and_then_unavailable(server, client, tmp_path, status):
    server.pages["/a"] = body(b"no", status=status)
    with pytest.raises(Unavailable, match=status[:3]):
        client.download(server.url("/a"), tmp_path / "a", StopSignal())
    assert len(server.asked) == 2


def test_recovered_server_is_not_an_error(server, client, tmp_path):
    server.pages["/a"] = in_turn(body(b"", status="503 Busy"), body(b"fine"))
    assert client.download(server.url("/a"), tmp_path / "a", StopSignal()).bytes == 4


def test_no_message_contains_secrets_of_url(server, client, tmp_path):
    server.pages["/a"] = body(b"", status="403 Forbidden")
    for url in (server.url("/a?token=SECRET#SECRET"), f"http://SECRET:SECRET@{server.host}/a"):
        with pytest.raises(DatasetError) as caught:
            client.download(url, tmp_path / "a", StopSignal())
        assert "SECRET" not in str(caught.value)


def test_endless_body_is_cut_at_limit(server, make_client, tmp_path):
    server.pages["/a"] = endless
    client = make_client(allowed_hosts=[server.host], max_bytes=1 << 20)
    with pytest.raises(DatasetError, match="larger than 1,048,576 bytes"):
        client.download(server.url("/a"), tmp_path / "a", StopSignal())
    assert list(tmp_path.iterdir()) == []


def test_content_length_over_limit_is_rejected_before_reading(server, client, tmp_path):
    server.pages["/a"] = body(b"x" * 1000)
    with pytest.raises(DatasetError, match="larger than 10 bytes"):
        client.download(server.url("/a"), tmp_path / "a", StopSignal(), max_bytes=10)


def test_slow_body_ends_at_time_limit(server, make_client, tmp_path):
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


def test_call_may_have_less_time_than_client(server, make_client, tmp_path):
    server.pages["/a"] = silent
    client = make_client(allowed_hosts=[server.host], policy=RetryPolicy(tries=1))
    began = time.monotonic()
    with pytest.raises(Unavailable, match="the time allowed is over"):
        client.download(server.url("/a"), tmp_path / "a", StopSignal(), max_seconds=0.3)
    assert time.monotonic() - began < 15


def test_slow_headers_end_at_time_limit(server, make_client, tmp_path):
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
def test_stop_ends_download_at_once(server, client, tmp_path, page):
    server.pages["/a"] = page
    stop = StopSignal()
    threading.Timer(0.2, stop.set, [StopReason.CANCELED]).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        client.download(server.url("/a"), tmp_path / "a", stop)
    assert time.monotonic() - began < 2
    assert list(tmp_path.iterdir()) == []


def test_connection_goes_to_address_that_was_checked(server, make_client, tmp_path):
    asked = []

    def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"]

    server.pages["/a"] = body(b"hello")
    name = f"data.example:{server.port}"
    client = make_client(allowed_hosts=[name], resolve=resolve)
    client.download(f"http://{name}/a", tmp_path / "a", StopSignal())
    assert asked == ["data.example"]  # resolved once, so the address cannot change after the check
    assert server.hosts == [name]


def test_second_address_is_tried_when_first_does_not_answer(server, make_client, tmp_path):
    server.pages["/a"] = body(b"hello")
    client = make_client(allowed_hosts=[f"two.example:{server.port}"], resolve=lambda *_: ["127.0.0.2", "127.0.0.1"])
    assert client.download(f"http://two.example:{server.port}/a", tmp_path / "a", StopSignal()).bytes == 5


def test_allowed_host_without_port_must_have_public_address(server, make_client, tmp_path):
    client = make_client(allowed_hosts=["data.example"], resolve=lambda *_: ["127.0.0.1"])
    with pytest.raises(DatasetError, match="inside a private network"):
        client.download(f"http://data.example:{server.port}/a", tmp_path / "a", StopSignal())
    assert server.asked == []


def test_own_host_is_allowed_in_addition_to_list(server, make_client, tmp_path):
    server.pages["/a"] = body(b"hello")
    client = make_client(allowed_hosts=["data.example"], own_hosts=[server.host])
    assert client.download(server.url("/a"), tmp_path / "a", StopSignal()).bytes == 5
    with pytest.raises(DatasetError, match="ALLOWED_DATASET_HOSTS"):
        client.download("http://other.example/a", tmp_path / "b", StopSignal())


@pytest.mark.parametrize(
    ("own", "url", "is_ours"),
    [
        ("Supabase.local", "http://supabase.local/x", True),
        ("supabase.local", "https://supabase.local/x", True),
        ("supabase.local", "http://supabase.local:22/x", False),
        ("supabase.local:8000", "http://supabase.local:8000/x", True),
        ("supabase.local:8000", "http://supabase.local/x", False),
        ("[fd00::1]:8000", "http://[fd00::1]:8000/x", True),
    ],
)
def test_own_host_may_be_private_at_its_port(make_client, tmp_path, monkeypatch, own, url, is_ours):
    def contacted(self, host, *_, **__):
        raise ConnectionAbortedError(host)

    monkeypatch.setattr("httpcore.SyncBackend.connect_tcp", contacted)
    client = make_client(own_hosts=[own], resolve=lambda *_: ["fd00::1"])
    with pytest.raises(ConnectionAbortedError if is_ours else DatasetError):
        client.download(url, tmp_path / "a", StopSignal())


def test_only_temporary_dns_failures_are_retried(make_client, tmp_path):
    calls = []

    def failing(code):
        def resolve(host, port):
            calls.append(host)
            raise socket.gaierror(code, "no")

        return resolve

    with pytest.raises(Unavailable, match="resolved now"):
        make_client(resolve=failing(socket.EAI_AGAIN)).download("http://a.example/", tmp_path / "a", StopSignal())
    assert len(calls) == 2
    with pytest.raises(DatasetError, match="does not exist"):
        make_client(resolve=failing(socket.EAI_NONAME)).download("http://a.example/", tmp_path / "a", StopSignal())
    assert len(calls) == 3


def test_proxies_of_environment_are_not_used(server, client, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.pages["/a"] = body(b"direct")
    assert client.download(server.url("/a"), tmp_path / "a", StopSignal()).bytes == 6


def test_spaces_and_accents_in_path_are_sent_encoded(server, client, tmp_path):
    server.pages["/a%20b/%C3%A9.yaml"] = body(b"ok")
    assert client.download(server.url("/a b/é.yaml"), tmp_path / "a", StopSignal()).bytes == 2


def test_connections_are_reused_for_same_host(make_client, tmp_path):
    # many threads, one pool: as during an export of thousands of images
    with web_server() as server:
        for number in range(40):
            server.pages[f"/{number}"] = body(b"x" * number)
        client = make_client(allowed_hosts=[server.host])

        def get(number):
            assert client.download(server.url(f"/{number}"), tmp_path / str(number), StopSignal()).bytes == number

        threads = [threading.Thread(target=get, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(p.stat().st_size for p in tmp_path.iterdir()) == list(range(40))
