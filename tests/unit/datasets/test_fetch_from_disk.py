"""Datasets from local files."""

import os

import pytest

from tests.dataset_sources import DATASET, YAML, content, zipped
from trainer.core.errors import DatasetError


def test_yaml_of_user_is_used_in_place(root, fetch):
    (root / "set").mkdir()
    (root / "set/data.yaml").write_text(YAML)
    fetched = fetch("set/data.yaml")
    assert (fetched.root, str(fetched.entry), fetched.is_private) == (root / "set", "data.yaml", False)
    assert os.listdir(root / "set") == ["data.yaml"]


def test_folder_of_user_is_used_in_place(root, fetch):
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


def test_archive_without_suffix_is_recognized(root, fetch):
    zipped(root / "download", DATASET)
    assert content(fetch("download")) == DATASET


def test_changed_archive_is_extracted_again(root, fetch):
    zipped(root / "set.zip", DATASET)
    fetch("set.zip")
    zipped(root / "set.zip", {"data.yaml": b"other"})
    assert content(fetch("set.zip")) == {"data.yaml": b"other"}


def test_archive_with_same_size_and_time_but_other_content_is_extracted_again(root, fetch):
    for text in (b"first", b"other"):
        zipped(root / "set.zip", {"data.yaml": text})
        os.utime(root / "set.zip", (10**9, 10**9))
        assert content(fetch("set.zip")) == {"data.yaml": text}


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
        # the last line is missing, and the other lines are complete
        lambda listing: listing[: listing.rindex(b"\n[") + 1],
        lambda listing: listing[: len(listing) // 2],
        lambda listing: listing[: len(listing) // 2] + b"\0" * (len(listing) // 2),
        lambda listing: b"[]\n" + listing.partition(b"\n")[2],
        lambda _: None,
    ],
    ids=["empty", "zeros", "last file missing", "truncated", "zeros at the end", "other version", "missing"],
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
    monkeypatch.setattr("trainer.datasets.source.extraction.SYNC_STEP", 10)
    monkeypatch.setattr(
        "trainer.datasets.source.extraction.sync_below", lambda tree: synced.append(len(list(tree.rglob("*.*"))))
    )
    zipped(root / "set.zip", DATASET)
    assert content(fetch("set.zip")) == DATASET
    assert len(synced) > 1


@pytest.mark.parametrize("text", ["none.yaml", "empty.yaml", "../x.yaml", "/etc/passwd", "pipe"])
def test_error_about_invalid_source_names_the_setting(root, fetch, text):
    (root / "empty.yaml").write_text("")
    os.mkfifo(root / "pipe")
    with pytest.raises(DatasetError, match=r"^data_yaml: "):
        fetch(text)
