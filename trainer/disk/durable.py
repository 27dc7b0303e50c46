"""Files that survive a power cut.

Without a sync, a power cut can leave a file that was written in the last half minute empty or full of zeros.
So if other code relies on the existence of a file, the file is synced before it gets its final name.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

_SYNCFS = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
_NOT_SUPPORTED = frozenset({errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP})


def sync(path: Path, flags: int = 0) -> None:
    """Sync the content of a file, or the names in a folder, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_below(folder: Path) -> None:
    """Sync everything in `folder` to the disk. Raises OSError.

    If possible, the whole file system is synced, which is much faster than a separate sync of thousands of files.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        is_synced = _sync_file_system(descriptor)
    finally:
        os.close(descriptor)
    if not is_synced:
        _sync_each(folder)


def replace(beside: Path, path: Path) -> None:
    """Sync the finished file `beside` and rename it to `path`. Raises OSError.

    After a power cut, `path` is the complete old file or the complete new file.
    """
    sync(beside)
    beside.replace(path)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file atomically and sync it. Only one thread may write a path at any time. Raises OSError."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.unlink(missing_ok=True)  # a crash can leave this file
    with beside.open("x", encoding="utf-8") as file:
        file.write(text)
    replace(beside, path)


def _sync_file_system(descriptor: int) -> bool:
    """Sync the file system of an open folder. Return False if the system does not support this."""
    if _SYNCFS is None:
        return False
    if _SYNCFS(descriptor) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code))


def _sync_each(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for path in (Path(root, name) for name in files):
            if path.is_file() and not path.is_symlink():
                with suppress(FileNotFoundError):  # removed meanwhile, for example the link of a checkpoint upload
                    sync(path, os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe can replace the file meanwhile
        sync(Path(root))
