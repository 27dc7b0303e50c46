"""Downloads from a store that changes or fails, and stopped downloads."""

import os
import shutil
import threading
import time

import pytest

from tests.dataset_sources import DATASET, YAML, content
from trainer.core.errors import DatasetError, MachineFailed, Misconfigured, ObjectMissing, Unavailable
from trainer.core.ports import ObjectInfo
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.decoder import here
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import ReferenceRules, parse_reference
from trainer.datasets.source.roots import Roots
from trainer.remote.web import GuardedClient
from trainer.storage.local import LocalObjectStore


def test_object_deleted_during_download_is_not_in_dataset(store, fetch):
    gone = store.root / "datasets/p/s/images/train/2.jpg"
    store.during = lambda ref: gone.unlink(missing_ok=True)
    assert "images/train/2.jpg" not in content(fetch("storage:p/s/data.yaml"))


def test_dataset_edited_during_download_is_downloaded_again(store, fetch):
    edits = iter([{"images/train/9.jpg": b"added"}])
    store.during = lambda ref: store.put(next(edits, {})) if ref.key.endswith("1.jpg") else None
    assert content(fetch("storage:p/s/data.yaml")) == {**DATASET, "images/train/9.jpg": b"added"}


def test_dataset_is_downloaded_again_if_yaml_was_edited_during_download(store, fetch):
    edits = iter([{"data.yaml": YAML.replace("[a]", "[b]").encode()}])
    store.during = lambda ref: store.put(next(edits, {})) if ref.key.endswith("1.jpg") else None
    assert b"[b]" in content(fetch("storage:p/s/data.yaml"))["data.yaml"]


def test_dataset_that_keeps_changing_is_rejected(store, fetch):
    numbers = iter(range(1000))
    store.during = lambda ref: store.put({"images/train/1.jpg": str(next(numbers)).encode()})
    with pytest.raises(DatasetError, match=r"changed during each of 3 downloads \(last change: 'images/train/1.jpg'\)"):
        fetch("storage:p/s/data.yaml")


def test_error_about_listed_but_missing_object_contains_its_name(store, fetch):
    def refuse(ref):
        if ref.key.endswith("2.jpg"):
            raise ObjectMissing(f"object {ref.key!r} does not exist in bucket {ref.bucket!r}")

    store.during = refuse
    with pytest.raises(ObjectMissing, match=r"images/train/2.jpg"):
        fetch("storage:p/s/data.yaml")


def test_failed_listing_is_an_error(store, fetch, monkeypatch):
    def half(folder):
        yield from list(LocalObjectStore.list(store, folder))[:3]
        raise Unavailable("page 2 failed")

    monkeypatch.setattr(store, "list", half)
    with pytest.raises(Unavailable, match=r"page 2"):
        fetch("storage:p/s/data.yaml")


def test_truncated_object_is_rejected(store, fetch, root, monkeypatch):
    def short(ref, path, stop, **_):
        path.write_bytes(YAML.encode() if ref.key.endswith("yaml") else b"")
        return store.stat(ref)

    monkeypatch.setattr(store, "download", short)
    with pytest.raises(DatasetError, match=r"has 0 of"):
        fetch("storage:p/s/data.yaml")


def test_object_key_with_path_traversal_is_rejected(store, fetch, monkeypatch):
    def evil(folder):
        for info in LocalObjectStore.list(store, folder):
            key = info.ref.key.replace("train/1.jpg", "../../../../x.jpg")
            yield ObjectInfo(ref=type(info.ref)(bucket=folder.bucket, key=key), bytes=info.bytes, etag=info.etag)

    monkeypatch.setattr(store, "list", evil)
    with pytest.raises(DatasetError, match=r"leads outside the dataset"):
        fetch("storage:p/s/data.yaml")


def test_download_can_be_stopped(store, fetch, root):
    stop = StopSignal()
    store.put({f"images/train/x{n}.jpg": b"x" * 100 for n in range(200)})
    store.during = lambda ref: (
        stop.set(StopReason.CANCELED) if ref.key.endswith("x10.jpg") else None,
        time.sleep(0.005),
    )
    with pytest.raises(Stopped) as caught:
        fetch("storage:p/s/data.yaml", stop)
    assert caught.value.reason is StopReason.CANCELED
    assert len(store.downloads) < 150
    assert list((root / ".cache/tmp").iterdir()) == []


def test_stopped_download_is_resumed(store, fetch):
    stop = StopSignal()
    store.put({f"images/train/x{n}.jpg": b"x" * 100 for n in range(100)})
    store.during = lambda ref: stop.set(StopReason.SHUTDOWN) if ref.key.endswith("x50.jpg") else None
    with pytest.raises(Stopped):
        fetch("storage:p/s/data.yaml", stop)
    before = len(store.images)
    fetch("storage:p/s/data.yaml")
    assert len(store.images) <= 106 + 5
    assert before > 10


def test_first_failure_stops_other_downloads(store, fetch):
    store.put({f"images/train/x{n}.jpg": b"x" * 100 for n in range(300)})

    def fail(ref):
        time.sleep(0.002)
        if ref.key.endswith("x5.jpg"):
            raise Misconfigured("the key is refused")

    store.during = fail
    with pytest.raises(Misconfigured, match=r"refused"):
        fetch("storage:p/s/data.yaml")
    assert len(store.downloads) < 305


def test_full_disk_raises_machine_failed_before_download(store, root, server):
    free = shutil.disk_usage(root).free
    web = GuardedClient()
    cache = ContentCache(root / ".cache", max_bytes=1 << 30, reserve=free * 2)
    fetcher = Fetcher(rules=ReferenceRules(Roots(root), "datasets"), cache=cache, web=web, store=store, decode=here)
    ref = parse_reference("storage:p/s/data.yaml", ReferenceRules(Roots(root), "datasets"))
    with pytest.raises(MachineFailed, match=r"too full"):
        fetcher.fetch(ref, root / "run/source", StopSignal(), lambda _: None)
    assert store.images == []
    web.close()


def test_entries_in_use_are_not_evicted_by_other_run(store, root, fetcher, fetch):
    fetch("storage:p/s/data.yaml", staging=root / "run/source")
    ContentCache(root / ".cache", max_bytes=0, reserve=0).make_room(0)
    store.downloads.clear()
    fetch("storage:p/s/data.yaml")
    assert store.images == []
    shutil.rmtree(root / "run")
    for folder in root.glob("run*"):
        shutil.rmtree(folder)
    ContentCache(root / ".cache", max_bytes=0, reserve=0).make_room(0)
    fetch("storage:p/s/data.yaml")
    assert len(store.images) == 6


def test_concurrent_runs_all_get_complete_dataset(store, fetch):
    store.put({f"images/train/x{n}.jpg": os.urandom(500) for n in range(200)})
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(content(fetch("storage:p/s/data.yaml")))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 207
