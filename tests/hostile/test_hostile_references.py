"""Hostile dataset references, addresses and responses: each is rejected in bounded time with a clear error."""

from __future__ import annotations

import gzip
import os

import pytest

from tests.hostile.references import SECRET, message_of, parse
from tests.web_server import body, endless, raw, redirect
from trainer.core.dataset import HttpRef
from trainer.core.errors import BadRequest, DatasetError, Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.remote.web import GuardedClient

pytestmark = pytest.mark.usefixtures("_time_limit")

# ── references ──

REFERENCES = {
    "empty text": "",
    "white space": " \t\n ",
    "NUL byte": "a\0b/data.yaml",
    "newline": "a\nb/data.yaml",
    "escape sequence": "\x1b]0;owned\x07data.yaml",
    "right-to-left override": "data\u202elmay.exe",
    "zero-width space": "da\u200bta.yaml",
    "line separator": "a\u2028b",
    "lone surrogate": "a\ud800b.yaml",
    "10,000 characters": "a" * 10_000,
    "10,000 folders": "a/" * 10_000,
    "file URL": "file:///etc/passwd",
    "file URL in capital letters": "FILE:///etc/passwd",
    "Gopher URL": "gopher://127.0.0.1:70/",
    "FTP URL": "ftp://example.org/data.zip",
    "data URL": "data:text/yaml,names: [a]",
    "S3 URL": "s3://bucket/data",
    "URL of Ultralytics HUB": "ul://user/datasets/x",
    "Google Storage URL": "gs://bucket/x",
    "path on a Windows drive": "C:\\data\\data.yaml",
    "home folder": "~/data.yaml",
    "home folder of another user": "~root/data.yaml",
    "absolute path outside": "/etc/passwd",
    "device": "/dev/zero",
    "file of a process in /proc": "/proc/self/environ",
    "path traversal": "../secret/data.yaml",
    "path traversal in the middle": "a/../../secret/data.yaml",
    "command-line option": "--config=/etc/passwd",
    "template expression": "{{7*7}}",
    "shell command": "$(touch /tmp/owned)",
    "storage without key": "storage:",
    "storage with only a slash": "storage:/",
    "storage with path traversal": "storage:../../secret/data.yaml",
    "storage with path traversal in the middle": "storage:p/../../secret/data.yaml",
    "storage with a dot as folder": "storage:p/./data.yaml",
    "storage with an empty folder name": "storage:p//data.yaml",
    "path traversal in URL of our storage": "https://abc.supabase.co/storage/v1/object/public/b/%2e%2e/%2e%2e/x",
    "control character in URL of our storage": "https://abc.supabase.co/storage/v1/object/public/b/a%0ab",
    "URL without host": "http://",
    "URL with path but without host": "http:///data.zip",
    "port out of range": "http://example.org:99999/x",
    "text as port": "http://example.org:http/x",
    "incomplete IPv6 address": "http://[::1/x",
}


@pytest.mark.parametrize("text", REFERENCES.values(), ids=REFERENCES)
def test_hostile_reference_is_rejected(place, fetcher, text):
    with pytest.raises(BadRequest) as error:
        fetcher.fetch(parse(text, place / "root"), place / "root/run", StopSignal(), lambda _: None)
    message_of(error)


LINKS = {
    "symlink to a file outside": lambda p: (p / "root/d.yaml").symlink_to(p / "secret/data.yaml"),
    "broken symlink": lambda p: (p / "root/d.yaml").symlink_to(p / "none"),
    "symlink to itself": lambda p: (p / "root/d.yaml").symlink_to(p / "root/d.yaml"),
    "symlink to a device": lambda p: (p / "root/d.yaml").symlink_to("/dev/zero"),
    "named pipe": lambda p: os.mkfifo(p / "root/d.yaml"),
    "symlink through another symlink": lambda p: (
        (p / "root/x").symlink_to(p / "secret"),
        (p / "root/d.yaml").symlink_to("x/data.yaml"),
    ),
}


@pytest.mark.parametrize("make", LINKS.values(), ids=LINKS)
def test_symlink_or_named_pipe_in_root_is_rejected(place, fetcher, make):
    make(place)
    with pytest.raises(DatasetError) as error:
        fetcher.fetch(parse("d.yaml", place / "root"), place / "root/run", StopSignal(), lambda _: None)
    message_of(error)


# ── hosts and addresses ──

ADDRESSES = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "192.80.8.124",
    "::ffff:168.63.129.16",
    "64:ff9b::a83f:8110",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "fec0::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "192.88.99.1",
    "3fff::1",
    "5f00::1",
    "100::1",
    "not an address",
]


@pytest.fixture
def _no_contact(monkeypatch):
    """Fail the test if it contacts an address."""

    def contacted(self, host, *_, **__):
        raise AssertionError(f"{host} was contacted")

    monkeypatch.setattr("httpcore.SyncBackend.connect_tcp", contacted)


@pytest.mark.usefixtures("_no_contact")
@pytest.mark.parametrize("address", ADDRESSES)
def test_host_with_forbidden_address_is_rejected(tmp_path, address):
    client = GuardedClient(resolve=lambda *_: ["93.184.216.34", address], policy=RetryPolicy(tries=1))
    with pytest.raises(DatasetError) as error:
        client.download("http://data.example/x.zip", tmp_path / "x", StopSignal())
    client.close()
    assert "private network" in message_of(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_contact")
@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "2002:5db8:d822::1"])
def test_public_address_is_allowed(tmp_path, address):
    client = GuardedClient(resolve=lambda *_: [address], policy=RetryPolicy(tries=1))
    with pytest.raises(AssertionError, match=f"{address} was contacted"):
        client.download("http://data.example/x.zip", tmp_path / "x", StopSignal())
    client.close()


NEVER_CONTACTED = [
    "169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1",
    # metadata services of clouds outside of the link-local addresses
    "168.63.129.16", "::ffff:168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42",
]  # fmt: skip


@pytest.mark.usefixtures("_no_contact")
@pytest.mark.parametrize("address", NEVER_CONTACTED)
def test_link_local_multicast_and_metadata_addresses_are_forbidden_even_for_allowed_host(tmp_path, address):
    client = GuardedClient(
        allowed_hosts=["data.example:80"],
        resolve=lambda *_: [address],
        policy=RetryPolicy(tries=1),
    )
    with pytest.raises(DatasetError, match="private network"):
        client.download("http://data.example/x.zip", tmp_path / "x", StopSignal())
    client.close()


URLS = [
    "http://127.0.0.1:{port}/x",
    "http://localhost:{port}/x",
    "http://LOCALHOST.:{port}/x",
    "http://2130706433:{port}/x",
    "http://0x7f000001:{port}/x",
    "http://0177.0.0.1:{port}/x",
    "http://127.1:{port}/x",
    "http://0:{port}/x",
    "http://[::1]:{port}/x",
    "http://[::ffff:127.0.0.1]:{port}/x",
    "http://[::]:{port}/x",
    "http://\uff11\uff12\uff17.0.0.1:{port}/x",
    "http://127\u30020\u30020\u30021:{port}/x",
    "http://example.org@127.0.0.1:{port}/x",
    "http://127.0.0.1:{port}#@example.org/x",
    "http://127.0.0.1:{port}\\@example.org/x",
    "http://a%2eexample:{port}/x",
    "http://" + "a" * 300 + ".org/x",
    "http://..:{port}/x",
    "http://a b:{port}/x",
]


@pytest.mark.parametrize("url", URLS)
def test_other_spellings_of_localhost_and_invalid_hosts_are_rejected(server, tmp_path, url):
    server.pages["/x"] = body(SECRET.encode())
    client = GuardedClient(policy=RetryPolicy(tries=1))
    with pytest.raises((DatasetError, Unavailable)) as error:
        client.download(url.format(port=server.port), tmp_path / "x", StopSignal())
    client.close()
    message_of(error)
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []


REDIRECTS = {
    "to the loopback address": "http://127.0.0.1:1/x",
    "to the metadata service": "http://169.254.169.254/latest/meta-data/",
    "to another host": "http://other.example/x",
    "to a file URL": "file:///etc/passwd",
    "to a Gopher URL": "gopher://127.0.0.1/",
    "to a URL with a password": "http://user:pass@127.0.0.1:{port}/end",
    "to an empty location": "",
    "to itself": "/x",
    "to an incomplete IPv6 address": "http://[::1/x",
    "to a port out of range": "//127.0.0.1:99999/x",
    "to a path of 60,000 characters": "/" + "a" * 60_000,
}


@pytest.mark.parametrize("target", REDIRECTS.values(), ids=REDIRECTS)
def test_hostile_redirect_is_rejected(server, fetcher, place, target):
    server.pages["/x"] = redirect(target.format(port=server.port))
    server.pages["/end"] = body(b"reached")
    with pytest.raises((BadRequest, Unavailable)) as error:
        fetcher.fetch(HttpRef(url=server.url("/x")), place / "root/run", StopSignal(), lambda _: None)
    message_of(error)
    assert set(server.asked) == {"/x"}
    assert len(server.asked) <= 6


BODIES = {
    "endless body": endless,
    "body of 100 GB": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx"),
    "body shorter than Content-Length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"),
    "negative Content-Length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx"),
    "two different values of Content-Length": raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"
    ),
    "text as Content-Length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nx"),
    "compressed body": body(gzip.compress(b"\0" * (8 << 20)), "Content-Encoding: gzip"),
    "invalid chunk size": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nx"),
    "incomplete chunk": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
    "SSH instead of HTTP": raw(b"SSH-2.0-OpenSSH_9.0\r\n"),
    "empty response": raw(),
    "50,000 headers": raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000),
    "login page": body(b"<html><form>password</form></html>"),
    "status 206": body(b"x", status="206 Partial Content"),
    "binary content": body(os.urandom(1000)),
}


@pytest.mark.parametrize("answer", BODIES.values(), ids=BODIES)
def test_hostile_response_is_rejected(server, fetcher, place, answer):
    server.pages["/data.yaml"] = answer
    with pytest.raises((BadRequest, Unavailable)) as error:
        fetcher.fetch(HttpRef(url=server.url("/data.yaml")), place / "root/run", StopSignal(), lambda _: None)
    message_of(error)
    assert list((place / "root/.cache/tmp").iterdir()) == []
