import contextlib
import errno
import multiprocessing
import os
import shutil
import threading
import time

import pytest

from trainer.core.errors import HostUnfit, MachineFailed
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.disk import on_this_disk
from trainer.datasets.cache.incoming import LARGE
from trainer.disk import durable

FREE = shutil.disk_usage("/tmp").free


@pytest.fixture
def cache(tmp_path):
    return ContentCache(tmp_path / "cache", max_bytes=1000, reserve=0)


def put(cache, identity, content=b"x" * 100, *, age=0.0):
    with cache.temporary() as path:
        path.write_bytes(content)
        stored = cache.put(identity, path)
    if age:
        os.utime(stored, (time.time() - age, stored.stat().st_mtime))
    return stored


def arrive(cache, batch, identity, content=b"x" * 100):
    with cache.temporary() as path:
        path.write_bytes(content)
        batch.put(identity, path)


def put_tree(cache, identity, *, age=0.0, size=100):
    with cache.temporary() as path:
        (path / "files").mkdir(parents=True)
        (path / "files/a.txt").write_bytes(b"x" * size)
        stored = cache.put_tree(identity, path, size, is_whole=lambda tree: (tree / "files/a.txt").exists())
    if age:
        os.utime(stored, (time.time() - age, stored.stat().st_mtime))
    return stored


def test_stored_file_is_found_by_identity(cache):
    put(cache, "a", b"content")
    assert cache.get("a", 7).read_bytes() == b"content"
    assert cache.get("b", 7) is None


def test_file_with_other_size_is_missing(cache):
    put(cache, "a", b"content")
    assert cache.get("a", 8) is None
    assert cache.get("a", 7) is None  # removed, because its content is unknown


def test_file_changed_through_link_is_missing(cache, tmp_path):
    stored = put(cache, "a", b"content")
    os.link(stored, tmp_path / "view")
    (tmp_path / "view").chmod(0o644)
    (tmp_path / "view").write_bytes(b"CONTENT")
    assert cache.get("a", 7) is None
    put(cache, "a", b"content")
    assert cache.get("a", 7).read_bytes() == b"content"
    assert (tmp_path / "view").read_bytes() == b"CONTENT"


def test_stored_files_are_read_only(cache):
    assert put(cache, "a").stat().st_mode & 0o777 == 0o444


def test_modification_time_depends_on_identity_only(cache, tmp_path):
    first = put(cache, "a").stat().st_mtime_ns
    other = ContentCache(tmp_path / "other", max_bytes=1000, reserve=0)
    assert put(other, "a").stat().st_mtime_ns == first
    assert put(other, "b").stat().st_mtime_ns != first


def test_temporary_file_is_removed_even_after_error(cache):
    def fail():
        with cache.temporary() as path:
            path.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with cache.temporary() as path:
        (path / "folder").mkdir(parents=True)
    assert list((cache.root / "tmp").iterdir()) == []
    assert list((cache.root).glob("objects/*/*")) == []


def test_large_download_keeps_its_path_until_complete(cache):
    def fail():
        with cache.receiving("a", 100 << 20) as path:
            (path.parent / "object.part").write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with cache.receiving("a", 100 << 20) as path:
        assert (path.parent / "object.part").read_bytes() == b"half"
        path.write_bytes(b"whole")
        cache.put("a", path)
    assert cache.get("a", 5)
    assert os.listdir(cache.root / "tmp") == []


def test_concurrent_downloads_of_one_object_have_different_paths(cache):
    with cache.receiving("a", 100 << 20) as one, cache.receiving("a", 100 << 20) as other:
        assert one != other
        one.write_bytes(b"one")
        other.write_bytes(b"other")
        cache.put("a", one)
    assert os.listdir(cache.root / "tmp") == []


def test_complete_but_rejected_download_is_removed(cache):
    def refuse():
        with cache.receiving("a", 100 << 20) as path:
            path.write_bytes(b"whole")
            raise KeyError

    with pytest.raises(KeyError):
        refuse()
    assert os.listdir(cache.root / "tmp") == []


def test_least_recently_used_entry_is_evicted_first(cache):
    for number in range(10):
        put(cache, str(number), age=100 - number)
    assert cache.get("0", 100) is not None  # mark it as used
    cache.make_room(250)
    present = [number for number in range(10) if cache.get(str(number), 100)]
    assert present == [0, 4, 5, 6, 7, 8, 9]


def test_nothing_is_evicted_below_limit(cache):
    for number in range(10):
        put(cache, str(number))
    cache.make_room(0)
    assert all(cache.get(str(number), 100) for number in range(10))


def test_pinned_entry_is_kept_while_holder_exists(cache, tmp_path):
    holder = tmp_path / "run/source"
    holder.mkdir(parents=True)
    cache.mark_in_use(holder, ["a", "tree"])
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


def test_pin_works_when_cache_is_a_symlink(tmp_path):
    (tmp_path / "far/away/disk").mkdir(parents=True)
    (tmp_path / "root/run").mkdir(parents=True)
    (tmp_path / "root/.cache").symlink_to(tmp_path / "far/away/disk")
    cache = ContentCache(tmp_path / "root/.cache", max_bytes=0, reserve=0)
    cache.mark_in_use(tmp_path / "root/run", ["a"])
    put(cache, "a")
    cache.make_room(0)
    assert cache.get("a", 100)


def test_pin_works_across_processes(cache, tmp_path):
    holder = tmp_path / "run"
    holder.mkdir()
    cache.mark_in_use(holder, ["a"])
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


def test_trees_are_evicted_whole(cache):
    stored = put_tree(cache, "old", age=500, size=800)
    put_tree(cache, "new", size=100)
    cache.make_room(500)
    assert not stored.exists()
    assert cache.get_tree("old") is None
    assert cache.get_tree("new") is not None
    assert list((cache.root / "tmp").iterdir()) == []


def test_emptied_cache_works(cache, tmp_path):
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


def test_first_of_two_equal_trees_is_kept(cache):
    first = put_tree(cache, "t")
    inode = first.stat().st_ino
    assert put_tree(cache, "t").stat().st_ino == inode
    assert list((cache.root / "tmp").iterdir()) == []


def test_damaged_tree_is_replaced_by_new_one(cache):
    stored = put_tree(cache, "t")
    (stored / "files/a.txt").unlink()
    assert put_tree(cache, "t") == stored
    assert (stored / "files/a.txt").exists()
    assert os.listdir(cache.root / "tmp") == []


@pytest.mark.parametrize("note", [b"", b"\0\0\0", b"\xff", None])
def test_tree_with_damaged_size_record_works(cache, note):
    stored = put_tree(cache, "t", age=500, size=800)
    (stored / ".size").unlink()
    if note is not None:
        (stored / ".size").write_bytes(note)
    put(cache, "a")
    assert cache.get_tree("t") == stored
    assert put_tree(cache, "t") == stored
    os.utime(stored, (1, 1))
    cache.make_room(100)  # by the size of their files, both trees do not fit
    assert not stored.exists()
    assert cache.get("a", 100)


def test_tree_is_synced_before_rename(cache, monkeypatch):
    synced = []
    monkeypatch.setattr(
        durable, "sync_below", lambda folder: synced.append((folder.parent.name, sorted(os.listdir(folder))))
    )
    put_tree(cache, "t")
    assert synced == [("tmp", [".size", "files"])]


def test_file_is_synced_before_rename(cache, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync", lambda file: synced.append(file.parent.name))
    put(cache, "a")
    assert synced == ["tmp"]


def test_batch_is_synced_before_any_file_is_found(cache, monkeypatch):
    synced = []

    def sync_below(folder):
        synced.append((len(os.listdir(folder)), cache.get("0", 100) is not None))

    monkeypatch.setattr(durable, "sync_below", sync_below)
    with cache.batch() as batch:
        for number in range(5):
            arrive(cache, batch, str(number))
        assert cache.get("0", 100) is None
    assert synced == [(5, False), (1, True)]
    assert all(cache.get(str(number), 100) for number in range(5))
    assert os.listdir(cache.root / "tmp") == []


@pytest.mark.parametrize(("limit", "value"), [("BATCH_BYTES", 300), ("BATCH_SECONDS", 0.0)])
def test_arriving_files_are_synced_in_batches(cache, monkeypatch, limit, value):
    monkeypatch.setattr(f"trainer.datasets.cache.incoming.{limit}", value)
    with cache.batch() as batch:
        for number in range(5):
            arrive(cache, batch, str(number))
        assert cache.get("2", 100)
        assert cache.get("4", 100) is None or value == 0.0
    assert all(cache.get(str(number), 100) for number in range(5))


def test_files_before_an_error_are_kept(cache):
    def fail():
        with cache.batch() as batch:
            arrive(cache, batch, "a")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert cache.get("a", 100)


def test_failed_sync_is_machine_failure_and_nothing_is_found(cache, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "full")

    def receive():
        with cache.batch() as batch:
            arrive(cache, batch, "a")

    monkeypatch.setattr(durable, "sync_below", full)
    monkeypatch.setattr(durable, "sync", full)
    for action in (receive, lambda: put(cache, "a"), lambda: put_tree(cache, "a")):
        with pytest.raises(MachineFailed):
            action()
    assert cache.get("a", 100) is None
    assert cache.get_tree("a") is None
    assert os.listdir(cache.root / "tmp") == []


@pytest.mark.parametrize("content", [b"", b"\0" * 100])
def test_damaged_pin_is_removed(cache, content):
    cache.make_room(0)
    (cache.root / "in_use/damaged").write_bytes(content)
    put(cache, "a", age=500)
    cache.make_room(1000)
    assert not cache.get("a", 100)
    assert os.listdir(cache.root / "in_use") == []


def test_dropped_tree_is_missing(cache):
    put_tree(cache, "t")
    cache.drop_tree("t")
    assert cache.get_tree("t") is None


def test_full_disk_is_host_failure_with_path_and_sizes(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 60, reserve=0)
    with pytest.raises(HostUnfit, match=f"{tmp_path}/cache is too full: the dataset needs .* MiB, .* MiB are free"):
        cache.make_room(FREE * 2)


def test_the_reserve_stays_free(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 60, reserve=FREE * 2)
    with pytest.raises(HostUnfit, match="kept in reserve"):
        cache.require_free(0)


def test_small_disk_evicts_below_limit(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 60, reserve=FREE * 2)
    put(cache, "a", age=10)
    with pytest.raises(MachineFailed):
        cache.make_room(1)
    assert cache.get("a", 100) is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES])
def test_failing_disk_is_machine_failure_with_path(tmp_path, code):
    with pytest.raises(MachineFailed, match=f"{tmp_path}: {os.strerror(code)}"), on_this_disk(tmp_path):
        raise OSError(code, os.strerror(code))


def test_other_errors_are_not_converted(tmp_path):
    with pytest.raises(FileNotFoundError), on_this_disk(tmp_path):
        (tmp_path / "none").read_text()


def test_leftovers_of_crash_are_removed_after_a_day(cache, monkeypatch):
    monkeypatch.setattr("trainer.datasets.cache.incoming.STALE_SECONDS", 0.3)
    with cache.temporary():
        pass
    (cache.root / "tmp/old").write_bytes(b"half")
    (cache.root / "tmp/older").mkdir()
    time.sleep(0.4)
    (cache.root / "tmp/young").write_bytes(b"half")
    os.utime(cache.root / "tmp/young", (1, 1))  # an old modification time, as `put` sets it
    cache.make_room(0)
    assert os.listdir(cache.root / "tmp") == ["young"]


def test_tidy_removes_leftovers_and_pins_without_holder(cache, tmp_path, monkeypatch):
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


def test_concurrent_store_and_evict_never_shows_partial_file(cache):
    ended = time.monotonic() + 0.5
    torn = []

    def work(seed):
        number = seed
        while time.monotonic() < ended:
            number = (number * 7 + 3) % 12
            content = str(number).encode() * 100
            found = cache.get(str(number), len(content))
            if found is None:
                put(cache, str(number), content)
            else:
                with contextlib.suppress(FileNotFoundError):  # not pinned, so it may be evicted at any time
                    torn.extend([number] if found.read_bytes() != content else [])
            if number == 5:
                cache.make_room(100)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torn == []


def test_lookup_of_5000_objects_takes_less_than_a_second(tmp_path):
    cache = ContentCache(tmp_path / "cache", max_bytes=1 << 40, reserve=0)
    for number in range(5000):
        put(cache, str(number), b"x")
    began = time.process_time()
    assert all(cache.get(str(number), 1) for number in range(5000))
    assert time.process_time() - began < 1
