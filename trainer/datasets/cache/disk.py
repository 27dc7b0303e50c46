"""Read the folders of the cache, which other processes can change, and turn disk errors into `MachineFailed`."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.core.errors import BROKEN_DISK, disk_failed

# another process removed the file, or another user owns it
NOT_OURS = (FileNotFoundError, NotADirectoryError, PermissionError)
TREE_SIZE = ".size"  # a file in each tree; it contains the size of the tree in bytes
MACHINE_ERRNOS = BROKEN_DISK | {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}


@contextmanager
def on_this_disk(path: Path) -> Iterator[None]:
    """Turn errors of a full, read-only or broken disk into `MachineFailed` with `path` in the message."""
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE_ERRNOS and not isinstance(error, PermissionError):
            raise
        message = f"Cannot write to {path}: {os.strerror(error.errno or 0)}; the operator must fix this problem."
        raise disk_failed(error, message) from error


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, or an empty list if the folder does not exist or cannot be read by this user."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except NOT_OURS:
        return []


def status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return the status of an entry itself, not of its link target, or None if the entry cannot be found any more."""
    try:
        return entry.stat(follow_symlinks=False)
    except NOT_OURS:
        return None


def tree_size(tree: Path) -> int:
    """Return the recorded size of a tree in bytes. If the record is damaged, calculate the size."""
    try:
        return int((tree / TREE_SIZE).read_text())
    except (OSError, ValueError):
        before = tree.stat()
        size = sum(path.lstat().st_size for path in tree.rglob("*"))
        with contextlib.suppress(PermissionError):  # this function does not count as a use of the tree
            os.utime(tree, ns=(before.st_atime_ns, before.st_mtime_ns))
        return size
