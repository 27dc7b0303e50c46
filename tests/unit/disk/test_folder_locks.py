"""Every process can see which folders are in use, even after a process was killed."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from trainer.disk import folder_locks
from trainer.disk.folder_locks import SILENT_SECONDS, FolderLocks, Use, lock_file

HOLD = """
import sys, time
from pathlib import Path
from trainer.disk.folder_locks import FolderLocks
with FolderLocks().held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run_a"
    folder.mkdir()
    return folder


@pytest.fixture
def other(folder):
    """Start another process that uses the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def use_of(folder):
    with FolderLocks().taken(folder) as use:
        return use


def test_folder_of_another_process_is_in_use(folder, other):
    assert use_of(folder) is Use.IN_USE


def test_crash_of_process_that_uses_folder_is_detected(folder, other):
    other.kill()
    other.wait()

    assert use_of(folder) is Use.LEFT
    assert use_of(folder) is Use.LEFT  # a check of the state does not change the state


def test_released_folder_leaves_no_lock_file(folder, other):
    other.communicate()

    assert not lock_file(folder).exists()
    assert use_of(folder) is Use.UNKNOWN
    assert not lock_file(folder).exists()


def test_folder_is_in_use_until_last_process_releases_it(folder, other):
    with FolderLocks().held(folder):
        other.communicate()
        assert use_of(folder) is Use.IN_USE
    assert not lock_file(folder).exists()


def test_lock_file_is_removed_with_its_folder(folder, other):
    other.kill()
    other.wait()

    with FolderLocks().taken(folder):
        folder.rmdir()

    assert not lock_file(folder).exists()


def test_process_on_other_host_counts_as_crashed_after_a_day_without_refresh(folder):
    # on some file systems, locks of other hosts are not visible, so the lock file seems to be unlocked
    lock_file(folder).write_text("the boot id of another kernel")
    assert use_of(folder) is Use.IN_USE

    silent = time.time() - SILENT_SECONDS - 1
    os.utime(lock_file(folder), (silent, silent))
    assert use_of(folder) is Use.LEFT


def test_refresh_sets_modification_time_of_lock_file_to_now(folder):
    locks = FolderLocks()
    with locks.held(folder):
        os.utime(lock_file(folder), (0, 0))
        locks.refresh()
        assert time.time() - lock_file(folder).stat().st_mtime < 60
    locks.refresh()


def test_use_of_folder_starts_after_sweep_releases_folder(folder):
    locks, entered = FolderLocks(), threading.Event()

    def use():
        with locks.held(folder):
            entered.set()

    with locks.taken(folder):
        thread = threading.Thread(target=use)
        thread.start()
        assert not entered.wait(0.2)
        folder.rmdir()
    thread.join()
    assert entered.is_set()
    assert not lock_file(folder).exists()


def test_folder_taken_for_removal_is_not_used_by_other_threads(folder):
    """One thread takes the folder for removal, and two threads use the folder.

    The lock file is removed between uses. A lock on the removed file does not protect the folder.
    """
    locks, users, found = FolderLocks(), [], []

    def use():
        for _ in range(100):
            with locks.held(folder):
                users.append(1)
                users.pop()

    def take():
        for _ in range(300):
            with locks.taken(folder) as use:
                if use is not Use.IN_USE:
                    found.append(len(users))

    threads = [threading.Thread(target=work) for work in (use, use, take)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) <= {0}
    assert not lock_file(folder).exists()


def test_lock_file_is_removed_even_if_a_sweep_locks_it_during_release(folder, monkeypatch):
    flock, rejected = fcntl.flock, []

    def reject_once(lock, how):
        if how & fcntl.LOCK_EX and not rejected:
            rejected.append(lock)
            raise BlockingIOError
        flock(lock, how)

    monkeypatch.setattr("trainer.disk.folder_locks.fcntl.flock", reject_once)
    with FolderLocks().held(folder):
        pass
    assert rejected
    assert not lock_file(folder).exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_folder_is_used_without_lock_if_file_system_has_no_locks(folder, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FolderLocks().held(folder):
        pass
    assert not lock_file(folder).exists()  # an unlocked lock file would mean that the process has crashed


def test_folder_is_used_without_lock_after_lock_timeout(folder, monkeypatch):
    monkeypatch.setattr(folder_locks, "WAIT_SECONDS", 0.1)
    with FolderLocks().taken(folder), FolderLocks().held(folder):
        pass


def test_lock_file_that_is_a_link_is_not_followed(folder, tmp_path):
    lock_file(folder).symlink_to(tmp_path / "elsewhere")

    with FolderLocks().held(folder):
        pass
    with pytest.raises(OSError, match="symbolic links"):
        use_of(folder)

    assert not (tmp_path / "elsewhere").exists()
