"""Locks of folders in use. Processes on this host and on other hosts can check them, even right after a crash.

The file `.NAME.lock` beside a folder is locked (flock) while the folder is in use. The kernel releases the lock when
the process ends. Over NFS, a lock is visible on all hosts. The file contains the boot id of the host that uses the
folder. On some file systems, the locks of another host are not visible. So the lock of another host counts as free only
after a day without a refresh (`FolderLocks.refresh`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path

import structlog

log = structlog.get_logger()

SILENT_SECONDS = 86_400.0  # after this time without a refresh, a process on another host counts as crashed
WAIT_SECONDS = 2.0  # maximum wait for a lock; a sweep (old_folders.py) holds a lock only during one rename
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Use(Enum):
    """The state of a folder, according to its lock file."""

    IN_USE = "in use"
    LEFT = "left"  # the process that used the folder crashed
    UNKNOWN = "unknown"  # no process ever locked the folder, or the last process released it


class FolderLocks:
    """The locks of this process. Thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held: list[tuple[Path, int]] = []  # folder, descriptor of its lock

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """Mark `folder` as in use while the block runs. The folder does not have to exist.

        Several processes can use the same folder. If the folder cannot be locked, a warning is logged, and the folder
        is used without a lock.
        """
        path = lock_file(folder)
        try:
            lock = _shared(path)
        except OSError as error:
            log.warning("folder cannot be locked, using it without a lock", folder=ascii(str(folder)), error=str(error))
            yield
            return
        with self._mutex:
            self._held.append((folder, lock))
        try:
            yield
        finally:
            with self._mutex:
                self._held.remove((folder, lock))
            _release(path, lock)

    @contextmanager
    def taken(self, folder: Path) -> Iterator[Use]:
        """Lock `folder` exclusively while the block runs, and yield its state. A folder that is IN_USE is not locked.

        Raises OSError when the lock file cannot be created or read.
        """
        path = lock_file(folder)
        is_new = not os.path.lexists(path)
        lock = os.open(path, _OPEN, 0o666)
        try:
            if not _locked(path, lock, fcntl.LOCK_EX):
                yield Use.IN_USE
                return
            try:
                yield Use.UNKNOWN if is_new else _use_of(lock)
            finally:
                if is_new or not os.path.lexists(folder):
                    path.unlink(missing_ok=True)
        finally:
            os.close(lock)

    def is_held(self, folder: Path) -> bool:
        """Return whether this process uses `folder`."""
        with self._mutex:
            return any(held == folder for held, _ in self._held)

    def refresh(self) -> None:
        """Refresh the lock of every folder in use. Call it several times a day."""
        with self._mutex:
            for _, lock in self._held:
                with contextlib.suppress(OSError):  # if the disk is full or unavailable, the next refresh is enough
                    os.utime(lock)


def lock_file(folder: Path) -> Path:
    """Return the path of the lock file of `folder`."""
    return folder.with_name(f".{folder.name}.lock")


def locked_folder(path: Path) -> Path | None:
    """Return the folder of the lock file `path`, or None if `path` is not the name of a lock file."""
    if path.name.startswith(".") and path.name.endswith(".lock"):
        return path.with_name(path.name[1 : -len(".lock")])
    return None


def _shared(path: Path) -> int:
    """Return a descriptor with a shared lock on the file, which is created if needed. Raises OSError."""
    deadline = time.monotonic() + WAIT_SECONDS
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = os.open(path, _OPEN, 0o666)
        try:
            if _locked(path, lock, fcntl.LOCK_SH):
                with contextlib.suppress(OSError):  # on a full disk, the lock file has no boot id
                    os.pwrite(lock, _boot_id(), 0)
                return lock
        except OSError:  # a file system without locks
            os.close(lock)
            # no process can lock this file; an unlocked lock file would look like the file of a crashed process
            path.unlink(missing_ok=True)
            raise
        os.close(lock)
        if time.monotonic() > deadline:
            raise BlockingIOError(f"{path} is still locked by another process after {WAIT_SECONDS:g} seconds")
        time.sleep(0.02)


def _locked(path: Path, lock: int, how: int) -> bool:
    """Try to lock an open file. Return whether this succeeded and `path` is still the same file."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path, follow_symlinks=False))  # noqa: PTH116
    except FileNotFoundError:  # another process removed the file meanwhile
        return False


def _release(path: Path, lock: int) -> None:
    with contextlib.suppress(OSError):
        # flock releases a shared lock before it locks exclusively, so a sweep can lock the file in between for a moment
        for _ in range(3):
            if _locked(path, lock, fcntl.LOCK_EX):  # no other process uses the folder
                path.unlink()
                break
            time.sleep(0.01)
    os.close(lock)


def _use_of(lock: int) -> Use:
    silent = time.time() - os.fstat(lock).st_mtime
    user = os.pread(lock, 100, 0)
    return Use.LEFT if (user and user == _boot_id()) or silent > SILENT_SECONDS else Use.IN_USE


@cache
def _boot_id() -> bytes:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # the boot id is not visible to this service
        return b""
