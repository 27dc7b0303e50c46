"""Datasets from an object store."""

import os
import time

import pytest

from tests.dataset_sources import DATASET, YAML, content, zipped
from trainer.core.errors import DatasetError, Misconfigured, ObjectMissing
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.decoder import here
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import ReferenceRules, parse_reference
from trainer.datasets.source.roots import Roots
from trainer.remote.web import GuardedClient


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


def test_deleted_object_is_not_in_next_download(store, fetch):
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


def test_reference_can_name_a_folder_or_a_yaml_with_any_name(store, fetch):
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


def test_default_bucket_has_priority_over_named_bucket(store, allowing):
    fetch = allowing("others")
    store.put({"data.yaml": YAML.encode(), "images/val/o.jpg": b"other"}, "others/set")
    assert content(fetch("storage:others/set/data.yaml"))["images/val/o.jpg"] == b"other"
    store.put({"data.yaml": YAML.encode(), "images/val/d.jpg": b"default"}, "datasets/others/set")
    assert content(fetch("storage:others/set/data.yaml"))["images/val/d.jpg"] == b"default"


def test_error_about_missing_dataset_names_both_buckets(allowing):
    fetch = allowing("nope")
    with pytest.raises(ObjectMissing, match=r"'nope/x.yaml' in bucket 'datasets' and no 'x.yaml' in bucket 'nope'"):
        fetch("storage:nope/x.yaml")


def test_yaml_at_top_of_bucket_is_fetched_only_with_folders_that_it_names(store, fetch):
    store.put(DATASET, "datasets")
    assert content(fetch("storage:data.yaml")) == DATASET


def test_yaml_at_top_of_bucket_is_rejected_if_it_names_no_folder(store, fetch):
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


def test_dataset_fetched_into_temporary_folder_is_not_downloaded_again(store, root, fetcher, fetch):
    ref = parse_reference("storage:p/s/data.yaml", ReferenceRules(Roots(root), "datasets"))
    with fetcher.cache.temporary() as place:
        fetcher.fetch(ref, place / "source", StopSignal(), lambda _: None)
    assert len(store.images) == 6
    assert sorted(os.listdir(root)) == [".cache"]
    store.downloads.clear()
    assert content(fetch("storage:p/s/data.yaml")) == DATASET
    assert store.images == []


def test_storage_reference_without_configured_storage_is_rejected(root):
    web = GuardedClient()
    cache = ContentCache(root / ".cache", max_bytes=1 << 30, reserve=0)
    fetcher = Fetcher(rules=ReferenceRules(Roots(root), "datasets"), cache=cache, web=web, store=None, decode=here)
    ref = parse_reference("storage:p/s/data.yaml", ReferenceRules(Roots(root), "datasets"))
    with pytest.raises(Misconfigured, match=r"No storage is configured"):
        fetcher.fetch(ref, root / "run/source", StopSignal(), lambda _: None)
    web.close()


def test_error_about_stored_yaml_contains_its_name(store, fetch):
    store.put({"data.yaml": b"names: ["})
    with pytest.raises(DatasetError, match=r"^p/s/data.yaml is not valid YAML"):
        fetch("storage:p/s/data.yaml")
