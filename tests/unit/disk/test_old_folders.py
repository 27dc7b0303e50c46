"""Old folders are removed, folders in use are kept, and a failure does not stop the sweep."""

import os
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from trainer.disk import old_folders
from trainer.disk.folder_locks import FolderLocks, lock_file
from trainer.disk.old_folders import OldFolders

DAY = 86_400


def made(path, days_old):
    path.mkdir(parents=True)
    (path / "results.csv").write_text("x")
    for each in (path / "results.csv", path):
        os.utime(each, (time.time() - days_old * DAY,) * 2)
    return path


def left_behind(folder):
    """Leave a lock file without a lock, as a crashed process does."""
    with FolderLocks().held(folder):
        content = lock_file(folder).read_bytes()
    lock_file(folder).write_bytes(content)
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def swept(root, locks=None, **rules):
    rules = {"keep_seconds": 14 * DAY, "left_seconds": 7 * DAY} | rules
    folders = OldFolders(root, "train_", locks or FolderLocks(), **rules)
    folders.sweep()
    return folders


def test_only_old_folders_are_removed(root):
    old, young = made(root / "train_a", 15), made(root / "train_b", 13)

    swept(root)

    assert (old.exists(), young.exists()) == (False, True)
    assert [path.name for path in root.iterdir()] == ["train_b"]


def test_folders_of_crashed_processes_are_removed_sooner(root):
    old, young = left_behind(made(root / "train_a", 8)), left_behind(made(root / "train_b", 6))

    swept(root)

    assert (old.exists(), young.exists()) == (False, True)


def test_folder_in_use_is_kept(root):
    old, locks = made(root / "train_a", 100), FolderLocks()

    with locks.held(old):
        swept(root)
        swept(root, locks)
        assert old.exists()
    swept(root)
    assert not old.exists()


def test_needed_folder_is_kept(root):
    old = made(root / "train_a", 100)

    swept(root, is_needed=lambda name: name == "a")

    assert old.exists()


def test_folder_with_a_new_file_is_kept(root):
    folder = made(root / "train_a", 100)
    (folder / "results.csv").write_text("new")

    swept(root)

    assert folder.exists()


def test_future_modification_time_does_not_keep_folder(root):
    folder = made(root / "train_a", -36_500)

    swept(root, keep_seconds=0)

    assert not folder.exists()


def test_entries_that_are_not_run_folders_are_kept(root, tmp_path):
    other, target = made(root / "my_notes", 100), made(tmp_path / "target", 100)
    (root / "train_link").symlink_to(target)
    (root / "train_file").touch()
    (root / ".hidden.lock").touch()

    swept(root, keep_seconds=0)

    assert {path.name for path in root.iterdir()} == {"my_notes", "train_link", "train_file", ".hidden.lock"}
    assert other.exists()
    assert target.exists()


def test_lock_files_without_folder_are_removed(root):
    root.mkdir()
    left_behind(root / "train_a")

    swept(root)

    assert not list(root.iterdir())


def test_half_removed_folder_is_removed_by_next_sweep(root, monkeypatch):
    made(root / "train_a", 100)
    monkeypatch.setattr(old_folders, "remove_tree", lambda _: None)  # simulates a process that ended before the removal
    swept(root)
    assert [path.name.startswith(".removing-") for path in root.iterdir()] == [True]
    monkeypatch.undo()

    swept(root)

    assert not list(root.iterdir())


def test_removal_error_is_logged_once_and_other_folders_are_removed(root, monkeypatch):
    for name in ("train_a", "train_\xff\n", "train_c"):
        made(root / name, 100)
    real = Path.rename

    def rename(path, target):
        if path.name != "train_c":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with capture_logs() as lines:
        folders = swept(root)
        folders.sweep()

    warnings = [line["folder"] for line in lines if line["log_level"] == "warning"]
    assert len(warnings) == len(set(warnings)) == 2
    assert all(warning.isascii() and "\n" not in warning for warning in warnings)
    assert not (root / "train_c").exists()


@pytest.mark.parametrize("root_is", ["missing", "dangling link", "file"])
def test_missing_or_invalid_root_is_not_an_error(root, root_is):
    if root_is == "dangling link":
        root.symlink_to("nowhere")
    elif root_is == "file":
        root.touch()

    swept(root)


def test_link_that_replaces_folder_during_removal_is_not_followed(root, tmp_path, monkeypatch):
    made(root / "train_a", 100)
    target = made(tmp_path / "target", 100)
    real = Path.rename

    def replaced(path, new):
        real(path, tmp_path / "aside")
        path.symlink_to(target)
        return real(path, new)

    monkeypatch.setattr(Path, "rename", replaced)
    swept(root)
    monkeypatch.undo()
    swept(root)

    assert (target / "results.csv").exists()
    assert not list(root.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to create a folder of another user")
def test_folders_of_other_users_are_ignored(root):
    """Each user of the host can create folders in the folder for temporary files."""
    for name in ("train_own", "train_other"):
        made(root / name, days_old=30)
        left_behind(root / name)
    os.chown(root / "train_other", 65534, 65534)

    with capture_logs() as logs:
        swept(root, only_own=True)

    assert not (root / "train_own").exists()
    assert (root / "train_other").exists()
    assert [line["event"] for line in logs] == ["removing old folder"]
