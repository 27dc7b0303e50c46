"""Atomic writes, and disk errors that name the file."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from trainer.core import errors
from trainer.core.ports import OnBytes
from trainer.core.stop import StopSignal
from trainer.disk.durable import replace as replace_and_sync

BLOCK = 1024 * 1024  # bytes
_TEMPORARY = ".incoming-"
_REASONS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}


def disk_errors(path: Path) -> AbstractContextManager[None]:
    """Turn an `OSError` into a `MachineFailed` that names `path`."""

    def describe(error: OSError) -> str:
        reason = _REASONS.get(error.errno or 0) or error.strerror or type(error).__name__
        return f"{shown(path)} cannot be read or written: {reason}"

    return errors.disk_errors(describe)


def shown(path: Path) -> Path:
    """Return `path` for a message. A path in /proc/self/fd stands for an open file, so its current name is returned."""
    return path.resolve() if path.is_relative_to("/proc/self/fd") else path


@contextmanager
def replacing(path: Path, *, durable: bool) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` at the end of the block, and is removed if the block raises an error.

    If `durable` is True, the new file survives a power cut.
    """
    # the temporary name does not contain the name of `path`, which can already have the maximum length
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as out:
            yield out
        if durable:
            replace_and_sync(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_temporary(name: str) -> bool:
    return name.startswith(_TEMPORARY)


def copy(source: BinaryIO, out: BinaryIO, size: int, stop: StopSignal, on_bytes: OnBytes | None) -> None:
    """Copy at most `size` bytes. Raises `Stopped` between two blocks."""
    left = size  # a limit, because a file may grow as fast as it is read
    while block := source.read(min(BLOCK, left)):
        stop.raise_if_set()
        out.write(block)
        left -= len(block)
        if on_bytes:
            on_bytes(len(block))
    stop.raise_if_set()
