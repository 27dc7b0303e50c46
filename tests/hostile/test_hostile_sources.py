"""Hostile dataset references: each ends in bounded time, in a clear error or a harmless success inside the root."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import time
import zipfile

import pytest

from tests.web_server import body, endless, raw, redirect, web_server
from trainer.core.dataset import HttpRef
from trainer.core.errors import BadRequest, DatasetError, ObjectMissing, Unavailable
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.source.archive import extract
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.manifest import wanted
from trainer.datasets.source.reference import Roots, parse_reference
from trainer.datasets.untrusted import Limits
from trainer.remote.web import GuardedClient
from trainer.storage.local import LocalObjectStore

SECRET = "root:x:0:0"


@pytest.fixture(autouse=True)
def _bounded():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 20


@pytest.fixture
def server():
    with web_server() as started:
        yield started


@pytest.fixture
def place(tmp_path):
    """Yield a folder with a dataset root and a secret next to it; check afterwards that nothing outside the root changed."""
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/data.yaml").write_text(SECRET)
    yield tmp_path
    assert sorted(os.listdir(tmp_path)) in (["root", "secret"], ["root", "secret", "store"])
    assert os.listdir(tmp_path / "secret") == ["data.yaml"]
    assert (tmp_path / "secret/data.yaml").read_text() == SECRET


@pytest.fixture
def fetcher(place, server):
    web = GuardedClient(
        allowed_hosts=[server.host],
        max_bytes=4 << 20,
        policy=RetryPolicy(tries=1),
        max_seconds=10,
    )
    cache = ContentCache(place / "root/.cache", max_bytes=1 << 30, reserve=0)
    yield Fetcher(
        roots=Roots(place / "root"),
        cache=cache,
        web=web,
        store=LocalObjectStore(place / "store"),
        datasets_bucket="datasets",
    )
    web.close()


def parse(text, root):
    return parse_reference(
        text,
        dataset_root=root,
        datasets_bucket="datasets",
        storage_base_url="https://abc.supabase.co",
    )


def sentence(error):
    text = str(error.value)
    assert text
    assert len(text) < 1500
    assert text.isprintable() or "\n" in text
    assert SECRET not in text
    return text


# ── references ──

REFERENCES = {
    "nothing": "",
    "blanks": " \t\n ",
    "NUL": "a\0b/data.yaml",
    "newline inside": "a\nb/data.yaml",
    "escape sequence": "\x1b]0;owned\x07data.yaml",
    "right-to-left override": "data\u202elmay.exe",
    "zero width": "da\u200bta.yaml",
    "line separator": "a\u2028b",
    "half a surrogate": "a\ud800b.yaml",
    "10,000 characters": "a" * 10_000,
    "10,000 folders": "a/" * 10_000,
    "file URL": "file:///etc/passwd",
    "file URL in capitals": "FILE:///etc/passwd",
    "gopher": "gopher://127.0.0.1:70/",
    "ftp": "ftp://example.org/data.zip",
    "data URL": "data:text/yaml,names: [a]",
    "s3": "s3://bucket/data",
    "Ultralytics hub": "ul://user/datasets/x",
    "Google storage": "gs://bucket/x",
    "Windows drive": "C:\\data\\data.yaml",
    "home": "~/data.yaml",
    "somebody's home": "~root/data.yaml",
    "absolute outside": "/etc/passwd",
    "device": "/dev/zero",
    "process": "/proc/self/environ",
    "up and out": "../secret/data.yaml",
    "up in the middle": "a/../../secret/data.yaml",
    "option": "--config=/etc/passwd",
    "template": "{{7*7}}",
    "shell": "$(touch /tmp/owned)",
    "no object": "storage:",
    "only a slash": "storage:/",
    "storage up": "storage:../../secret/data.yaml",
    "storage up inside": "storage:p/../../secret/data.yaml",
    "storage dot": "storage:p/./data.yaml",
    "storage empty segment": "storage:p//data.yaml",
    "storage up in our URL": "https://abc.supabase.co/storage/v1/object/public/b/%2e%2e/%2e%2e/x",
    "control in our URL": "https://abc.supabase.co/storage/v1/object/public/b/a%0ab",
    "no host": "http://",
    "no host but a path": "http:///data.zip",
    "bad port": "http://example.org:99999/x",
    "word for a port": "http://example.org:http/x",
    "half an address": "http://[::1/x",
}


@pytest.mark.parametrize("text", REFERENCES.values(), ids=REFERENCES)
def test_hostile_references(place, fetcher, text):
    with pytest.raises(BadRequest) as error:
        fetcher.fetch(parse(text, place / "root"), place / "root/run", StopSignal(), lambda _: None)
    sentence(error)


LINKS = {
    "to a file outside": lambda p: (p / "root/d.yaml").symlink_to(p / "secret/data.yaml"),
    "to nothing": lambda p: (p / "root/d.yaml").symlink_to(p / "none"),
    "to itself": lambda p: (p / "root/d.yaml").symlink_to(p / "root/d.yaml"),
    "to a device": lambda p: (p / "root/d.yaml").symlink_to("/dev/zero"),
    "a named pipe": lambda p: os.mkfifo(p / "root/d.yaml"),
    "through two": lambda p: ((p / "root/x").symlink_to(p / "secret"), (p / "root/d.yaml").symlink_to("x/data.yaml")),
}


@pytest.mark.parametrize("make", LINKS.values(), ids=LINKS)
def test_hostile_links_inside_root(place, fetcher, make):
    make(place)
    with pytest.raises(DatasetError) as error:
        fetcher.fetch(parse("d.yaml", place / "root"), place / "root/run", StopSignal(), lambda _: None)
    sentence(error)


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
def test_host_name_of_forbidden_address_is_rejected(tmp_path, address):
    client = GuardedClient(resolve=lambda *_: ["93.184.216.34", address], policy=RetryPolicy(tries=1))
    with pytest.raises(DatasetError) as error:
        client.download("http://data.example/x.zip", tmp_path / "x", StopSignal())
    client.close()
    assert "private network" in sentence(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_contact")
@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822", "2002:5db8:d822::1"])
def test_public_address_is_allowed(tmp_path, address):
    client = GuardedClient(resolve=lambda *_: [address], policy=RetryPolicy(tries=1))
    with pytest.raises(AssertionError, match=f"{address} was contacted"):
        client.download("http://data.example/x.zip", tmp_path / "x", StopSignal())
    client.close()


@pytest.mark.usefixtures("_no_contact")
@pytest.mark.parametrize("address", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "0.0.0.0", "224.0.0.1"])
def test_metadata_address_is_forbidden_even_if_private_hosts_are_allowed(tmp_path, address):
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
def test_every_spelling_of_localhost_is_rejected(server, tmp_path, url):
    server.pages["/x"] = body(SECRET.encode())
    client = GuardedClient(policy=RetryPolicy(tries=1))
    with pytest.raises((DatasetError, Unavailable)) as error:
        client.download(url.format(port=server.port), tmp_path / "x", StopSignal())
    client.close()
    sentence(error)
    assert server.asked == []
    assert list(tmp_path.iterdir()) == []


REDIRECTS = {
    "to loopback": "http://127.0.0.1:1/x",
    "to metadata": "http://169.254.169.254/latest/meta-data/",
    "to another host": "http://other.example/x",
    "to a file": "file:///etc/passwd",
    "to gopher": "gopher://127.0.0.1/",
    "with a password": "http://user:pass@127.0.0.1:{port}/end",
    "to nowhere": "",
    "to itself": "/x",
    "to half an address": "http://[::1/x",
    "to a bad port": "//127.0.0.1:99999/x",
    "to 100,000 characters": "/" + "a" * 60_000,
}


@pytest.mark.parametrize("target", REDIRECTS.values(), ids=REDIRECTS)
def test_hostile_redirects(server, fetcher, place, target):
    server.pages["/x"] = redirect(target.format(port=server.port))
    server.pages["/end"] = body(b"reached")
    with pytest.raises((BadRequest, Unavailable)) as error:
        fetcher.fetch(HttpRef(url=server.url("/x")), place / "root/run", StopSignal(), lambda _: None)
    sentence(error)
    assert set(server.asked) == {"/x"}
    assert len(server.asked) <= 6


BODIES = {
    "endless": endless,
    "endless with a length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx"),
    "shorter than stated": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"),
    "negative length": raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nx"),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
    "length in words": raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nx"),
    "compressed": body(gzip.compress(b"\0" * (8 << 20)), "Content-Encoding: gzip"),
    "bad chunks": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nx"),
    "chunks that end early": raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"),
    "no HTTP": raw(b"SSH-2.0-OpenSSH_9.0\r\n"),
    "nothing at all": raw(),
    "headers without end": raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000),
    "a page that asks for a login": body(b"<html><form>password</form></html>"),
    "partial content": body(b"x", status="206 Partial Content"),
    "binary": body(os.urandom(1000)),
}


@pytest.mark.parametrize("answer", BODIES.values(), ids=BODIES)
def test_hostile_bodies(server, fetcher, place, answer):
    server.pages["/data.yaml"] = answer
    with pytest.raises((BadRequest, Unavailable)) as error:
        fetcher.fetch(HttpRef(url=server.url("/data.yaml")), place / "root/run", StopSignal(), lambda _: None)
    sentence(error)
    assert list((place / "root/.cache/tmp").iterdir()) == []


# ── what a YAML, a list or an export behind a URL names ──

YAMLS = {
    "path outside": "path: ../..\ntrain: a.jpg\nval: a.jpg",
    "absolute path": "path: /etc\ntrain: passwd\nval: passwd",
    "absolute list": "train: /etc/passwd.txt\nval: a.jpg",
    "up": "train: ../../../secret/a.jpg\nval: a.jpg",
    "another host": "train: http://169.254.169.254/a.jpg\nval: a.jpg",
    "file URL": "train: file:///etc/passwd.txt\nval: a.jpg",
    "tag": "train: !!python/object/apply:os.system ['touch owned']\nval: a.jpg",
    "no splits": "names: [a]\ndownload: touch owned",
    "only a download script": "train: images\nval: images\ndownload: |\n  import os; os.system('touch owned')",
    "alias bomb": "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\ntrain: *c\nval: *c",
    "deep": "train: " + "[" * 50_000,
    "a list": "- train",
    "a number": "7",
    "image that is none": "train: setup.py\nval: a.jpg",
    "control characters": 'train: "a\\x01.jpg"\nval: a.jpg',
    "long name": "train: " + "a" * 5000 + ".jpg\nval: a.jpg",
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_hostile_yaml_behind_a_url(server, fetcher, place, text):
    server.pages["/sets/data.yaml"] = body(text.encode())
    server.pages["/sets/a.jpg"] = body(b"image")
    with pytest.raises(BadRequest) as error:
        fetcher.fetch(HttpRef(url=server.url("/sets/data.yaml")), place / "root/run", StopSignal(), lambda _: None)
    sentence(error)
    assert not set(server.asked) - {"/sets/data.yaml", "/sets/a.jpg", "/sets/labels/a.txt", "/sets/a.txt"}


HEAD = {"task": "detect", "class_names": {"0": "a"}}
EXPORTS = {
    "loopback": [HEAD, {"file": "a.jpg", "split": "train", "url": "http://127.0.0.1:1/a.jpg"}],
    "metadata": [HEAD, {"file": "a.jpg", "split": "train", "url": "http://169.254.169.254/a.jpg"}],
    "file URL": [HEAD, {"file": "a.jpg", "split": "train", "url": "file:///etc/passwd"}],
    "a path for a URL": [HEAD, {"file": "a.jpg", "split": "train", "url": "/etc/passwd"}],
    "storage for a URL": [HEAD, {"file": "a.jpg", "split": "train", "url": "storage:p/s/a.jpg"}],
    "no URL": [HEAD, {"file": "a.jpg", "split": "train"}],
    "no URL and a path": [{**HEAD, "path": "/etc"}, {"file": "passwd", "split": "train"}],
    "a split that leads up": [HEAD, {"file": "a.jpg", "split": "../..", "url": "x"}],
    "a split that is a list": [HEAD, {"file": "a.jpg", "split": ["train"], "url": "x"}],
    "a file that is a number": [HEAD, {"file": 7, "split": "train"}],
    "rows that are text": [HEAD, {"file": "a.jpg", "split": "train", "annotations": {"boxes": [["0 0"]]}}],
    "rows that are no list": [HEAD, {"file": "a.jpg", "split": "train", "annotations": {"boxes": 7}}],
    "annotations that are text": [HEAD, {"file": "a.jpg", "split": "train", "annotations": "x"}],
    "an unknown task": [{"task": "rm -rf"}, {"file": "a.jpg", "split": "train"}],
    "a task that is a list": [{"task": []}, {"file": "a.jpg", "split": "train"}],
    "names that are text": [{"class_names": "abc"}, {"file": "a.jpg", "split": "train"}],
    "a name that is an object": [{"class_names": {"0": {}}}, {"file": "a.jpg", "split": "train"}],
    "a huge class number": [{"class_names": {"9" * 30: "x"}}, {"file": "a.jpg", "split": "train"}],
    "only images": [{"file": "a.jpg", "split": "train"}],
    "no images": [HEAD],
    "a list for a line": [HEAD, []],
}


@pytest.mark.parametrize("records", EXPORTS.values(), ids=EXPORTS)
def test_hostile_exports(server, fetcher, place, records):
    server.pages["/x.ndjson"] = body("\n".join(json.dumps(r) for r in records).encode())
    with pytest.raises(BadRequest) as error:
        fetcher.fetch(HttpRef(url=server.url("/x.ndjson")), place / "root/run", StopSignal(), lambda _: None)
    sentence(error)
    assert set(server.asked) == {"/x.ndjson"}


@pytest.mark.parametrize(
    "line", [b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1e999999}', b"NaN", b"{}{}", b"9" * 10_000]
)
def test_invalid_record_in_export_is_rejected(server, fetcher, place, line):
    server.pages["/x.ndjson"] = body(json.dumps(HEAD).encode() + b"\n" + line)
    with pytest.raises(DatasetError) as error:
        fetcher.fetch(HttpRef(url=server.url("/x.ndjson")), place / "root/run", StopSignal(), lambda _: None)
    assert "x.ndjson" in sentence(error)


@pytest.mark.parametrize(
    "file",
    ["../../../x.jpg", "/etc/x.jpg", "-rf.jpg", "..jpg", ".jpg", "a\\..\\b.jpg", "a" * 200 + ".jpg", "", "x.php"],
)
def test_file_names_of_export_stay_inside_tree(server, fetcher, place, file):
    server.pages["/a"] = body(b"image")
    record = {"file": file, "split": "train", "url": server.url("/a")}
    server.pages["/x.ndjson"] = body("\n".join(json.dumps(r) for r in (HEAD, record)).encode())
    fetched = fetcher.fetch(HttpRef(url=server.url("/x.ndjson")), place / "root/run", StopSignal(), lambda _: None)
    found = sorted(p.relative_to(fetched.root).parts[:2] for p in fetched.root.rglob("*") if p.is_file())
    assert found == [("data.yaml",), ("images", "train"), ("labels", "train")]


# ── archives ──


def zip_of(name, content=b"x", mode=0, **changes):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = mode << 16
        for key, value in changes.items():
            setattr(info, key, value)
        archive.writestr(info, content)
    return out.getvalue()


def tar_of(*members, end=True):
    out = io.BytesIO()
    for name, kind, target, content in members:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, target, len(content)
        out.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        out.write(content + b"\0" * (-len(content) % 512))
    return out.getvalue() + (b"\0" * 1024 if end else b"")


def file(name, content=b"x"):
    return name, tarfile.REGTYPE, "", content


def huge_header(kind, size):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096


def bomb(size):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.txt", "w") as member:
        for _ in range(size >> 20):
            member.write(b"\0" * (1 << 20))
    return out.getvalue()


def lying(data, old, new):
    assert old in data
    return data.replace(old, new)


def two(name, other):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, b"1")
        archive.writestr(other, b"2")
    return out.getvalue()


def xz_bomb():
    """Return an xz file whose header asks for a dictionary of 1.5 GiB."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(tar_of(file("a.txt")), filters=filters))
    import zlib

    header = bytes(data[12 : 12 + (data[12] + 1) * 4])
    changed = bytearray(header[:-4])
    changed[4] = 39  # the size of the dictionary, encoded as xz does
    data[12 : 12 + len(header)] = changed + struct.pack("<I", zlib.crc32(changed))
    return bytes(data)


ARCHIVES = {
    "zip: up": lambda: zip_of("../../secret/x.txt"),
    "zip: up in the middle": lambda: zip_of("a/../../x.txt"),
    "zip: up with backslashes": lambda: zip_of("..\\..\\x.txt"),
    "zip: absolute": lambda: zip_of("/tmp/x.txt"),
    "zip: Windows drive": lambda: zip_of("C:\\x.txt"),
    "zip: network path": lambda: zip_of("\\\\server\\share\\x.txt"),
    "zip: NUL in a name": lambda: zip_of("a\0b.txt"),
    "zip: newline in a name": lambda: zip_of("a\nb.txt"),
    "zip: escape in a name": lambda: zip_of("\x1b[2Ja.txt"),
    "zip: long name": lambda: zip_of("a" * 10_000 + ".txt"),
    "zip: long segment": lambda: zip_of("é" * 200 + ".txt"),
    "zip: deep": lambda: zip_of("a/" * 200 + "x.txt"),
    "zip: symlink": lambda: zip_of("x.txt", b"/etc/passwd", mode=0o120777),
    "zip: device": lambda: zip_of("x.txt", mode=0o020666),
    "zip: pipe": lambda: zip_of("x.txt", mode=0o010666),
    "zip: encrypted": lambda: lying(
        zip_of("x.txt"), b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    ),
    "zip: unusual method": lambda: lying(
        zip_of("x.txt"),
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x08",
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63",
    ),
    "zip: LZMA": lambda: zip_of("x.txt", compress_type=zipfile.ZIP_LZMA),
    "zip: one name twice": lambda: two("a.txt", "./a.txt"),
    "zip: a file that is also a folder": lambda: two("a.txt", "a.txt/b.txt"),
    "zip: a folder that is also a file": lambda: two("a.txt/b.txt", "a.txt"),
    "zip: bomb": lambda: bomb(128 << 20),
    "zip: cut": lambda: zip_of("x.txt", b"x" * 1000)[:60],
    "zip: wrong checksum": lambda: lying(zip_of("x.txt", b"hello"), struct.pack("<I", 0x3610A686), b"\1\2\3\4"),
    "zip: only the end": lambda: b"PK\x05\x06" + b"\0" * 18,
    "zip: index beyond the file": lambda: b"PK\x05\x06" + b"\0" * 8 + b"\xff" * 8 + b"\0\0",
    "zip: empty": lambda: zip_of("folder/"),
    "zip: nothing usable": lambda: zip_of("setup.py"),
    "zip: garbage": lambda: b"PK\x03\x04" + b"garbage" * 100,
    "tar: up": lambda: tar_of(file("../../secret/x.txt")),
    "tar: absolute": lambda: tar_of(file("/tmp/x.txt")),
    "tar: symlink": lambda: tar_of(("a.txt", tarfile.SYMTYPE, "/etc/passwd", b"")),
    "tar: folder link and a file through it": lambda: tar_of(
        ("a", tarfile.SYMTYPE, "../../secret", b""),
        file("a/data.yaml", b"owned"),
    ),
    "tar: hard link": lambda: tar_of(("a.txt", tarfile.LNKTYPE, "/etc/passwd", b"")),
    "tar: character device": lambda: tar_of(("a.txt", tarfile.CHRTYPE, "", b"")),
    "tar: block device": lambda: tar_of(("a.txt", tarfile.BLKTYPE, "", b"")),
    "tar: pipe": lambda: tar_of(("a.txt", tarfile.FIFOTYPE, "", b"")),
    "tar: sparse": lambda: tar_of(("a.txt", tarfile.GNUTYPE_SPARSE, "", b"")),
    "tar: unknown kind": lambda: tar_of(("a.txt", b"Z", "", b"")) + b"",
    "tar: name that is not UTF-8": lambda: tar_of(file("\udcff.txt")),
    "tar: one name twice": lambda: tar_of(file("a.txt"), file("a.txt")),
    "tar: huge PAX header": lambda: huge_header(tarfile.XHDTYPE, 1 << 32),
    "tar: huge global header": lambda: huge_header(tarfile.XGLTYPE, 1 << 32),
    "tar: huge long name": lambda: huge_header(tarfile.GNUTYPE_LONGNAME, 1 << 32),
    "tar: negative size": lambda: lying(
        tar_of(file("a.txt", b"x" * 512)),
        b"00000001000\0",
        b"\xff" * 12,
    ),
    "tar: no end": lambda: tar_of(file("a.txt"), end=False),
    "tar: cut": lambda: tar_of(file("a.txt", b"x" * 5000))[:1000],
    "tar: gzip bomb": lambda: gzip.compress(tar_of(file("a.txt", b"\0" * (100 << 20))), 9),
    "tar: gzip bomb in what is not wanted": lambda: gzip.compress(tar_of(file("a.bin", b"\0" * (100 << 20))), 9),
    "tar: gzip bomb after the end": lambda: gzip.compress(tar_of(file("a.txt")) + b"\0" * (100 << 20), 9),
    "tar: xz that wants memory": xz_bomb,
    "tar: gzip of nothing": lambda: gzip.compress(b""),
    "tar: gzip of garbage": lambda: gzip.compress(os.urandom(5000)),
    "tar: gzip cut": lambda: gzip.compress(tar_of(file("a.txt", os.urandom(5000))))[:3000],
    "tar: bzip2 garbage": lambda: b"BZh9" + os.urandom(1000),
    "tar: xz garbage": lambda: b"\xfd7zXZ\x00" + os.urandom(1000),
    "7z": lambda: b"7z\xbc\xaf\x27\x1c" + b"\0" * 100,
    "rar": lambda: b"Rar!\x1a\x07\x00" + b"\0" * 100,
}


@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_hostile_archives(place, fetcher, make):
    (place / "root/set.zip").write_bytes(make())
    with pytest.raises(DatasetError) as error:
        fetcher.fetch(parse("set.zip", place / "root"), place / "root/run", StopSignal(), lambda _: None)
    assert "set.zip" in sentence(error)
    assert list((place / "root/.cache/tmp").iterdir()) == []
    assert list((place / "root/.cache").glob("trees/*")) == []


LIMITED = {
    "members": (Limits(members=3), lambda: tar_of(*(file(f"{n}.txt") for n in range(4)))),
    "empty folders": (Limits(members=3), lambda: tar_of(*((f"{n}", tarfile.DIRTYPE, "", b"") for n in range(4)))),
    "bytes": (Limits(bytes=3000), lambda: tar_of(file("a.txt", b"x" * 4000))),
    "bytes of a zip": (Limits(bytes=3000), lambda: zip_of("a.txt", b"x" * 4000)),
}


@pytest.mark.parametrize(("limits", "make"), LIMITED.values(), ids=LIMITED)
def test_archive_over_limit_is_rejected(tmp_path, limits, make):
    (tmp_path / "a").write_bytes(make())
    with pytest.raises(DatasetError, match="more than"):
        extract(tmp_path / "a", tmp_path / "out", StopSignal(), limits=limits)


def test_archive_members_that_could_run_code_are_not_extracted(place, fetcher):
    (place / "root/set.tar").write_bytes(
        tar_of(
            file("labels/train.cache"),
            file("images/a.npy"),
            file("hubconf.py"),
            file(".git/config"),
            file("model.pt"),
            file("images/-rf.jpg"),
            file("data.yaml"),
        )
    )
    fetched = fetcher.fetch(parse("set.tar", place / "root"), place / "root/run", StopSignal(), lambda _: None)
    assert sorted(p.name for p in fetched.root.rglob("*") if p.is_file()) == ["-rf.jpg", "data.yaml"]


# ── listings of a store ──

STORED = {
    "symlink out of the bucket": lambda b: (b / "p/images/x.jpg").symlink_to(b.parents[1] / "secret/data.yaml"),
    "linked folder": lambda b: (b / "p/images/more").symlink_to(b.parents[1] / "secret"),
    "newline in a name": lambda b: (b / "p/images/a\nb.jpg").write_bytes(b"x"),
    "escape in a name": lambda b: (b / "p/images/\x1b[2J.jpg").write_bytes(b"x"),
    "backslashes in a name": lambda b: (b / "p/images/x\\..\\..\\..\\y.jpg").write_bytes(b"x"),
    "empty image": lambda b: (b / "p/images/a.jpg").write_bytes(b""),
    "empty YAML": lambda b: (b / "p/data.yaml").write_bytes(b""),
    "YAML with a tag": lambda b: (b / "p/data.yaml").write_bytes(b"!!python/object/apply:os.system ['touch owned']"),
    "YAML that is a bomb": lambda b: (b / "p/data.yaml").write_bytes(b"train: " + b"[" * 100_000),
    "a gigabyte of YAML": lambda b: os.truncate(b / "p/data.yaml", 1 << 30),
    "YAML that is binary": lambda b: (b / "p/data.yaml").write_bytes(os.urandom(5000)),
}


@pytest.mark.parametrize("make", STORED.values(), ids=STORED)
def test_hostile_stores(place, fetcher, make):
    bucket = place / "store/datasets"
    (bucket / "p/images").mkdir(parents=True)
    (bucket / "p/data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    make(bucket)
    with pytest.raises((DatasetError, ObjectMissing)) as error:
        fetcher.fetch(parse("storage:p/data.yaml", place / "root"), place / "root/run", StopSignal(), lambda _: None)
    sentence(error)


@pytest.mark.parametrize(
    "name",
    [
        "a.py",
        "a.npy",
        "labels/train.cache",
        "a.pt",
        "thumbnails/a.jpg",
        "x/thumbnails/a.jpg",
        ".a.jpg",
        ".git/a.txt",
        "__MACOSX/a.jpg",
        "a",
        "a.zip",
        "a.yaml.exe",
    ],
)
def test_file_is_not_part_of_dataset(name):
    assert not wanted(name)
