"""The hosts and addresses that `GuardedClient` contacts."""

import socket
import threading

import pytest

from tests.web_server import body, web_server
from trainer.core.errors import DatasetError, Unavailable
from trainer.core.stop import StopSignal


def test_connection_goes_to_address_that_was_checked(server, make_client, tmp_path):
    asked = []

    def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"]

    server.pages["/a"] = body(b"hello")
    name = f"data.example:{server.port}"
    client = make_client(allowed_hosts=[name], resolve=resolve)
    client.download(f"http://{name}/a", tmp_path / "a", StopSignal())
    assert asked == ["data.example"]  # the host is resolved once, so the address cannot change after the check
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


def test_own_hosts_are_allowed_in_addition_to_allowed_hosts(server, make_client, tmp_path):
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
def test_own_host_can_have_private_address_at_its_port(make_client, tmp_path, monkeypatch, own, url, is_ours):
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


def test_proxy_environment_variables_are_ignored(server, client, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.pages["/a"] = body(b"direct")
    assert client.download(server.url("/a"), tmp_path / "a", StopSignal()).bytes == 6


def test_spaces_and_accents_in_path_are_sent_encoded(server, client, tmp_path):
    server.pages["/a%20b/%C3%A9.yaml"] = body(b"ok")
    assert client.download(server.url("/a b/é.yaml"), tmp_path / "a", StopSignal()).bytes == 2


def test_40_threads_can_download_with_one_client(make_client, tmp_path):
    # many threads share one connection pool, as in a download of thousands of images
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
