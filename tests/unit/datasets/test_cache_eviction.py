"""Eviction from the content cache, entries in use, and removal of leftovers."""

import multiprocessing
import os
import shutil
import time

import pytest

from tests.cache_entries import put, put_tree
from trainer.core.errors import HostUnfit, MachineFailed
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.incoming import LARGE

FREE = shutil.disk_usage("/tmp").free


def test_least_recently_used_entry_is_evicted_first(cache):
    for number in range(10):
        put(cache, str(number), age=100 - number)
    assert cache.get("0", 100) is not None  # a lookup counts as a use
    cache.make_room(250)
    present = [number for number in range(10) if cache.get(str(number), 100)]
    assert present == [0, 4, 5, 6, 7, 8, 9]


def test_nothing_is_evicted_up_to_the_size_limit(cache):
    for number in range(10):
        put(cache, str(number))
    cache.make_room(0)
    assert all(cache.get(str(number), 100) for number in range(10))


def test_entry_in_use_is_kept_while_folder_of_run_exists(cache, tmp_path):
    run = tmp_path / "run/source"
    run.mkdir(parents=True)
    cache.mark_in_use(run, ["a", "tree"])
    put(cache, "a", age=500)
    put_tree(cache, "tree", age=500)
    put(cache, "b", age=100)
    cache.make_room(1000)
    assert cache.get("a", 100)
    assert cache.get_tree("tree")
    assert not cache.get("b", 100)
    shutil.rmtree(tmp_path / "run")
    cache.make_room(1000)
    assert not cache.get("a", 100)
    assert not cache.get_tree("tree")
    assert list((cache.root / "in_use").iterdir()) == []


def test_entry_in_use_is_kept_if_cache_is_a_symlink(tmp_path):
    (tmp_path / "far/away/disk").mkdir(parents=True)
    (tmp_path / "root/run").mkdir(parents=True)
    (tmp_path / "root/.cache").symlink_to(tmp_path / "far/away/disk")
    cache = ContentCache(tmp_path / "root/.cache", max_bytes=0, reserve=0)
    cache.mark_in_use(tmp_path / "root/run", ["a"])
    put(cache, "a")
    cache.make_room(0)
    assert cache.get("a", 100)


def test_entry_in_use_by_other_process_is_kept(cache, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    cache.mark_in_use(run, ["a"])
    put(cache, "a", age=500)
    process = multiprocessing.get_context("spawn").Process(target=_evict_all, args=(cache.root,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert cache.get("a", 100)


def _evict_all(root):
    ContentCache(root, max_bytes=0, reserve=0).make_room(0)


def test_hard_linked_entry_is_not_evicted(cache, tmp_path):
    os.link(put(cache, "a", age=500), tmp_path / "view")
    cache.make_room(1000)
    assert cache.get("a", 100)
    (tmp_path / "view").unlink()
    cache.make_room(1000)
    assert not cache.get("a", 100)


def test_trees_are_evicted_completely(cache):
    stored = put_tree(cache, "old", age=500, size=800)
    put_tree(cache, "new", size=100)
    cache.make_room(500)
    assert not stored.exists()
    assert cache.get_tree("old") is None
    assert cache.get_tree("new") is not None
    assert list((cache.root / "tmp").iterdir()) == []


def test_cache_stores_files_after_its_folder_was_removed(cache, tmp_path):
    put(cache, "a")
    put_tree(cache, "t")
    shutil.rmtree(cache.root)
    assert cache.get("a", 100) is None
    assert cache.get_tree("t") is None
    cache.mark_in_use(tmp_path, ["a"])
    cache.make_room(0)
    put(cache, "a")
    put_tree(cache, "t")
    assert cache.get("a", 100)


@pytest.mark.parametrize("content", [b"", b"\0" * 100])
def test_damaged_use_mark_is_removed(cache, content):
    cache.make_room(0)
    (cache.root / "in_use/damaged").write_bytes(content)
    put(cache, "a", age=500)
    cache.make_room(1000)
    assert not cache.get("a", 100)
    assert os.listdir(cache.root / "in_use") == []


def test_full_disk_raises_host_unfit_with_path_and_sizes(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 60, reserve=0)
    with pytest.raises(HostUnfit, match=f"{tmp_path}/cache is too full: the dataset needs .* MiB, .* MiB are free"):
        cache.make_room(FREE * 2)


def test_reserved_disk_space_is_not_used(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 60, reserve=FREE * 2)
    with pytest.raises(HostUnfit, match="must stay free"):
        cache.require_free(0)


def test_entries_are_evicted_if_disk_is_full_even_below_size_limit(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 60, reserve=FREE * 2)
    put(cache, "a", age=10)
    with pytest.raises(MachineFailed):
        cache.make_room(1)
    assert cache.get("a", 100) is None


def test_leftovers_of_crash_are_removed_after_a_day(cache, monkeypatch):
    monkeypatch.setattr("trainer.datasets.cache.incoming.STALE_SECONDS", 0.3)
    with cache.temporary():
        pass
    (cache.root / "tmp/old").write_bytes(b"half")
    (cache.root / "tmp/older").mkdir()
    time.sleep(0.4)
    (cache.root / "tmp/young").write_bytes(b"half")
    os.utime(cache.root / "tmp/young", (1, 1))  # like `put`, which sets a time that does not depend on the age
    cache.make_room(0)
    assert os.listdir(cache.root / "tmp") == ["young"]


def test_tidy_removes_leftovers_and_use_marks_of_missing_folders(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.datasets.cache.incoming.STALE_SECONDS", 0.0)
    cache.tidy()
    for name in ("alive", "dead"):
        (tmp_path / name).mkdir()
        cache.mark_in_use(tmp_path / name, [name])
    (tmp_path / "dead").rmdir()
    (cache.root / "tmp/half").mkdir()
    (cache.root / "in_use/dangling").symlink_to("nowhere")
    (cache.root / "in_use/folder").mkdir()
    (cache.root / "in_use/garbage").write_bytes(b"\xff\xfe\0")

    cache.tidy()

    assert os.listdir(cache.root / "tmp") == []
    kept = set(os.listdir(cache.root / "in_use")) - {"dangling", "folder"}
    assert ["alive" in (cache.root / "in_use" / name).read_text() for name in kept] == [True]


def test_download_in_progress_is_not_removed(cache, monkeypatch):
    monkeypatch.setattr("trainer.datasets.cache.incoming.STALE_SECONDS", 0.0)
    with cache.receiving("slow", LARGE + 1) as path:
        path.with_name("object.part").write_bytes(b"half")
        cache.tidy()
        assert path.with_name("object.part").exists()
    cache.tidy()
    assert os.listdir(cache.root / "tmp") == []
