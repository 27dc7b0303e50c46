"""The content cache stores files and extracted archives by the identity of their content, for all runs and processes.

    objects/ab/abcdef…   files       trees/abcdef…/   extracted archives     derived/ab/abcdef…   derived files
    tmp/                 incomplete entries           in_use/  use marks
    lock                 held while use marks are written, and while entries are evicted or trees are replaced

An entry is synced and then renamed into place, so it is complete even after a power cut. Entries are in use as long as
the staging folder of their run exists, even without a running process. The entries of a crashed run are released when
its folder is removed. Files are read-only, and their modification time is computed from their identity. A file that was
changed, for example through a hard link, has another modification time and is treated as missing. The access time is
the time of the last use.
"""

from __future__ import annotations

import errno
import fcntl
import heapq
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from trainer.core.errors import HostUnfit
from trainer.datasets.cache.disk import TREE_SIZE, entries, on_this_disk, status, tree_size
from trainer.datasets.cache.in_use import UseMarks
from trainer.datasets.cache.incoming import FileBatch, Incoming, name_of
from trainer.disk import durable
from trainer.disk.removal import remove_tree

OBJECTS, DERIVED, TREES = "objects", "derived", "trees"
AT_ONCE = 10_000  # entries in memory while others are evicted
Put: TypeAlias = Callable[[str, Path], object]  # its arguments are the identity and a complete file


@dataclass(frozen=True)
class _Entry:
    path: Path
    bytes: int
    used_ns: int
    is_linked: bool
    is_derived: bool


class ContentCache:
    """A folder of files and trees. The least recently used entries are evicted to stay within `max_bytes`.

    An identity is any text that changes with the content, for example bucket, key, ETag and size. `reserve` is the
    number of bytes that stay free on the disk. Raises `MachineFailed` if the disk is full or broken.
    """

    def __init__(self, root: Path, *, max_bytes: int, reserve: int = 1 << 30) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._reserve = reserve
        self._in_use = UseMarks(root)
        self._incoming = Incoming(root / "tmp")

    def get(self, identity: str, size: int) -> Path | None:
        """Return the complete, unchanged file of an identity, or None. The time of its last use is updated."""
        name = name_of(identity)
        path = self._object(name)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if found.st_size != size or found.st_mtime != _entry_time(name):
            path.unlink(missing_ok=True)  # hard links to the file remain; the next run downloads the content again
            return None
        self._touch(path, _entry_time(name))
        return path

    def put(self, identity: str, file: Path) -> Path:
        """Move a complete file into the cache and return its path. An older file with the same identity is replaced."""
        with on_this_disk(self.root):
            durable.sync(file)
        return self._put(file, name_of(identity))

    @contextmanager
    def batch(self) -> Iterator[FileBatch]:
        """Yield a batch that puts many files into the cache. The files become entries when the batch is synced."""
        self._make_folders()
        batch = FileBatch(self._incoming.folder, self._put)
        try:
            yield batch
        finally:
            batch.flush()

    def _put(self, file: Path, name: str, kind: str = OBJECTS) -> Path:
        path = self._object(name, kind)
        with on_this_disk(path):
            file.chmod(file.stat().st_mode & 0o444)  # read-only; the umask decides which users can read
            os.utime(file, (time.time(), _entry_time(name)))
            try:
                file.replace(path)
            except FileNotFoundError:  # the folder does not exist yet
                path.parent.mkdir(parents=True, exist_ok=True)
                file.replace(path)
        return path

    def link_derived(self, identity: str, path: Path) -> bool:
        """Create the hard link `path` to the derived file of an identity. Return whether `path` now exists."""
        name = name_of(identity)
        derived = self._object(name, DERIVED)
        try:
            if derived.stat().st_mtime != _entry_time(name):
                derived.unlink(missing_ok=True)
                return False
            try:
                os.link(derived, path)
            except FileNotFoundError:  # the folder does not exist yet
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(derived, path)
        except OSError as error:  # no such file, or no hard links on this file system: the file can be rebuilt
            return error.errno == errno.EEXIST
        self._touch(derived, _entry_time(name))
        return True

    def put_derived(self, files: Iterable[tuple[str, Path]]) -> int:
        """Move complete, synced derived files into the cache while there is room. Return the number of moved files.

        `files` are pairs of an identity and a file. To make room, the least recently used derived files are evicted,
        but no other entries.
        """
        kept = 0
        with self._locked():
            room = self._max_bytes - sum(entry.bytes for entry in self._entries())
            now = time.time_ns()
            evictable = self._oldest(lambda entry: entry.is_derived and entry.used_ns < now)
            for identity, file in files:
                size = file.stat().st_size
                while room < size and (oldest := next(evictable, None)):
                    self._incoming.remove(oldest.path)
                    room += oldest.bytes
                if room < size or shutil.disk_usage(self.root).free < self._reserve:
                    break
                self._put(file, name_of(identity), DERIVED)
                room -= size
                kept += 1
        return kept

    def get_tree(self, identity: str) -> Path | None:
        """Return the tree of an identity, or None. The caller checks that the tree is complete."""
        path = self._tree(identity)
        if not path.is_dir():
            return None
        self._touch(path, path.stat().st_mtime)
        return path

    def put_tree(self, identity: str, folder: Path, size: int, is_whole: Callable[[Path], bool]) -> Path:
        """Move a complete folder of `size` bytes into the cache and return its path.

        If the cache already has a tree for the identity, and `is_whole(tree)` is True, `folder` is removed instead.
        """
        path = self._tree(identity)
        with on_this_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            (folder / TREE_SIZE).write_text(str(size))
            durable.sync_below(folder)
            with self._locked():
                if path.is_dir() and is_whole(path):
                    remove_tree(folder)
                else:
                    self._incoming.remove(path)
                    folder.rename(path)
            durable.sync(path.parent)
        return path

    def remove_tree(self, identity: str) -> None:
        """Remove a damaged tree."""
        with self._locked():
            self._incoming.remove(self._tree(identity))

    def temporary(self) -> AbstractContextManager[Path]:
        """Return a context with a new path for `put` or `put_tree`. At its end, the file or folder is removed."""
        self._make_folders()
        return self._incoming.temporary()

    def receiving(self, identity: str, size: int) -> AbstractContextManager[Path]:
        """Return a context with a path for a download of `size` bytes.

        After a failed download, a large object gets the same path again, so that the store can resume the download.
        While another process downloads the same object, a new path is used.
        """
        self._make_folders()
        return self._incoming.receiving(identity, size)

    def mark_in_use(self, user: Path, identities: Iterable[str]) -> None:
        """Keep all present and future entries of `identities` until the folder `user` is removed."""
        with self._locked():
            self._in_use.add(user, map(name_of, identities))

    def make_room(self, needed: int) -> None:
        """Evict entries until `needed` more bytes fit into the limit and onto the disk.

        Entries in use are kept, even if the cache exceeds its limit. Raises `HostUnfit` if the disk is too full.
        """
        with self._locked():
            self._evict(needed)
        self.require_free(needed)

    def tidy(self) -> None:
        """Remove the leftovers of crashes: use marks of removed folders, and incomplete entries.

        Raises MachineFailed or OSError.
        """
        if not self.root.is_dir():
            return
        with self._locked():
            self._in_use.names()
            self._incoming.sweep()

    def require_free(self, needed: int) -> None:
        """Raise `HostUnfit` if the disk has no space for `needed` bytes."""
        self._make_folders()
        free = shutil.disk_usage(self.root).free
        if free - self._reserve < needed:
            raise HostUnfit(
                f"The disk of {self.root} is too full: the dataset needs {_mib(needed)}, {_mib(free)} are free, and "
                f"{_mib(self._reserve)} must stay free. Free some space there, or move DATASET_ROOT."
            )

    def _evict(self, needed: int) -> None:
        in_use = self._in_use.names()
        excess = sum(entry.bytes for entry in self._entries()) + needed - self._max_bytes
        excess = max(excess, needed + self._reserve - shutil.disk_usage(self.root).free)
        evictable = self._oldest(lambda entry: not entry.is_linked and entry.path.name not in in_use)
        while excess > 0 and (entry := next(evictable, None)):
            self._incoming.remove(entry.path)
            excess -= entry.bytes
        self._incoming.sweep()

    def _oldest(self, is_evictable: Callable[[_Entry], bool]) -> Iterator[_Entry]:
        """Yield the derived entries, then the others, the least recently used first. The caller removes each entry."""
        while True:
            found = filter(is_evictable, self._entries())
            oldest = heapq.nsmallest(AT_ONCE, found, key=lambda entry: (not entry.is_derived, entry.used_ns))
            yield from oldest
            if len(oldest) < AT_ONCE:
                return

    def _entries(self) -> Iterator[_Entry]:
        shards = [(kind, shard.path) for kind in (OBJECTS, DERIVED) for shard in entries(self.root / kind)]
        for kind, folder in [*shards, (TREES, str(self.root / TREES))]:
            for entry in entries(Path(folder)):
                path, found = Path(entry.path), status(entry)
                if found is not None:
                    # a file with a second hard link is in a view: its removal from the cache would free no space
                    is_linked = kind != TREES and found.st_nlink > 1
                    size = tree_size(path) if kind == TREES else found.st_size
                    yield _Entry(path, size, found.st_atime_ns, is_linked, kind == DERIVED)

    def _tree(self, identity: str) -> Path:
        return self.root / TREES / name_of(identity)

    def _object(self, name: str, kind: str = OBJECTS) -> Path:
        return self.root / kind / name[:2] / name

    def _make_folders(self) -> None:
        folders = self._in_use.folder, self._incoming.folder
        # the folders do not exist at the first use, or after an operator emptied the cache
        if not all(folder.is_dir() for folder in folders):
            with on_this_disk(self.root):
                for folder in folders:
                    folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._make_folders()
        with on_this_disk(self.root), (self.root / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases the lock when a process dies
            yield

    @staticmethod
    def _touch(path: Path, modified: float) -> None:
        try:
            os.utime(path, (time.time(), modified))
        except PermissionError:  # the file belongs to another user: it can be read, but its access time cannot be set
            return


def _entry_time(name: str) -> float:
    """Return the modification time of an entry, between 2001 and 2033.

    The time is an even number of seconds, which every file system can store.
    """
    return 1_000_000_000 + int(name[:12], 16) % 500_000_000 * 2


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
