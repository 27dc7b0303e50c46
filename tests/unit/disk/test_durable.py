"""The order of syncs, and syncs without the system call syncfs."""

import errno
import os

import pytest

from trainer.disk import durable


@pytest.fixture
def synced(monkeypatch):
    """Return the list of synced paths. A file that is renamed after its sync is listed with its old path."""
    paths = []
    monkeypatch.setattr(durable.os, "fsync", lambda fd: paths.append(os.readlink(f"/proc/self/fd/{fd}")))
    return paths


def test_file_is_synced_before_rename_and_folder_after(tmp_path, synced):
    (tmp_path / "beside").write_text("new")
    durable.replace(tmp_path / "beside", tmp_path / "file")
    assert synced == [str(tmp_path / "beside"), str(tmp_path)]
    assert (tmp_path / "file").read_text() == "new"


def test_written_text_replaces_old_file_and_leaves_no_temporary_file(tmp_path, synced):
    for text in ("one", "two"):
        durable.write_text(tmp_path / "note.json", text)
    assert (tmp_path / "note.json").read_text() == "two"
    assert os.listdir(tmp_path) == ["note.json"]
    assert len(synced) == 4


def test_whole_file_system_is_synced_in_one_call(tmp_path, synced):
    (tmp_path / "file").write_text("content")
    durable.sync_below(tmp_path)
    assert synced == []


@pytest.mark.parametrize("reason", ["no such function", errno.ENOSYS, errno.EPERM])
def test_each_file_and_folder_is_synced_if_syncfs_is_unavailable(tmp_path, synced, monkeypatch, reason):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("content")
    (tmp_path / "a/link").symlink_to(tmp_path.parent)
    os.mkfifo(tmp_path / "a/pipe")
    monkeypatch.setattr(durable, "_SYNCFS", None if isinstance(reason, str) else _fails_with(reason))

    durable.sync_below(tmp_path)

    assert sorted(synced) == [str(tmp_path), f"{tmp_path}/a", f"{tmp_path}/a/b", f"{tmp_path}/a/b/file"]


def test_error_of_syncfs_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "_SYNCFS", _fails_with(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        durable.sync_below(tmp_path)


def _fails_with(code):
    def syncfs(_descriptor):
        durable.ctypes.set_errno(code)
        return -1

    return syncfs


def test_file_removed_during_sync_is_not_an_error(tmp_path, monkeypatch):
    (tmp_path / "newest.uploading").write_text("x")
    monkeypatch.setattr(durable, "_SYNCFS", None)
    sync = durable.sync

    def remove_and_sync(path, flags=0):
        (tmp_path / "newest.uploading").unlink(missing_ok=True)
        sync(path, flags)

    monkeypatch.setattr(durable, "sync", remove_and_sync)

    durable.sync_below(tmp_path)
