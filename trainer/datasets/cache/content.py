"""The content cache: files and extracted trees by the identity of their content, shared by all runs and processes.

    objects/ab/abcdef…   files        trees/abcdef…/   extracted archives     spares/ab/abcdef…   files that can be rebuilt
    tmp/                 incomplete entries            pins/  entries in use   lock  held during eviction and pinning

An entry is synced and then renamed into place, so it is complete even after a power cut. A pin belongs to a folder (the
staging folder of a run) and lasts as long as that folder exists. It needs no living process, and the pin of a crashed
run ends when its folder is removed. Files are read-only, and their modification time is computed from their identity. A
file that was changed, for example through a hard link, has another one and counts as missing. The access time is the
time of the last use.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from trainer.core.errors import HostUnfit
from trainer.datasets.cache.disk import entries, on_this_disk, status
from trainer.datasets.cache.incoming import Arrivals, Incoming, name_of
from trainer.datasets.cache.pins import Pins
from trainer.disk import durable

TREE_SIZE = ".size"  # the file in a tree with the size of the tree in bytes
OBJECTS, SPARES = "objects", "spares"
Put: TypeAlias = Callable[[str, Path], object]  # takes the identity and a complete file


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    bytes: int
    used_ns: int
    is_linked: bool
    is_spare: bool = False


class ContentCache:
    """A folder of content by identity. The least recently used entries are evicted to stay within `max_bytes`.

    An identity is any text that changes with the content, for example bucket, key, ETag and size. `reserve` is the
    number of bytes that stay free on the disk. Raises `HostUnfit` when the disk is the problem.
    """

    def __init__(self, root: Path, *, max_bytes: int, reserve: int = 1 << 30) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._reserve = reserve
        self._pins = Pins(root)
        self._incoming = Incoming(root / "tmp")

    def get(self, identity: str, size: int) -> Path | None:
        """Return the complete, unchanged file of an identity, or None. Mark it as used."""
        name = name_of(identity)
        path = self._object(name)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if found.st_size != size or found.st_mtime != _seal(name):
            path.unlink(missing_ok=True)  # hard links to it remain; the next run downloads the content again
            return None
        self._touch(path, _seal(name))
        return path

    def put(self, identity: str, file: Path) -> Path:
        """Move a complete file (from `temporary`) into the cache. It replaces one that another process put first."""
        with on_this_disk(self.root):
            durable.sync(file)
        return self._put(file, name_of(identity))

    @contextmanager
    def arriving(self) -> Iterator[Arrivals]:
        """Return a context that takes many files in batches. A file becomes an entry when its batch is synced."""
        self._make_folders()
        arrivals = Arrivals(self._incoming.folder, self._put)
        try:
            yield arrivals
        finally:
            arrivals.settle()

    def _put(self, file: Path, name: str, kind: str = OBJECTS) -> Path:
        path = self._object(name, kind)
        with on_this_disk(path):
            file.chmod(0o444)
            os.utime(file, (time.time(), _seal(name)))
            try:
                file.replace(path)
            except FileNotFoundError:  # the first file in its folder
                path.parent.mkdir(parents=True, exist_ok=True)
                file.replace(path)
        return path

    def lend_spare(self, identity: str, path: Path) -> bool:
        """Hard-link the spare file of an identity as `path`. Return False if there is none."""
        name = name_of(identity)
        spare = self._object(name, SPARES)
        try:
            if spare.stat().st_mtime != _seal(name):
                spare.unlink(missing_ok=True)
                return False
            try:
                os.link(spare, path)
            except FileNotFoundError:  # the first file in its folder
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(spare, path)
        except OSError as error:  # no such file, or no hard links on this file system: it can be rebuilt
            return error.errno == errno.EEXIST
        self._touch(spare, _seal(name))
        return True

    def put_spares(self, files: Mapping[str, Path]) -> int:
        """Move complete, synced files into the cache as spares. Return how many had room.

        Only the least recently used spares are evicted for them. Other entries may evict any spare.
        """
        self._make_folders()
        kept = 0
        with self._locked(), on_this_disk(self.root):
            present = [*self._files(), *self._trees()]
            spares = sorted((entry for entry in present if entry.is_spare), key=lambda entry: entry.used_ns)
            room = self._max_bytes - sum(entry.bytes for entry in present)
            for identity, file in files.items():
                size = file.stat().st_size
                while room < size and spares:
                    oldest = spares.pop(0)
                    self._incoming.remove(oldest.path)
                    room += oldest.bytes
                if room < size or shutil.disk_usage(self.root).free < self._reserve:
                    break
                self._put(file, name_of(identity), SPARES)
                room -= size
                kept += 1
        return kept

    def get_tree(self, identity: str) -> Path | None:
        """Return the folder of an identity, or None. Mark it as used. The caller checks that it is complete."""
        path = self._tree(identity)
        if not path.is_dir():
            return None
        self._touch(path, path.stat().st_mtime)
        return path

    def put_tree(self, identity: str, folder: Path, size: int, is_whole: Callable[[Path], bool]) -> Path:
        """Move a complete folder of `size` bytes into the cache, unless another process put a complete one first."""
        path = self._tree(identity)
        with on_this_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            (folder / TREE_SIZE).write_text(str(size))
            durable.sync_below(folder)
            with self._locked():
                if path.is_dir() and is_whole(path):
                    shutil.rmtree(folder)
                else:
                    self._incoming.remove(path)
                    folder.rename(path)
            durable.sync(path.parent)
        return path

    def drop_tree(self, identity: str) -> None:
        """Remove a damaged tree."""
        self._make_folders()
        with self._locked():
            self._incoming.remove(self._tree(identity))

    def temporary(self) -> AbstractContextManager[Path]:
        """Return a context with a new path for `put` or `put_tree`. What is left there is removed."""
        self._make_folders()
        return self._incoming.temporary()

    def receiving(self, identity: str, size: int) -> AbstractContextManager[Path]:
        """Return a context with a path for a download of `size` bytes.

        A large object gets the same path again after a failure, so that the store can resume the download. If another
        process is downloading it at the moment, the path is a new one.
        """
        self._make_folders()
        return self._incoming.receiving(identity, size)

    def pin(self, holder: Path, identities: Iterable[str]) -> None:
        """Keep present and future entries of these identities as long as the folder `holder` exists. Pins add up."""
        self._make_folders()
        with self._locked(), on_this_disk(self._pins.folder):
            self._pins.add(holder, map(name_of, identities))

    def make_room(self, needed: int) -> None:
        """Evict entries until `needed` more bytes fit into the limit and onto the disk.

        Entries in use are kept, even over the limit. Raises `HostUnfit` when the disk has too little space.
        """
        self._make_folders()
        with self._locked():
            self._evict(needed)
        self.require_free(needed)

    def tidy(self) -> None:
        """Remove the leftovers of crashes: pins whose folder no longer exists, and incomplete entries."""
        if not self.root.is_dir():
            return
        with self._locked():
            self._pins.held()
            self._incoming.sweep()

    def require_free(self, needed: int) -> None:
        """Raise `HostUnfit` if the disk has no space for `needed` bytes."""
        self._make_folders()
        free = shutil.disk_usage(self.root).free
        if free - self._reserve < needed:
            raise HostUnfit(
                f"The disk of {self.root} is too full: the dataset needs {_mib(needed)}, {_mib(free)} are free and "
                f"{_mib(self._reserve)} of them are kept in reserve. Free some space there or move DATASET_ROOT."
            )

    def _evict(self, needed: int) -> None:
        pinned = self._pins.held()
        present = [*self._files(), *self._trees()]
        excess = sum(entry.bytes for entry in present) + needed - self._max_bytes
        excess = max(excess, needed + self._reserve - shutil.disk_usage(self.root).free)
        for entry in sorted(present, key=lambda e: (not e.is_spare, e.used_ns)):
            if excess <= 0:
                break
            if entry.name in pinned or entry.is_linked:
                continue
            self._incoming.remove(entry.path)
            excess -= entry.bytes
        self._incoming.sweep()

    def _files(self) -> Iterator[_Entry]:
        for kind in (OBJECTS, SPARES):
            for shard in entries(self.root / kind):
                for file in entries(Path(shard.path)):
                    found = status(file)
                    if found is not None:
                        # a second hard link belongs to a view: removing this one would free nothing
                        is_linked, is_spare = found.st_nlink > 1, kind == SPARES
                        yield _Entry(file.name, Path(file.path), found.st_size, found.st_atime_ns, is_linked, is_spare)

    def _trees(self) -> Iterator[_Entry]:
        for tree in entries(self.root / "trees"):
            found = status(tree)
            if found is not None:
                yield _Entry(
                    tree.name, Path(tree.path), _tree_size(Path(tree.path)), found.st_atime_ns, is_linked=False
                )

    def _tree(self, identity: str) -> Path:
        return self.root / "trees" / name_of(identity)

    def _object(self, name: str, kind: str = OBJECTS) -> Path:
        return self.root / kind / name[:2] / name

    def _make_folders(self) -> None:
        folders = self._pins.folder, self._incoming.folder
        if not all(folder.is_dir() for folder in folders):  # they are missing after someone emptied the cache by hand
            with on_this_disk(self.root):
                for folder in folders:
                    folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with on_this_disk(self.root), (self.root / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel when a process dies
            yield

    @staticmethod
    def _touch(path: Path, modified: float) -> None:
        try:
            os.utime(path, (time.time(), modified))
        except PermissionError:  # an entry of another user: readable, but its time of last use cannot be set
            return


def _tree_size(tree: Path) -> int:
    """Return the size of a tree in bytes: as recorded, or counted if the record is damaged."""
    try:
        return int((tree / TREE_SIZE).read_text())
    except (OSError, ValueError):
        return sum(path.lstat().st_size for path in tree.rglob("*"))


def _seal(name: str) -> float:
    """Return a modification time for an entry: even seconds, which every file system stores, from 2001 to 2033."""
    return 1_000_000_000 + int(name[:12], 16) % 500_000_000 * 2


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
