"""The content cache: files, extracted archives (trees) and downloads, each found by its identity.

An identity is a text that changes with the content.
"""

import contextlib
import os
import threading
import time

import pytest

from tests.cache_entries import put, put_tree
from trainer.datasets.cache.content import ContentCache


def test_stored_file_is_found_by_identity(cache):
    put(cache, "a", b"content")
    assert cache.get("a", 7).read_bytes() == b"content"
    assert cache.get("b", 7) is None


def test_file_of_unexpected_size_is_removed(cache):
    put(cache, "a", b"content")
    assert cache.get("a", 8) is None
    assert cache.get("a", 7) is None  # the file was removed, because its content is unknown


def test_file_changed_through_hard_link_is_not_found(cache, tmp_path):
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


def test_modification_time_of_stored_file_depends_only_on_identity(cache, tmp_path):
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


def test_partial_large_download_is_kept_until_it_is_complete(cache):
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


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"\xff", None])
def test_tree_with_damaged_size_file_is_found_and_evicted(cache, content):
    stored = put_tree(cache, "t", age=500, size=800)
    (stored / ".size").unlink()
    if content is not None:
        (stored / ".size").write_bytes(content)
    put(cache, "a")
    assert cache.get_tree("t") == stored
    assert put_tree(cache, "t") == stored
    os.utime(stored, (1, 1))
    cache.make_room(100)  # the sizes of the files exceed the limit
    assert not stored.exists()
    assert cache.get("a", 100)


def test_removed_tree_is_not_found(cache):
    put_tree(cache, "t")
    cache.remove_tree("t")
    assert cache.get_tree("t") is None


def test_concurrent_writes_and_evictions_never_show_partial_file(cache):
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
                with contextlib.suppress(FileNotFoundError):  # the entry is not in use, so another thread can evict it
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
