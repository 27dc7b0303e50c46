"""Datasets from URLs: archives, YAML files with lists, and NDJSON exports."""

import json
import os
import tarfile
import threading
import time

import pytest

from tests.dataset_sources import DATASET, YAML, content, zipped
from tests.web_server import body, silent
from trainer.core.errors import DatasetError, ObjectMissing, Unavailable
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.cache.content import ContentCache


def test_archive_at_url_is_cached_by_etag(server, root, fetch):
    server.pages["/set.zip"] = body(zipped(root / "x.zip", DATASET), 'ETag: "1"')
    assert content(fetch(server.url("/set.zip?token=1"))) == DATASET
    server.pages["/set.zip"] = body(b"x" * (root / "x.zip").stat().st_size, 'ETag: "1"')
    assert content(fetch(server.url("/set.zip?token=2"))) == DATASET


def test_archive_without_etag_is_cached_by_content(server, root, fetch):
    server.pages["/download"] = body(zipped(root / "x.zip", DATASET))
    first = fetch(server.url("/download?id=7"))
    assert content(first) == DATASET
    assert fetch(server.url("/download?id=7")).root == first.root


def test_images_listed_by_yaml_at_url_are_fetched(server, fetch):
    server.pages["/sets/a/data.yaml"] = body(b"train: train.txt\nval: [lists/val.txt, images/v2.jpg]\nnames: [a]\n")
    server.pages["/sets/a/train.txt"] = body(b"./images/t 1.jpg\r\nimages/t2.jpg\n\n")
    server.pages["/sets/a/lists/val.txt"] = body(b"images/v1.jpg\n")
    for place in ("images/t%201", "images/t2", "lists/images/v1", "images/v2"):
        server.pages[f"/sets/a/{place}.jpg"] = body(place.encode())
    server.pages["/sets/a/labels/t%201.txt"] = body(b"0 .5 .5 .1 .1\n")
    server.pages["/sets/a/lists/labels/v1.txt"] = body(b"")
    fetched = fetch(server.url("/sets/a/data.yaml"))
    assert str(fetched.entry) == "data.yaml"
    assert sorted(content(fetched)) == [
        "data.yaml",
        "images/t 1.jpg",
        "images/t2.jpg",
        "images/v2.jpg",
        "labels/t 1.txt",
        "lists/images/v1.jpg",
        "lists/labels/v1.txt",
        "lists/val.txt",
        "train.txt",
    ]


def test_missing_listed_image_is_an_error(server, fetch):
    server.pages["/data.yaml"] = body(b"train: train.txt\nval: train.txt\nnames: [a]\n")
    server.pages["/train.txt"] = body(b"images/1.jpg\nimages/2.jpg\n")
    server.pages["/images/1.jpg"] = body(b"1")
    with pytest.raises(ObjectMissing, match=r"/images/2.jpg answers 404"):
        fetch(server.url("/data.yaml"))


def test_unavailable_label_is_an_error(server, fetch):
    server.pages["/data.yaml"] = body(b"train: images/1.jpg\nval: images/1.jpg\nnames: [a]\n")
    server.pages["/images/1.jpg"] = body(b"1")
    server.pages["/labels/1.txt"] = body(b"", status="503 Busy")
    with pytest.raises(Unavailable):
        fetch(server.url("/data.yaml"))


def test_folders_in_yaml_at_url_are_rejected_with_advice(server, fetch):
    server.pages["/data.yaml"] = body(YAML.encode())
    with pytest.raises(DatasetError, match=r"a folder; folders cannot be listed over http\(s\). Use .txt lists"):
        fetch(server.url("/data.yaml"))


RECORDS = [
    {"type": "dataset", "task": "detect", "class_names": {"0": "cat", "2": "dog"}, "download": "rm -rf /"},
    {"type": "image", "file": "a.jpg", "split": "train", "annotations": {"boxes": [[0, 0.5, 0.5, 0.1, 0.2]]}},
    {"type": "image", "file": "sub/a.jpg", "split": "train", "annotations": {"boxes": []}},
    {"type": "image", "file": "b.png", "split": "val"},
]


def export(server, records, path="/set.ndjson"):
    lines = []
    for number, record in enumerate(records):
        server.pages[f"/files/{number}"] = body(f"image {number}".encode(), f'ETag: "{number}"')
        url = {"url": server.url(f"/files/{number}?token=t")} if "split" in record else {}
        lines.append(json.dumps(record | url))
    server.pages[path] = body("\n".join(lines).encode())
    return server.url(path)


def test_ndjson_export_becomes_yolo_dataset(server, fetch):
    fetched = fetch(export(server, RECORDS))
    files = content(fetched)
    assert files.pop("data.yaml").decode() == (
        "train: images/train\nval: images/val\ntask: detect\nnames:\n  0: cat\n  1: class1\n  2: dog\n"
    )
    assert files == {
        "images/train/a.jpg": b"image 1",
        "labels/train/a.txt": b"0 0.5 0.5 0.1 0.2\n",
        "images/train/a_2.jpg": b"image 2",
        "labels/train/a_2.txt": b"",
        "images/val/b.png": b"image 3",
        "labels/val/b.txt": b"",
    }


def test_images_of_export_are_downloaded_once(server, fetch):
    url = export(server, RECORDS)
    fetch(url)
    for number in (1, 2, 3):
        server.pages[f"/files/{number}"] = body(b"x" * 7, f'ETag: "{number}"')
    assert content(fetch(url))["images/train/a.jpg"] == b"image 1"


@pytest.mark.parametrize("kind", ["export", "archive"])
def test_download_of_unknown_size_evicts_older_entries(server, root, fetcher, fetch, kind):
    cache = ContentCache(root / ".cache", max_bytes=150, reserve=0)
    with cache.temporary() as path:
        path.write_bytes(b"x" * 140)
        old = cache.put("old", path)
    os.utime(old, (1, old.stat().st_mtime))
    fetcher.cache._max_bytes = 150
    if kind == "export":
        url = export(server, RECORDS)
    else:
        zipped(root / "x.zip", DATASET)
        with tarfile.open(root / "x.tar", "w") as archive:
            archive.add(root / "x.zip", "x.txt")
        server.pages["/x"] = body((root / "x.tar").read_bytes())
        url = server.url("/x")
    fetched = fetch(url)
    assert not old.exists()
    assert content(fetched)


def test_classification_export_becomes_class_folders(server, fetch):
    fetched = fetch(
        export(
            server,
            [
                {"task": "classify", "class_names": {"0": "cat", "1": "../dog"}},
                {"file": "a.jpg", "split": "train", "annotations": {"classification": [0]}},
                {"file": "b.jpg", "split": "val", "annotations": {"classification": [1]}},
            ],
        )
    )
    assert fetched.entry is None
    assert content(fetched) == {"train/cat/a.jpg": b"image 1", "val/class1/b.jpg": b"image 2"}


def test_other_objects_in_folder_of_stored_export_are_not_fetched(server, store, fetch):
    export(server, RECORDS)
    lines = [json.dumps({**r, "url": server.url(f"/files/{n}")} if n else r) for n, r in enumerate(RECORDS)]
    lines += [" " * (5 << 20)]  # this line makes the file larger than the size limit of a YAML
    store.put({"set.ndjson": "\n".join(lines).encode()})
    fetched = fetch("storage:p/s/set.ndjson")
    assert "images/val/b.png" in content(fetched)
    assert store.downloads == ["p/s/set.ndjson"]


def test_export_on_disk_can_use_local_images(root, fetch):
    (root / "set/data/images/train").mkdir(parents=True)
    (root / "set/data/images/train/a.jpg").write_bytes(b"local")
    head, record = {"task": "detect", "class_names": {"0": "a"}, "path": "data"}, {"file": "a.jpg", "split": "train"}
    (root / "set/x.ndjson").write_text(f"{json.dumps(head)}\n{json.dumps(record)}\n")
    fetched = fetch("set/x.ndjson")
    assert content(fetched)["images/train/a.jpg"] == b"local"
    assert (fetched.root / "images/train/a.jpg").stat().st_ino != (root / "set/data/images/train/a.jpg").stat().st_ino


def test_download_from_silent_host_can_be_stopped(server, fetch):
    server.pages["/set.zip"] = silent
    stop = StopSignal()
    threading.Timer(0.2, stop.set, [StopReason.CANCELED]).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        fetch(server.url("/set.zip"), stop)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/annotations.json", body(b"{}"), "Use the URL of an archive"),
        ("/data.yaml", body(b""), "0 bytes"),
        ("/data.yaml", body(b"<html>login</html>"), r"^http://127.0.0.1:\d+/data.yaml is not a dataset YAML"),
        ("/data.yaml", body(b"x" * (5 << 20)), r"^http://127.0.0.1:\d+/data.yaml is larger than 4 MiB"),
        ("/set.zip", body(b"<html>login</html>"), "neither a zip nor a tar"),
        ("/gone.zip", body(b"", status="404 Not Found"), "answers 404"),
    ],
)
def test_content_that_is_not_a_dataset_is_rejected_with_reason(server, fetch, path, answer, words):
    server.pages[path] = answer
    with pytest.raises((DatasetError, ObjectMissing), match=words):
        fetch(server.url(path))
