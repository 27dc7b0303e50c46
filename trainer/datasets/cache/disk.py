"""The disk that the cache lies on: its failures are the machine's, and its folders may change at any time."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.core.errors import BROKEN_DISK, disk_failed

MACHINE_ERRNOS = BROKEN_DISK | {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}


@contextmanager
def on_this_disk(path: Path) -> Iterator[None]:
    """Turn a full, read-only or broken disk into `MachineFailed` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE_ERRNOS and not isinstance(error, PermissionError):
            raise
        message = f"Cannot write to {path}: {os.strerror(error.errno or 0)}; the operator has to mend it."
        raise disk_failed(error, message) from error


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing when it is not there."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except FileNotFoundError:
        return []


def status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of the entry itself, not of what it links to; None when it vanished."""
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
