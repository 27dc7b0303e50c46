"""Reading of a folder that another process can change at any time, also while it is read.

The process can replace any file by a link, a pipe, a device or a huge sparse file. So a name in the folder is opened
relative to the descriptor of its parent, links are not followed, and only regular files are opened. A file that is open
is never opened again by its name. Every read and every listing has a limit.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self, TypeAlias

LARGEST_FILE = 16 * 2**30  # bytes; hashing a sparse file of several terabytes would take hours

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: the open of a file with a lease (fcntl F_SETLEASE) fails instead of waiting for the owner of the lease
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 2**20  # bytes
# errors that the content of the folder can cause; other errors come from the disk or the service
_CAUSED_BY_CONTENT = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.EINVAL, errno.ENXIO}
)
FileState: TypeAlias = tuple[int, int, int, int]


class Unreadable(OSError):
    """A name in the folder is missing, or it is not a readable regular file within the size limit."""


@dataclass(frozen=True)
class FileEntry:
    """A file in a listing: its path relative to the folder, and its size in bytes."""

    path: str
    bytes: int


@dataclass(frozen=True)
class Listing:
    """The files of a folder. `is_complete` is False if the folder has more entries or levels than the limits."""

    files: list[FileEntry]
    is_complete: bool


class UntrustedFile:
    """An open regular file. `bytes` is its size when it was opened; nothing beyond this size is read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self.bytes = status.st_size
        self.modified_ns = status.st_mtime_ns

    @property
    def path(self) -> Path:
        """A path that opens this file again while it is open, whatever its name refers to meanwhile."""
        return Path(f"/proc/self/fd/{self._descriptor}")

    @property
    def state(self) -> FileState:
        """The size, the modification time, the change time and the inode. A write changes the state."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """Yield the content from the byte `start`, in chunks of at most 1 MiB. Raises OSError."""
        while start < self.bytes and (chunk := os.pread(self._descriptor, min(_CHUNK, self.bytes - start), start)):
            yield chunk
            start += len(chunk)

    def sha256(self, before_chunk: Callable[[], object]) -> str:
        """Return the SHA-256 of the content in hexadecimal. `before_chunk` can raise an exception to stop. Raises OSError."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            before_chunk()
            digest.update(chunk)
        return digest.hexdigest()

    def link_to(self, target: Path) -> None:
        """Create `target` as a hard link to this file, or as a copy if the disk has no hard links. Raises OSError."""
        parent = os.open(target.parent, _FOLDER)
        try:
            # with a descriptor as an argument, Python follows /proc/self/fd
            os.link(self.path, target.name, dst_dir_fd=parent, follow_symlinks=True)
        except OSError:
            with target.open("xb") as copy:
                copy.writelines(self.chunks())
        finally:
            os.close(parent)


class UntrustedFolder:
    """The open folder `path`. A missing or unreadable folder, a link and a file count as an empty folder.

    Paths of files are relative, with `/`. Raises OSError for errors of the disk.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        with suppress(Unreadable), _content_errors():
            self._descriptor = os.open(path, _FOLDER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    @contextmanager
    def opened(self, parts: Sequence[str]) -> Iterator[int]:
        """Yield a descriptor of a folder inside this folder. Raises Unreadable, OSError."""
        if self._descriptor is None:
            raise Unreadable(errno.ENOENT, "the folder does not exist")
        with _content_errors():
            descriptor = os.open(".", _FOLDER, dir_fd=self._descriptor)
        try:
            for part in parts:
                with _content_errors():
                    child = os.open(part, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = child
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def file(self, path: str) -> Iterator[UntrustedFile]:
        """Open a regular file while the block runs. Raises Unreadable, OSError."""
        *folders, name = PurePosixPath(path).parts
        with self.opened(folders) as folder, _content_errors():
            descriptor = _open_file(name, folder)
        try:
            yield UntrustedFile(descriptor)
        finally:
            os.close(descriptor)

    def is_file(self, path: str) -> bool:
        """Return whether `path` is a readable regular file. Raises OSError."""
        with suppress(Unreadable), self.file(path):
            return True
        return False

    def read(self, path: str, limit: int) -> bytes:
        """Return the content of a file of at most `limit` bytes. Raises Unreadable, OSError."""
        with self.file(path) as file:
            if file.bytes > limit:
                raise Unreadable(errno.EFBIG, f"larger than {limit} bytes", path)
            return b"".join(file.chunks())

    def listing(self, start: str, *, depth: int, entries: int, is_wanted: Callable[[str], bool]) -> Listing:
        """Return the regular files in the folder `start` ("." for this folder) and up to `depth` levels below.

        At most `entries` entries are read, the upper levels first. `is_wanted` gets the path of a file or a folder.
        """
        files: list[FileEntry] = []
        is_complete = True
        top = PurePosixPath(start).parts
        waiting = deque([top])
        while waiting:
            parts = waiting.popleft()
            with suppress(Unreadable), self.opened(parts) as folder, os.scandir(folder) as found:
                for entry in found:
                    if entries == 0:
                        return Listing(files, is_complete=False)
                    entries -= 1
                    path = "/".join((*parts, entry.name))
                    if not is_wanted(path):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        is_complete &= len(parts) - len(top) < depth
                        if len(parts) - len(top) < depth:
                            waiting.append((*parts, entry.name))
                    elif entry.is_file(follow_symlinks=False):
                        with suppress(FileNotFoundError):
                            files.append(FileEntry(path, entry.stat(follow_symlinks=False).st_size))
        return Listing(files, is_complete)


def _open_file(name: str, folder: int) -> int:
    # O_PATH does not open the content: even the open of a pipe or a device can have an effect
    handle = os.open(name, _NAME, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise Unreadable(errno.EINVAL, "not a regular file", name)
        return os.open(f"/proc/self/fd/{handle}", _FILE)
    finally:
        os.close(handle)


@contextmanager
def _content_errors() -> Iterator[None]:
    """Raise Unreadable for an error that the content of the folder caused."""
    try:
        yield
    except Unreadable:
        raise
    except OSError as error:
        if error.errno in _CAUSED_BY_CONTENT:
            raise Unreadable(error.errno, error.strerror, error.filename) from None
        raise
