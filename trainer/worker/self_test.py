"""Whether this host can work on a run: its folders can be written and have room, and its GPUs answer."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.core.errors import BROKEN_DISK, Misconfigured

MIB = 2**20
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
LEAST_FILES = 64  # inodes: what a run of a small dataset makes
CONTENT = b"written by the self-test of the training service\n" * 80  # about a page
PREFIX = ".self-test-"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder that every run writes into, the setting that names it, and the bytes that even the smallest run needs."""

    setting: str
    folder: Path
    needs: int = 16 * MIB


class SelfTest:
    """Tests the places and asks `gpu_problem`, which returns a sentence or None. Safe between threads and processes."""

    def __init__(self, places: Sequence[Place], gpu_problem: Callable[[], str | None] = lambda: None) -> None:
        self._places = places
        self._gpu_problem = gpu_problem

    def require_folders(self) -> None:
        """Raise `Misconfigured` when a folder cannot be made or written.

        A full disk is no reason: space comes back without anybody touching the service.
        """
        for place in self._places:
            try:
                write_and_read(place.folder)
            except OSError as error:
                if error.errno not in FULL:
                    raise Misconfigured(_said(place, error)) from error

    def __call__(self) -> str | None:
        """What is wrong with this host, in one sentence, or None."""
        return next(filter(None, map(_problem, self._places)), None) or self._gpu_problem()


def write_and_read(folder: Path) -> None:
    """Make `folder`; write, sync and read a file in it, without a name, so that a kill leaves nothing. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=PREFIX, buffering=0) as file:
        file.write(CONTENT)
        os.fsync(file.fileno())
        if os.pread(file.fileno(), len(CONTENT) + 1, 0) != CONTENT:
            raise OSError(errno.EIO, "what was written is not what is read")


def disk_problem(setting: str, folder: Path, error: OSError) -> str:
    """What kept `folder`, which `setting` names, from being written, and what to do about it: a sentence without its period."""
    if error.errno in FULL:
        return f"{folder} has no space left ({error.strerror}): free some there, or set {setting} elsewhere"
    mend = (
        "look at dmesg and the mount"
        if error.errno in BROKEN_DISK
        else f"give this user (uid {os.getuid()}) write access"
    )
    return f"{folder} cannot be written ({error.strerror}): {mend}, or set {setting} elsewhere"


def _problem(place: Place) -> str | None:
    elsewhere = f"free some there, or set {place.setting} elsewhere"
    try:
        write_and_read(place.folder)
        disk = os.statvfs(place.folder)
    except OSError as error:
        return _said(place, error)
    free = disk.f_bavail * disk.f_frsize
    if free < place.needs:
        return (
            f"{place.setting}: {place.folder} has {free // MIB} MiB free, and the smallest run needs "
            f"{place.needs // MIB} MiB: {elsewhere}."
        )
    if disk.f_files and disk.f_favail < LEAST_FILES:  # some file systems count none
        return f"{place.setting}: the disk of {place.folder} has {disk.f_favail} inodes left: {elsewhere}."
    return None


def _said(place: Place, error: OSError) -> str:
    return f"{place.setting}: {disk_problem(place.setting, place.folder, error)}."
