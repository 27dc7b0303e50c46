import json
import os
import shutil
import tarfile
import threading
import time
import zipfile

import pytest

from tests.storage_server import StorageServer
from tests.web_server import body, silent, web_server
from trainer.core.dataset import HttpRef
from trainer.core.errors import DatasetError, MachineFailed, Misconfigured, ObjectMissing, Unavailable
from trainer.core.ports import ObjectInfo
from trainer.core.retry import RetryPolicy
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import Roots, parse_reference
from trainer.remote.storage_api import StorageApi
from trainer.remote.web import GuardedClient
from trainer.storage.local import LocalObjectStore
from trainer.storage.supabase import SupabaseObjectStore

YAML = "path: .\ntrain: images/train\nval: images/val\nnames: [a]\n"
DATASET = {
    "data.yaml": YAML.encode(),
    "images/train/1.jpg": b"one",
    "images/train/2.jpg": b"two!",
    "images/val/3.png": b"three",
    "labels/train/1.txt": b"0 .5 .5 .1 .1\n",
    "labels/train/2.txt": b"",
    "labels/val/3.txt": b"0 .5 .5 .1 .1\n",
}


class WatchedStore(LocalObjectStore):
    """A local store that counts downloads and calls a hook of the test during a download."""

    def __init__(self, root):
        super().__init__(root)
        self.root = root
        self.downloads = []
        self.listings = 0
        self.during = lambda ref: None

    def put(self, files, folder="datasets/p/s"):
        for name, content in files.items():
            path = self.root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def list(self, folder):
        self.listings += 1
        return super().list(folder)

    def download(self, ref, path, stop, **options):
        self.downloads.append(ref.key)
        self.during(ref)
        return super().download(ref, path, stop, **options)

    @property
    def images(self):
        return sorted(key for key in self.downloads if not key.endswith(".yaml"))


@pytest.fixture
def store(tmp_path):
    made = WatchedStore(tmp_path / "store")
    made.put(DATASET)
    return made


@pytest.fixture
def server():
    with web_server() as started:
        yield started


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def fetcher(root, store, server):
    web = GuardedClient(allowed_hosts=[server.host], policy=RetryPolicy(tries=2, first_wait=0.01, total_seconds=5))
    cache = ContentCache(root / ".cache", max_bytes=1 << 30, reserve=0)
    yield Fetcher(roots=Roots(root), cache=cache, web=web, store=store, datasets_bucket="datasets", concurrency=4)
    web.close()


@pytest.fixture
def fetch(fetcher, root):
    numbers = iter(range(100))

    def do(text, stop=None, on_event=lambda _: None, staging=None):
        ref = (
            HttpRef(url=text)
            if text.startswith("http")
            else parse_reference(
                text,
                dataset_root=root,
                datasets_bucket="datasets",
            )
        )
        return fetcher.fetch(ref, staging or root / f"run{next(numbers)}/source", stop or StopSignal(), on_event)

    return do


def content(fetched):
    return {
        path.relative_to(fetched.root).as_posix(): path.read_bytes()
        for path in fetched.root.rglob("*")
        if path.is_file()
    }


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path.read_bytes()


# ── this host ──


def test_yaml_of_user_is_used_in_place(root, fetch):
    (root / "set").mkdir()
    (root / "set/data.yaml").write_text(YAML)
    fetched = fetch("set/data.yaml")
    assert (fetched.root, str(fetched.entry), fetched.is_private) == (root / "set", "data.yaml", False)
    assert os.listdir(root / "set") == ["data.yaml"]


def test_folder_of_user_has_no_entry(root, fetch):
    (root / "set").mkdir()
    fetched = fetch(str(root / "set"))
    assert (fetched.root, fetched.entry, fetched.is_private) == (root / "set", None, False)


def test_archive_of_user_is_extracted_once(root, fetch):
    zipped(root / "set.zip", DATASET)
    first = fetch("set.zip")
    assert first.is_private
    assert content(first) == DATASET
    inode = (first.root / "data.yaml").stat().st_ino
    again = fetch("set.zip")
    assert (again.root / "data.yaml").stat().st_ino == inode


def test_archive_is_recognized_without_suffix(root, fetch):
    zipped(root / "download", DATASET)
    assert content(fetch("download")) == DATASET


def test_changed_archive_is_extracted_again(root, fetch):
    zipped(root / "set.zip", DATASET)
    fetch("set.zip")
    zipped(root / "set.zip", {"data.yaml": b"other"})
    assert content(fetch("set.zip")) == {"data.yaml": b"other"}


def test_damaged_tree_in_cache_is_rebuilt(root, fetch):
    zipped(root / "set.zip", DATASET)
    first = fetch("set.zip")
    (first.root / "images/val/3.png").unlink()
    assert content(fetch("set.zip")) == DATASET


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda listing: b"\0" * len(listing),
        lambda listing: listing[: listing.rindex(b"\n[") + 1],  # one file fewer, and no truncated line
        lambda listing: listing[: len(listing) // 2],
        lambda listing: listing[: len(listing) // 2] + b"\0" * (len(listing) // 2),
        lambda listing: b"[]\n" + listing.partition(b"\n")[2],
        lambda _: None,
    ],
    ids=["empty", "zeros", "a file less", "cut", "zeros at its end", "another version", "gone"],
)
def test_tree_with_damaged_listing_is_rebuilt(root, fetch, damage):
    zipped(root / "set.zip", DATASET)
    first = fetch("set.zip")
    listing = first.root.parent / "listing.jsonl"
    damaged = damage(listing.read_bytes())
    listing.unlink()
    if damaged is not None:
        listing.write_bytes(damaged)
    (first.root.parent / ".size").write_bytes(b"")

    assert content(fetch("set.zip")) == DATASET
    zipped(root / "other.zip", DATASET)
    assert content(fetch("other.zip")) == DATASET


def test_large_archive_is_synced_during_extraction(root, fetch, monkeypatch):
    synced = []
    monkeypatch.setattr("trainer.datasets.source.archive_trees.SYNC_STEP", 10)
    monkeypatch.setattr(
        "trainer.datasets.source.archive_trees.sync_below", lambda tree: synced.append(len(list(tree.rglob("*.*"))))
    )
    zipped(root / "set.zip", DATASET)
    assert content(fetch("set.zip")) == DATASET
    assert len(synced) > 1


@pytest.mark.parametrize("text", ["none.yaml", "empty.yaml", "../x.yaml", "/etc/passwd", "pipe"])
def test_unreadable_source_has_clear_message(root, fetch, text):
    (root / "empty.yaml").write_text("")
    os.mkfifo(root / "pipe")
    with pytest.raises(DatasetError, match=r"^data_yaml: "):
        fetch(text)


# ── the object store ──


def test_stored_dataset_is_fetched_completely(store, fetch):
    fetched = fetch("storage:p/s/data.yaml")
    assert content(fetched) == DATASET
    assert (str(fetched.entry), fetched.is_private) == ("data.yaml", True)


def test_second_run_downloads_nothing(store, fetch):
    fetch("storage:p/s/data.yaml")
    assert len(store.downloads) == 7
    assert content(fetch("storage:p/s/data.yaml")) == DATASET
    assert len(store.downloads) == 7


def test_only_changed_objects_are_downloaded(store, fetch):
    fetch("storage:p/s/data.yaml")
    store.downloads.clear()
    store.put({"images/train/2.jpg": b"changed"})
    assert content(fetch("storage:p/s/data.yaml"))["images/train/2.jpg"] == b"changed"
    assert store.images == ["p/s/images/train/2.jpg"]


def test_deleted_object_is_not_in_next_tree(store, fetch):
    fetch("storage:p/s/data.yaml")
    (store.root / "datasets/p/s/images/train/2.jpg").unlink()
    assert "images/train/2.jpg" not in content(fetch("storage:p/s/data.yaml"))


def test_unrelated_objects_are_not_downloaded(store, fetch):
    store.put(
        {
            "thumbnails/1.jpg": b"t",
            "images/train/thumbnails/1.jpg": b"t",
            "labels/train.cache": b"evil",
            "images/train/1.npy": b"evil",
            "other/images/x.jpg": b"o",
            "video.mp4": b"v",
            ".hidden.jpg": b"h",
            "classes.txt": b"a",
        }
    )
    assert content(fetch("storage:p/s/data.yaml")) == {**DATASET, "classes.txt": b"a"}


def test_yaml_of_any_name_and_folder_are_datasets(store, fetch):
    store.put({"17300-my set.v2": YAML.encode()})
    assert str(fetch("storage:p/s/17300-my set.v2").entry) == "17300-my set.v2"
    folder = fetch("storage:p/s")
    assert folder.entry is None
    assert content(folder) == DATASET


def test_annotation_file_is_fetched_with_its_folder(store, fetch):
    files = {"annotations.json": b"{}", "images/1.jpg": b"1"}
    store.put(files, "datasets/coco")
    fetched = fetch("storage:coco/annotations.json")
    assert content(fetched) == files
    assert str(fetched.entry) == "annotations.json"


def test_default_bucket_is_preferred_to_named_bucket(store, fetch):
    store.put({"data.yaml": YAML.encode(), "images/val/o.jpg": b"other"}, "others/set")
    assert content(fetch("storage:others/set/data.yaml"))["images/val/o.jpg"] == b"other"
    store.put({"data.yaml": YAML.encode(), "images/val/d.jpg": b"default"}, "datasets/others/set")
    assert content(fetch("storage:others/set/data.yaml"))["images/val/d.jpg"] == b"default"


def test_missing_dataset_names_both_places(fetch):
    with pytest.raises(ObjectMissing, match=r"'nope/x.yaml' in bucket 'datasets' nor 'x.yaml' in bucket 'nope'"):
        fetch("storage:nope/x.yaml")


def test_yaml_at_top_of_bucket_fetches_only_named_folders(store, fetch):
    store.put(DATASET, "datasets")
    assert content(fetch("storage:data.yaml")) == DATASET


def test_yaml_at_top_of_bucket_without_folders_is_rejected(store, fetch):
    store.put({"data.yaml": b"train: train.txt\nval: val.txt\nnames: [a]\n"}, "datasets")
    with pytest.raises(DatasetError, match=r"Put the dataset into its own folder"):
        fetch("storage:data.yaml")


def test_stored_archive_is_downloaded_once(store, root, fetch):
    store.put({"set.zip": zipped(root / "x.zip", DATASET)}, "datasets/p")
    assert content(fetch("storage:p/set.zip")) == DATASET
    assert content(fetch("storage:p/set.zip")) == DATASET
    assert store.downloads == ["p/set.zip"]


def test_empty_objects_are_rejected_except_labels(store, fetch):
    store.put({"images/train/1.jpg": b"", "images/val/3.png": b""})
    with pytest.raises(DatasetError, match=r"2 stored files are empty: 'images/train/1.jpg', 'images/val/3.png'"):
        fetch("storage:p/s/data.yaml")


def test_object_deleted_during_download_is_dropped(store, fetch):
    gone = store.root / "datasets/p/s/images/train/2.jpg"
    store.during = lambda ref: gone.unlink(missing_ok=True)
    assert "images/train/2.jpg" not in content(fetch("storage:p/s/data.yaml"))


def test_dataset_edited_during_download_is_synced_again(store, fetch):
    edits = iter([{"images/train/9.jpg": b"added"}])
    store.during = lambda ref: store.put(next(edits, {})) if ref.key.endswith("1.jpg") else None
    assert content(fetch("storage:p/s/data.yaml")) == {**DATASET, "images/train/9.jpg": b"added"}


def test_yaml_edited_during_download_is_synced_again(store, fetch):
    edits = iter([{"data.yaml": YAML.replace("[a]", "[b]").encode()}])
    store.during = lambda ref: store.put(next(edits, {})) if ref.key.endswith("1.jpg") else None
    assert b"[b]" in content(fetch("storage:p/s/data.yaml"))["data.yaml"]


def test_dataset_that_keeps_changing_is_rejected(store, fetch):
    numbers = iter(range(1000))
    store.during = lambda ref: store.put({"images/train/1.jpg": str(next(numbers)).encode()})
    with pytest.raises(DatasetError, match=r"edited during its download, 3 times \(last 'images/train/1.jpg'\)"):
        fetch("storage:p/s/data.yaml")


def test_listed_but_missing_object_is_named(store, fetch):
    def refuse(ref):
        if ref.key.endswith("2.jpg"):
            raise ObjectMissing(f"object {ref.key!r} does not exist in bucket {ref.bucket!r}")

    store.during = refuse
    with pytest.raises(ObjectMissing, match=r"images/train/2.jpg"):
        fetch("storage:p/s/data.yaml")


def test_failed_listing_is_never_a_smaller_dataset(store, fetch, monkeypatch):
    def half(folder):
        yield from list(LocalObjectStore.list(store, folder))[:3]
        raise Unavailable("page 2 failed")

    monkeypatch.setattr(store, "list", half)
    with pytest.raises(Unavailable, match=r"page 2"):
        fetch("storage:p/s/data.yaml")


def test_truncated_object_is_named_and_not_kept(store, fetch, root, monkeypatch):
    def short(ref, path, stop, **_):
        path.write_bytes(YAML.encode() if ref.key.endswith("yaml") else b"")
        return store.stat(ref)

    monkeypatch.setattr(store, "download", short)
    with pytest.raises(DatasetError, match=r"arrived with 0 of"):
        fetch("storage:p/s/data.yaml")


def test_listed_name_that_leads_outside_is_rejected(store, fetch, monkeypatch):
    def evil(folder):
        for info in LocalObjectStore.list(store, folder):
            key = info.ref.key.replace("train/1.jpg", "../../../../x.jpg")
            yield ObjectInfo(ref=type(info.ref)(bucket=folder.bucket, key=key), bytes=info.bytes, etag=info.etag)

    monkeypatch.setattr(store, "list", evil)
    with pytest.raises(DatasetError, match=r"leads out of the dataset"):
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


def test_progress_has_files_bytes_rate_and_time_left(store, fetch):
    store.put({f"images/train/x{n}.jpg": b"x" * 1000 for n in range(60)})
    store.during = lambda ref: time.sleep(0.08)
    events = []
    began = time.monotonic()
    fetch("storage:p/s/data.yaml", on_event=events.append)
    begin, *events = events
    assert (begin.files, begin.bytes, begin.total_files) == (0, 0, 66)
    assert 2 <= len(events) <= 2 * (time.monotonic() - began) + 2
    assert (events[-1].files, events[-1].bytes) == (events[-1].total_files, events[-1].total_bytes)
    assert all(event.rate > 0 and event.eta_seconds >= 0 for event in events)


def test_full_disk_is_machine_failure_before_download(store, root, server):
    free = shutil.disk_usage(root).free
    web = GuardedClient()
    cache = ContentCache(root / ".cache", max_bytes=1 << 30, reserve=free * 2)
    fetcher = Fetcher(roots=Roots(root), cache=cache, web=web, store=store, datasets_bucket="datasets")
    ref = parse_reference("storage:p/s/data.yaml", dataset_root=root, datasets_bucket="datasets")
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


def test_concurrent_runs_both_get_complete_dataset(store, fetch):
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


@pytest.fixture
def cloud(root, server):
    """Return a fetcher that uses the Supabase store, and its server."""
    with StorageServer({"datasets": False}) as storage:
        api = StorageApi(storage.url, "service-key")
        policy = RetryPolicy(tries=4, first_wait=0.01, total_seconds=20)
        store = SupabaseObjectStore(api, notes=root / "notes", stop=StopSignal(), policy=policy)
        web = GuardedClient()
        cache = ContentCache(root / ".cache", max_bytes=1 << 30, reserve=0)
        yield storage, Fetcher(roots=Roots(root), cache=cache, web=web, store=store, datasets_bucket="datasets")
        web.close()
        api.close()


def test_supabase_listing_of_several_pages_is_complete(cloud, root):
    storage, fetcher = cloud
    files = {f"images/train/{n}.jpg": f"image {n}".encode() for n in range(1100)} | {"data.yaml": YAML.encode()}
    for name, data in files.items():
        storage.put("datasets", f"p/s/{name}", data)
    ref = parse_reference("storage:p/s/data.yaml", dataset_root=root, datasets_bucket="datasets")
    storage.fault("status", on="GET /object/", status=503, times=3)
    assert content(fetcher.fetch(ref, root / "run1", StopSignal(), lambda _: None)) == files
    sent = storage.sent
    assert content(fetcher.fetch(ref, root / "run2", StopSignal(), lambda _: None)) == files
    assert storage.sent == sent


def test_missing_supabase_dataset_names_both_places(cloud, root):
    storage, fetcher = cloud
    storage.put("datasets", "a/data.yaml", YAML.encode())
    for text in ("storage:nope/x.yaml", "storage:nope", "storage:a/x/data.yaml", "storage:datasets/b/data.yaml"):
        ref = parse_reference(text, dataset_root=root, datasets_bucket="datasets")
        with pytest.raises(ObjectMissing, match=r"there is neither 'nope|a/x|datasets/b.*' in bucket 'datasets'"):
            fetcher.fetch(ref, root / f"run-{text.replace('/', '-')}", StopSignal(), lambda _: None)


def test_supabase_folder_at_top_of_bucket_is_accepted(cloud, root):
    storage, fetcher = cloud
    storage.put("datasets", "a/data.yaml", YAML.encode())
    storage.put("datasets", "ab/data.yaml", YAML.encode())
    ref = parse_reference("storage:a", dataset_root=root, datasets_bucket="datasets")
    assert list(content(fetcher.fetch(ref, root / "run1", StopSignal(), lambda _: None))) == ["data.yaml"]


def test_interrupted_download_of_archive_is_resumed(cloud, root):
    storage, fetcher = cloud
    files = DATASET | {"images/train/big.jpg": os.urandom(20 << 20)}
    archive = zipped(root / "x.zip", files)
    storage.put("datasets", "p/set.zip", archive)
    ref = parse_reference("storage:p/set.zip", dataset_root=root, datasets_bucket="datasets")
    storage.fault("slow", on="GET /object/", rate=20e6)
    stop = StopSignal()

    def give_up(event):
        if event.bytes > 5 << 20:
            stop.set(StopReason.SHUTDOWN)

    with pytest.raises(Stopped):
        fetcher.fetch(ref, root / "run1", stop, give_up)
    before = storage.settled()
    assert content(fetcher.fetch(ref, root / "run2", StopSignal(), lambda _: None)) == files
    assert storage.sent - before < len(archive) - (4 << 20)
    assert os.listdir(root / ".cache/tmp") == []


def test_checked_dataset_is_not_downloaded_again(store, root, fetcher, fetch):
    ref = parse_reference("storage:p/s/data.yaml", dataset_root=root, datasets_bucket="datasets")
    with fetcher.scratch() as place:
        fetcher.fetch(ref, place / "source", StopSignal(), lambda _: None)
    assert len(store.images) == 6
    assert sorted(os.listdir(root)) == [".cache"]
    store.downloads.clear()
    assert content(fetch("storage:p/s/data.yaml")) == DATASET
    assert store.images == []


def test_missing_store_is_reported(root):
    web = GuardedClient()
    cache = ContentCache(root / ".cache", max_bytes=1 << 30, reserve=0)
    fetcher = Fetcher(roots=Roots(root), cache=cache, web=web, store=None, datasets_bucket="datasets")
    ref = parse_reference("storage:p/s/data.yaml", dataset_root=root, datasets_bucket="datasets")
    with pytest.raises(Misconfigured, match=r"No storage is configured"):
        fetcher.fetch(ref, root / "run/source", StopSignal(), lambda _: None)
    web.close()


# ── the web ──


def test_archive_of_url_is_cached_by_etag(server, root, fetch):
    server.pages["/set.zip"] = body(zipped(root / "x.zip", DATASET), 'ETag: "1"')
    assert content(fetch(server.url("/set.zip?token=1"))) == DATASET
    server.pages["/set.zip"] = body(b"not read", 'ETag: "1"')
    server.pages["/set.zip"] = body(b"x" * (root / "x.zip").stat().st_size, 'ETag: "1"')
    assert content(fetch(server.url("/set.zip?token=2"))) == DATASET


def test_archive_without_etag_is_cached_by_content(server, root, fetch):
    server.pages["/download"] = body(zipped(root / "x.zip", DATASET))
    first = fetch(server.url("/download?id=7"))
    assert content(first) == DATASET
    assert fetch(server.url("/download?id=7")).root == first.root


def test_yaml_of_url_fetches_listed_images(server, fetch):
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


def test_yaml_of_url_with_folders_is_rejected_with_advice(server, fetch):
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


def test_ndjson_export_becomes_yolo_tree(server, fetch):
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
def test_content_of_unknown_size_evicts_older_entries(server, root, fetcher, fetch, kind):
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


def test_stored_export_is_fetched_without_its_folder(server, store, fetch):
    export(server, RECORDS)
    lines = [json.dumps({**r, "url": server.url(f"/files/{n}")} if n else r) for n, r in enumerate(RECORDS)]
    lines += [" " * (5 << 20)]  # larger than a YAML may be
    store.put({"set.ndjson": "\n".join(lines).encode()})
    fetched = fetch("storage:p/s/set.ndjson")
    assert "images/val/b.png" in content(fetched)
    assert store.downloads == ["p/s/set.ndjson"]


def test_export_on_disk_may_name_local_images(root, fetch):
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
        ("/data.yaml", body(b"<html>login</html>"), "YAML"),
        ("/set.zip", body(b"<html>login</html>"), "neither a zip nor a tar"),
        ("/gone.zip", body(b"", status="404 Not RecognizedDataset"), "answers 404"),
    ],
)
def test_content_that_is_no_dataset_has_clear_message(server, fetch, path, answer, words):
    server.pages[path] = answer
    with pytest.raises((DatasetError, ObjectMissing), match=words):
        fetch(server.url(path))
