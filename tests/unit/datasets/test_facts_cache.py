"""The cache of image facts (format, size, digest): only new and changed images are read.

A change is noticed even if the file has the same size and modification time.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.dataset_painter import OnDisk, drawn, paint
from trainer.core.dataset import DatasetOrder
from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.datasets.checks import statistics
from trainer.datasets.decoder import here
from trainer.datasets.images import facts_cache
from trainer.datasets.images.facts_cache import FactsCache, identity
from trainer.datasets.images.header import Facts
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots

FACT = Facts("jpeg", 3, 4, 5, b"digest", "broken", has_trailing_data=True)


def order(*sources: str, owner: str | None = None) -> DatasetOrder:
    return DatasetOrder(sources=sources, owner=owner)


@pytest.fixture
def read_images(monkeypatch) -> list[str]:
    """Return a list that receives the name of each image that the service reads."""
    seen: list[str] = []

    def look(path: str) -> Facts:
        seen.append(Path(path).name)
        return facts(path)

    facts = statistics.facts
    monkeypatch.setattr(statistics, "facts", look)
    return seen


def prepare(tmp_path: Path, view: str):
    datasets = FetchedDatasets(
        OnDisk(), ReferenceRules(Roots(tmp_path), "datasets"), facts=FactsCache(tmp_path / "facts"), decode=here
    )
    return datasets.prepare(order(str(tmp_path / "set/data.yaml")), tmp_path / view, StopSignal(), lambda _: None)


def test_second_run_reads_no_image_and_has_same_result(tmp_path, read_images):
    paint(tmp_path / "set")
    first = prepare(tmp_path, "v1")
    assert len(read_images) == 8
    read_images.clear()
    second = prepare(tmp_path, "v2")
    assert read_images == []
    assert (second.fingerprint, second.summary) == (first.fingerprint, first.summary)


def test_changed_image_with_same_time_and_size_is_read_again(tmp_path, read_images):
    paint(tmp_path / "set")
    first = prepare(tmp_path, "v1")
    path = tmp_path / "set/images/train/0000.jpg"
    times, data = (path.stat().st_atime_ns, path.stat().st_mtime_ns), bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=times)
    read_images.clear()
    second = prepare(tmp_path, "v2")
    assert read_images == ["0000.jpg"]
    assert second.fingerprint != first.fingerprint


def test_image_damaged_between_runs_is_rejected(tmp_path):
    paint(tmp_path / "set")
    prepare(tmp_path, "v1")
    (tmp_path / "set/images/train/0001.jpg").write_bytes(b"junk")
    with pytest.raises(DatasetError, match=r"0001\.jpg"):
        prepare(tmp_path, "v2")


def test_added_and_removed_images_are_noticed(tmp_path, read_images):
    paint(tmp_path / "set")
    prepare(tmp_path, "v1")
    (tmp_path / "set/images/train/0000.jpg").unlink()
    drawn(99).image.save(tmp_path / "set/images/train/0099.jpg")
    read_images.clear()
    assert prepare(tmp_path, "v2").images["train"] == 6
    assert read_images == ["0099.jpg"]


def test_saved_image_facts_are_loaded_unchanged(tmp_path):
    cache = FactsCache(tmp_path / "facts")
    assert cache.load(order("a")) == {}
    cache.save(order("a"), {"id": FACT})
    assert cache.load(order("a")) == {"id": FACT}
    assert cache.load(order("b")) == {}
    assert cache.load(order("a", owner="ann")) == {}
    assert [path.suffix for path in (tmp_path / "facts").iterdir()] == [".json"]


@pytest.mark.parametrize(
    "content", [b"", b"junk", b"[]", b"{}", b'{"version": 1, "facts": {"a": [1]}}', b"\xff\xfe", b"null"]
)
def test_damaged_file_of_image_facts_is_ignored(tmp_path, content):
    cache = FactsCache(tmp_path)
    cache.save(order("a"), {"id": FACT})
    next(tmp_path.glob("*.json")).write_bytes(content)
    assert cache.load(order("a")) == {}


def test_image_facts_of_other_version_are_ignored(tmp_path, monkeypatch):
    cache = FactsCache(tmp_path)
    cache.save(order("a"), {"id": FACT})
    monkeypatch.setattr(facts_cache, "VERSION", facts_cache.VERSION + 1)
    assert cache.load(order("a")) == {}


def test_unwritable_folder_of_image_facts_is_ignored(tmp_path):
    (tmp_path / "file").write_text("")
    FactsCache(tmp_path / "file/facts").save(order("a"), {"id": FACT})
    assert FactsCache(tmp_path / "file/facts").load(order("a")) == {}


@pytest.mark.parametrize("limit", ["MAX_DATASETS", "MAX_BYTES"])
def test_image_facts_of_least_recently_used_datasets_are_removed(tmp_path, monkeypatch, limit):
    cache = FactsCache(tmp_path)
    cache.save(order("a"), {"id": FACT})
    (saved,) = tmp_path.glob("*.json")
    monkeypatch.setattr(facts_cache, limit, {"MAX_DATASETS": 2, "MAX_BYTES": 2 * saved.stat().st_size}[limit])
    for number, source in enumerate("abc"):
        cache.save(order(source), {"id": FACT})
        os.utime(max(tmp_path.glob("*.json"), key=lambda path: path.stat().st_mtime_ns), ns=(number, number + 1))
    cache.save(order("d"), {"id": FACT})
    assert [bool(cache.load(order(source))) for source in "abcd"] == [False, False, True, True]


def test_hard_link_changes_identity_of_user_file_but_not_of_cached_object(tmp_path):
    path = tmp_path / "a"
    path.write_text("x")
    (tmp_path / "b").hardlink_to(path)
    ours, users = identity(str(path), is_owned=True), identity(str(path), is_owned=False)
    (tmp_path / "c").hardlink_to(path)
    assert identity(str(path), is_owned=True) == ours
    assert identity(str(path), is_owned=False) != users
    assert identity(str(tmp_path / "none"), is_owned=True) is None


@pytest.mark.parametrize("is_owned", [True, False], ids=["extracted archive", "file of the user"])
def test_changed_file_cannot_keep_its_identity(tmp_path, is_owned):
    path = tmp_path / "a"
    path.write_text("x")
    before, found = identity(str(path), is_owned=is_owned), path.stat()
    path.write_text("y")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert identity(str(path), is_owned=is_owned) != before
