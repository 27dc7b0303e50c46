"""The self-test of a host: folders are writable and have free space, threads can start, sandbox and GPUs work."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.core.errors import BROKEN_DISK, Misconfigured

MIB = 2**20
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
LEAST_FILES = 64  # inodes that a run with a small dataset needs
LEAST_THREADS = 32  # threads and processes that a small run needs
CONTENT = b"written by the self-test of the training service\n" * 80  # about one memory page
PREFIX = ".self-test-"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder that every run writes to, the setting with its path, and the bytes that the smallest run needs there."""

    setting: str
    folder: Path
    needs: int = 16 * MIB


class SelfTest:
    """Tests the folders, then calls `host_problem`, which returns a sentence or None. Safe for threads and processes."""

    def __init__(self, places: Sequence[Place], host_problem: Callable[[], str | None] = lambda: None) -> None:
        self._places = places
        self._host_problem = host_problem

    def require_folders(self) -> None:
        """Raise `Misconfigured` if a folder cannot be created or written.

        A full disk does not raise an error, because space can become free without a change of the settings.
        """
        for place in self._places:
            try:
                write_and_read(place.folder)
            except OSError as error:
                if error.errno not in FULL:
                    raise Misconfigured(_sentence(place, error)) from error

    def __call__(self) -> str | None:
        """Return the problem of this host in one sentence, or None."""
        return next(filter(None, map(_problem, self._places)), None) or _thread_problem() or self._host_problem()


def write_and_read(folder: Path) -> None:
    """Create `folder`, then write, sync and read an unnamed temporary file in it. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=PREFIX, buffering=0) as file:
        file.write(CONTENT)
        os.fsync(file.fileno())
        if os.pread(file.fileno(), len(CONTENT) + 1, 0) != CONTENT:
            raise OSError(errno.EIO, "the disk returned different data than was written")


def disk_problem(setting: str, folder: Path, error: OSError) -> str:
    """Return the problem of `folder` and the fix, without a period at the end.

    `setting` is the name of the setting with the path of `folder`.
    """
    if error.errno in FULL:
        return f"{folder} has no space left ({error.strerror}): free some space, or set {setting} to another disk"
    fix = (
        "check dmesg and the mount"
        if error.errno in BROKEN_DISK
        else f"give this user (uid {os.getuid()}) write access"
    )
    return f"{folder} cannot be written ({error.strerror}): {fix}, or set {setting} to another folder"


def _problem(place: Place) -> str | None:
    fix = f"free some space, or set {place.setting} to another disk"
    try:
        write_and_read(place.folder)
        disk = os.statvfs(place.folder)
    except OSError as error:
        return _sentence(place, error)
    free = disk.f_bavail * disk.f_frsize
    if free < place.needs:
        return (
            f"{place.setting}: {place.folder} has {free // MIB} MiB free, and the smallest run needs "
            f"{place.needs // MIB} MiB: {fix}."
        )
    if disk.f_files and disk.f_favail < LEAST_FILES:  # some file systems do not report inodes
        return f"{place.setting}: the disk of {place.folder} has {disk.f_favail} inodes left: {fix}."
    return None


def _sentence(place: Place, error: OSError) -> str:
    return f"{place.setting}: {disk_problem(place.setting, place.folder, error)}."


def _thread_problem() -> str | None:
    """Start threads like a run. The limits count threads and processes, also those of trainings."""
    over = threading.Event()
    threads: list[threading.Thread] = []
    try:
        for _ in range(LEAST_THREADS):
            thread = threading.Thread(target=over.wait, name="self-test", daemon=True)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        return (
            f"This host cannot start {LEAST_THREADS} more threads: raise the limits of the service (systemd: TasksMax, "
            "LimitNPROC), or cancel the run that uses them."
        )
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return None
