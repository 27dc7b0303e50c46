"""Hostile YAML files and exports at URLs, and hostile listings of a store."""

from __future__ import annotations

import json
import os

import pytest

from tests.hostile.references import message_of, parse
from tests.web_server import body
from trainer.core.dataset import HttpRef
from trainer.core.errors import BadRequest, DatasetError, ObjectMissing
from trainer.core.stop import StopSignal
from trainer.datasets.source.manifest import wanted

pytestmark = pytest.mark.usefixtures("_time_limit")

# ── references inside a YAML or an export at a URL ──

YAMLS = {
    "path traversal in path": "path: ../..\ntrain: a.jpg\nval: a.jpg",
    "absolute path": "path: /etc\ntrain: passwd\nval: passwd",
    "absolute path of a list": "train: /etc/passwd.txt\nval: a.jpg",
    "path traversal in train": "train: ../../../secret/a.jpg\nval: a.jpg",
    "URL on another host": "train: http://169.254.169.254/a.jpg\nval: a.jpg",
    "file URL": "train: file:///etc/passwd.txt\nval: a.jpg",
    "Python tag": "train: !!python/object/apply:os.system ['touch owned']\nval: a.jpg",
    "no splits": "names: [a]\ndownload: touch owned",
    "folders and a download script": "train: images\nval: images\ndownload: |\n  import os; os.system('touch owned')",
    "alias bomb": "a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\ntrain: *c\nval: *c",
    "deeply nested lists": "train: " + "[" * 50_000,
    "list instead of a mapping": "- train",
    "number instead of a mapping": "7",
    "Python file as image": "train: setup.py\nval: a.jpg",
    "control characters": 'train: "a\\x01.jpg"\nval: a.jpg',
    "file name of 5,000 characters": "train: " + "a" * 5000 + ".jpg\nval: a.jpg",
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_hostile_yaml_at_url_is_rejected(server, fetcher, place, text):
    server.pages["/sets/data.yaml"] = body(text.encode())
    server.pages["/sets/a.jpg"] = body(b"image")
    with pytest.raises(BadRequest) as error:
        fetcher.fetch(HttpRef(url=server.url("/sets/data.yaml")), place / "root/run", StopSignal(), lambda _: None)
    message_of(error)
    assert not set(server.asked) - {"/sets/data.yaml", "/sets/a.jpg", "/sets/labels/a.txt", "/sets/a.txt"}


HEAD = {"task": "detect", "class_names": {"0": "a"}}
EXPORTS = {
    "URL of the loopback address": [HEAD, {"file": "a.jpg", "split": "train", "url": "http://127.0.0.1:1/a.jpg"}],
    "URL of the metadata service": [HEAD, {"file": "a.jpg", "split": "train", "url": "http://169.254.169.254/a.jpg"}],
    "file URL": [HEAD, {"file": "a.jpg", "split": "train", "url": "file:///etc/passwd"}],
    "path as URL": [HEAD, {"file": "a.jpg", "split": "train", "url": "/etc/passwd"}],
    "storage reference as URL": [HEAD, {"file": "a.jpg", "split": "train", "url": "storage:p/s/a.jpg"}],
    "no URL": [HEAD, {"file": "a.jpg", "split": "train"}],
    "no URL, and a path outside": [{**HEAD, "path": "/etc"}, {"file": "passwd", "split": "train"}],
    "split with path traversal": [HEAD, {"file": "a.jpg", "split": "../..", "url": "x"}],
    "list as split": [HEAD, {"file": "a.jpg", "split": ["train"], "url": "x"}],
    "number as file name": [HEAD, {"file": 7, "split": "train"}],
    "text as box": [HEAD, {"file": "a.jpg", "split": "train", "annotations": {"boxes": [["0 0"]]}}],
    "number instead of a list of boxes": [HEAD, {"file": "a.jpg", "split": "train", "annotations": {"boxes": 7}}],
    "text as annotations": [HEAD, {"file": "a.jpg", "split": "train", "annotations": "x"}],
    "unknown task": [{"task": "rm -rf"}, {"file": "a.jpg", "split": "train"}],
    "list as task": [{"task": []}, {"file": "a.jpg", "split": "train"}],
    "text as class names": [{"class_names": "abc"}, {"file": "a.jpg", "split": "train"}],
    "number as class names": [{"class_names": 7}, {"file": "a.jpg", "split": "train"}],
    "number that no float can store": [
        HEAD,
        {"file": "a.jpg", "split": "train", "annotations": {"boxes": [[0, 10**400, 0.5, 0.1, 0.1]]}},
    ],
    "object as class name": [{"class_names": {"0": {}}}, {"file": "a.jpg", "split": "train"}],
    "huge class number": [{"class_names": {"9" * 30: "x"}}, {"file": "a.jpg", "split": "train"}],
    "no record with task and class names": [{"file": "a.jpg", "split": "train"}],
    "no images": [HEAD],
    "list instead of a record": [HEAD, []],
}


@pytest.mark.parametrize("records", EXPORTS.values(), ids=EXPORTS)
def test_hostile_export_is_rejected(server, fetcher, place, records):
    server.pages["/x.ndjson"] = body("\n".join(json.dumps(r) for r in records).encode())
    with pytest.raises(BadRequest) as error:
        fetcher.fetch(HttpRef(url=server.url("/x.ndjson")), place / "root/run", StopSignal(), lambda _: None)
    message_of(error)
    assert set(server.asked) == {"/x.ndjson"}


@pytest.mark.parametrize(
    "line", [b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1e999999}', b"NaN", b"{}{}", b"9" * 10_000]
)
def test_invalid_record_in_export_is_rejected(server, fetcher, place, line):
    server.pages["/x.ndjson"] = body(json.dumps(HEAD).encode() + b"\n" + line)
    with pytest.raises(DatasetError) as error:
        fetcher.fetch(HttpRef(url=server.url("/x.ndjson")), place / "root/run", StopSignal(), lambda _: None)
    assert "x.ndjson" in message_of(error)


@pytest.mark.parametrize(
    "file",
    ["../../../x.jpg", "/etc/x.jpg", "-rf.jpg", "..jpg", ".jpg", "a\\..\\b.jpg", "a" * 200 + ".jpg", "", "x.php"],
)
def test_images_of_export_with_hostile_names_stay_inside_dataset(server, fetcher, place, file):
    server.pages["/a"] = body(b"image")
    record = {"file": file, "split": "train", "url": server.url("/a")}
    server.pages["/x.ndjson"] = body("\n".join(json.dumps(r) for r in (HEAD, record)).encode())
    fetched = fetcher.fetch(HttpRef(url=server.url("/x.ndjson")), place / "root/run", StopSignal(), lambda _: None)
    found = sorted(p.relative_to(fetched.root).parts[:2] for p in fetched.root.rglob("*") if p.is_file())
    assert found == [("data.yaml",), ("images", "train"), ("labels", "train")]


# ── objects of a store ──

STORED = {
    "symlink out of the bucket": lambda b: (b / "p/images/x.jpg").symlink_to(b.parents[1] / "secret/data.yaml"),
    "linked folder": lambda b: (b / "p/images/more").symlink_to(b.parents[1] / "secret"),
    "newline in object name": lambda b: (b / "p/images/a\nb.jpg").write_bytes(b"x"),
    "escape sequence in object name": lambda b: (b / "p/images/\x1b[2J.jpg").write_bytes(b"x"),
    "backslashes in object name": lambda b: (b / "p/images/x\\..\\..\\..\\y.jpg").write_bytes(b"x"),
    "empty image": lambda b: (b / "p/images/a.jpg").write_bytes(b""),
    "empty YAML": lambda b: (b / "p/data.yaml").write_bytes(b""),
    "YAML with a Python tag": lambda b: (b / "p/data.yaml").write_bytes(
        b"!!python/object/apply:os.system ['touch owned']"
    ),
    "deeply nested YAML": lambda b: (b / "p/data.yaml").write_bytes(b"train: " + b"[" * 100_000),
    "YAML of 1 GiB": lambda b: os.truncate(b / "p/data.yaml", 1 << 30),
    "binary content as YAML": lambda b: (b / "p/data.yaml").write_bytes(os.urandom(5000)),
}


@pytest.mark.parametrize("make", STORED.values(), ids=STORED)
def test_stored_dataset_with_hostile_object_is_rejected(place, fetcher, make):
    bucket = place / "store/datasets"
    (bucket / "p/images").mkdir(parents=True)
    (bucket / "p/data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    make(bucket)
    with pytest.raises((DatasetError, ObjectMissing)) as error:
        fetcher.fetch(parse("storage:p/data.yaml", place / "root"), place / "root/run", StopSignal(), lambda _: None)
    message_of(error)


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
def test_file_that_a_dataset_does_not_need_is_not_fetched(name):
    assert not wanted(name)


# ── exports on a disk of the host ──

LOCAL_IMAGES = {
    "named pipe": os.mkfifo,
    "folder": os.mkdir,
    "file of 1 TiB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40),
}


@pytest.mark.parametrize("make", LOCAL_IMAGES.values(), ids=LOCAL_IMAGES)
def test_local_image_of_export_that_is_no_small_file_is_rejected(fetcher, place, make):
    (place / "root/set/data/images/train").mkdir(parents=True)
    make(place / "root/set/data/images/train/a.jpg")
    records = {**HEAD, "path": "data"}, {"file": "a.jpg", "split": "train"}
    (place / "root/set/x.ndjson").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(DatasetError, match=r"not a file of at most"):
        fetcher.fetch(parse("set/x.ndjson", place / "root"), place / "root/run", StopSignal(), lambda _: None)
