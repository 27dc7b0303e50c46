"""Which folders are in use, known to every process that sees them, on this host or another, and right after a crash.

`.NAME.lock` beside a folder is locked (flock) for as long as the folder is used. The kernel releases the lock when the
process dies; over NFS the locks of all hosts count. The file holds the boot id of the kernel that its user ran on:
where a file system keeps locks to one host, a lock of another host looks free, so that one is believed to be free
only after a day without a sign of life (`FolderLocks.refresh`).
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

SILENT_SECONDS = 86_400.0  # without a sign of life, a user on another host is dead
WAIT_SECONDS = 2.0  # a sweep holds a lock for as long as one rename takes
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Use(Enum):
    """What a lock says about its folder."""

    IN_USE = "in use"
    LEFT = "left"  # its user died
    UNKNOWN = "unknown"  # no user ever locked it, or the last one released it


class FolderLocks:
    """The locks of this process. Safe between threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held: list[tuple[Path, int]] = []  # with the lock's descriptor

    @contextmanager
    def held(self, folder: Path) -> Iterator[None]:
        """Keep `folder` in use while the block runs; several may at once. The folder need not exist yet.

        A folder that cannot be locked is used without a lock, and a log line says so.
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
        """Keep others from beginning to use `folder` while the block runs, and say what it is; IN_USE: it is not taken.

        Raises OSError when the lock file cannot be made or read.
        """
        path = lock_file(folder)
        is_new = not os.path.lexists(path)
        lock = os.open(path, _OPEN, 0o666)
        try:
            if not _locked(path, lock, fcntl.LOCK_EX):
                yield Use.IN_USE
                return
            try:
                yield Use.UNKNOWN if is_new else _judged(lock)
            finally:
                if is_new or not os.path.lexists(folder):
                    path.unlink(missing_ok=True)
        finally:
            os.close(lock)

    def is_held(self, folder: Path) -> bool:
        """Whether this process uses `folder`."""
        with self._mutex:
            return any(held == folder for held, _ in self._held)

    def refresh(self) -> None:
        """Give a sign of life for every folder in use. To be called several times a day."""
        with self._mutex:
            for _, lock in self._held:
                with contextlib.suppress(OSError):  # a full or unreachable disk: the next sign will do
                    os.utime(lock)


def lock_file(folder: Path) -> Path:
    """Where the lock of `folder` is."""
    return folder.with_name(f".{folder.name}.lock")


def locked_folder(path: Path) -> Path | None:
    """The folder that the lock file `path` is for; None if `path` is not named like a lock file."""
    if path.name.startswith(".") and path.name.endswith(".lock"):
        return path.with_name(path.name[1 : -len(".lock")])
    return None


def _shared(path: Path) -> int:
    """A descriptor with a shared lock on the file, which is made if need be. Raises OSError."""
    deadline = time.monotonic() + WAIT_SECONDS
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = os.open(path, _OPEN, 0o666)
        try:
            if _locked(path, lock, fcntl.LOCK_SH):
                with contextlib.suppress(OSError):  # a full disk
                    os.pwrite(lock, _boot_id(), 0)
                return lock
        except OSError:  # a file system without locks
            os.close(lock)
            path.unlink(missing_ok=True)  # nobody can hold it, and a free lock would say that the user is dead
            raise
        os.close(lock)
        if time.monotonic() > deadline:
            raise BlockingIOError(f"{path} stays locked by another process")
        time.sleep(0.02)


def _locked(path: Path, lock: int, how: int) -> bool:
    """Whether the lock was had, on the file that still has that name."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        return os.path.samestat(os.fstat(lock), os.stat(path, follow_symlinks=False))  # noqa: PTH116
    except FileNotFoundError:  # its last user removed it in between
        return False


def _release(path: Path, lock: int) -> None:
    with contextlib.suppress(OSError):
        if _locked(path, lock, fcntl.LOCK_EX):  # nobody else uses the folder
            path.unlink()
    os.close(lock)


def _judged(lock: int) -> Use:
    silent = time.time() - os.fstat(lock).st_mtime
    user = os.pread(lock, 100, 0)
    return Use.LEFT if (user and user == _boot_id()) or silent > SILENT_SECONDS else Use.IN_USE


@cache
def _boot_id() -> bytes:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # hidden from this service
        return b""
