"""Files are synced before they become cache entries. Disk errors are failures of the host, not of the dataset."""

import errno
import os

import pytest

from tests.cache_entries import put, put_in_batch, put_tree
from trainer.core.errors import MachineFailed
from trainer.datasets.cache.disk import on_this_disk
from trainer.disk import durable


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


def test_batch_is_synced_before_its_files_can_be_found(cache, monkeypatch):
    synced = []

    def sync_below(folder):
        synced.append((len(os.listdir(folder)), cache.get("0", 100) is not None))

    monkeypatch.setattr(durable, "sync_below", sync_below)
    with cache.batch() as batch:
        for number in range(5):
            put_in_batch(cache, batch, str(number))
        assert cache.get("0", 100) is None
    assert synced == [(5, False), (1, True)]
    assert all(cache.get(str(number), 100) for number in range(5))
    assert os.listdir(cache.root / "tmp") == []


@pytest.mark.parametrize(("limit", "value"), [("BATCH_BYTES", 300), ("BATCH_FILES", 3), ("BATCH_SECONDS", 0.0)])
def test_batch_is_synced_early_at_each_of_its_limits(cache, monkeypatch, limit, value):
    monkeypatch.setattr(f"trainer.datasets.cache.incoming.{limit}", value)
    with cache.batch() as batch:
        for number in range(5):
            put_in_batch(cache, batch, str(number))
        assert cache.get("2", 100)
        assert cache.get("4", 100) is None or value == 0.0
    assert all(cache.get(str(number), 100) for number in range(5))


def test_files_added_to_batch_before_an_error_are_kept(cache):
    def fail():
        with cache.batch() as batch:
            put_in_batch(cache, batch, "a")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert cache.get("a", 100)


def test_failed_sync_raises_machine_failed_and_stores_nothing(cache, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "full")

    def receive():
        with cache.batch() as batch:
            put_in_batch(cache, batch, "a")

    monkeypatch.setattr(durable, "sync_below", full)
    monkeypatch.setattr(durable, "sync", full)
    for action in (receive, lambda: put(cache, "a"), lambda: put_tree(cache, "a")):
        with pytest.raises(MachineFailed):
            action()
    assert cache.get("a", 100) is None
    assert cache.get_tree("a") is None
    assert os.listdir(cache.root / "tmp") == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES])
def test_disk_error_raises_machine_failed_with_path(tmp_path, code):
    with pytest.raises(MachineFailed, match=f"{tmp_path}: {os.strerror(code)}"), on_this_disk(tmp_path):
        raise OSError(code, os.strerror(code))


def test_missing_file_does_not_raise_machine_failed(tmp_path):
    with pytest.raises(FileNotFoundError), on_this_disk(tmp_path):
        (tmp_path / "none").read_text()
