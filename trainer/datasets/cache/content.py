"""Every object once: files and extracted trees by the identity of their content, shared by all runs and processes.

    objects/ab/abcdef…   a file       trees/abcdef…/   an extracted archive     spares/ab/abcdef…   what can be made again
    tmp/                 not complete yet              pins/  who uses what      lock  held while evicting or pinning

An entry appears by one rename, after its content was synced, so it is never torn, nor empty after a power cut. A pin
belongs to a folder (a run's staging folder) and lasts as long as that folder exists: no process has to live for it, and
a crashed run's pin goes when its folder is cleaned up. Files are read-only and carry a modification time that is
computed from their identity: one that was written to, say through a hard link, no longer has it, and counts as missing.
The access time says when an entry was last wanted.
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

TREE_SIZE = ".size"  # the file in a tree that says how many bytes the tree has
OBJECTS, SPARES = "objects", "spares"
Put: TypeAlias = Callable[[str, Path], object]  # what takes a complete file under its identity


@dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    bytes: int
    used_ns: int
    is_linked: bool
    is_spare: bool = False


class ContentCache:
    """A folder of content by identity, kept within `max_bytes` by evicting what was used longest ago.

    Identities are any text that changes when the content does, for example bucket, key, etag and size. `reserve` are
    the bytes of the disk that stay free. Raises `HostUnfit` when the disk is the problem.
    """

    def __init__(self, root: Path, *, max_bytes: int, reserve: int = 1 << 30) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._reserve = reserve
        self._pins = Pins(root)
        self._incoming = Incoming(root / "tmp")

    def get(self, identity: str, size: int) -> Path | None:
        """The complete, unchanged file of that identity, or None. Marks it as just used."""
        name = name_of(identity)
        path = self._object(name)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if found.st_size != size or found.st_mtime != _seal(name):
            path.unlink(missing_ok=True)  # those who linked it keep their copy; the next run gets the true content
            return None
        self._touch(path, _seal(name))
        return path

    def put(self, identity: str, file: Path) -> Path:
        """Move a complete file (made by `temporary`) in; one that another process put first is replaced by ours."""
        with on_this_disk(self.root):
            durable.sync(file)
        return self._put(file, name_of(identity))

    @contextmanager
    def arriving(self) -> Iterator[Arrivals]:
        """Take many files, in batches: they become entries once their batch is synced, the last ones when the block ends."""
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
        """Give the spare file of that identity the second name `path`; False if there is none."""
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
        except OSError as error:  # not there, or on a file system without links: it can be made again
            return error.errno == errno.EEXIST
        self._touch(spare, _seal(name))
        return True

    def put_spares(self, files: Mapping[str, Path]) -> int:
        """Move complete, synced files in, by identity, as far as there is room without evicting anything else; how many.

        Spares that were used longest ago make room for them, and all spares for anything else.
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
        """The folder of that identity, or None. Marks it as just used. Whether it is whole is for the caller to check."""
        path = self._tree(identity)
        if not path.is_dir():
            return None
        self._touch(path, path.stat().st_mtime)
        return path

    def put_tree(self, identity: str, folder: Path, size: int, is_whole: Callable[[Path], bool]) -> Path:
        """Move a complete folder of `size` bytes in; when another process put a whole one first, theirs is kept."""
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
        """Forget a tree that turned out to be damaged."""
        self._make_folders()
        with self._locked():
            self._incoming.remove(self._tree(identity))

    def temporary(self) -> AbstractContextManager[Path]:
        """A new path on the cache's file system, for `put` or `put_tree`; what is left there is removed."""
        self._make_folders()
        return self._incoming.temporary()

    def receiving(self, identity: str, size: int) -> AbstractContextManager[Path]:
        """A path to download `size` bytes to. For a large object it is the same one the next time.

        So a store that left the beginning of it beside that path can go on from there, unless another process is at
        it at this moment, which gets a path of its own.
        """
        self._make_folders()
        return self._incoming.receiving(identity, size)

    def pin(self, holder: Path, identities: Iterable[str]) -> None:
        """Keep these entries, present or to come, as long as the folder `holder` exists. Pins add up."""
        self._make_folders()
        with self._locked(), on_this_disk(self._pins.folder):
            self._pins.add(holder, map(name_of, identities))

    def make_room(self, needed: int) -> None:
        """Evict until `needed` more bytes fit into the limit and onto the disk.

        Entries in use are kept even over the limit; raises `HostUnfit` when the disk has too little room.
        """
        self._make_folders()
        with self._locked():
            self._evict(needed)
        self.require_free(needed)

    def tidy(self) -> None:
        """Remove what crashes left: pins of folders that are gone, and what was on its way in."""
        if not self.root.is_dir():
            return
        with self._locked():
            self._pins.held()
            self._incoming.sweep()

    def require_free(self, needed: int) -> None:
        """Raise `HostUnfit`, naming path, need and free space, when the disk has no room for `needed` bytes."""
        self._make_folders()
        free = shutil.disk_usage(self.root).free
        if free - self._reserve < needed:
            raise HostUnfit(
                f"The disk of {self.root} is too full: the dataset needs {_mib(needed)}, {_mib(free)} are free and "
                f"{_mib(self._reserve)} of them are kept in reserve; free space there or move DATASET_ROOT.",
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
                        # a second name means that a view holds it: removing ours would free nothing
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
        if not all(folder.is_dir() for folder in folders):  # also when somebody emptied the cache by hand
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
        except PermissionError:  # another user's entry: still good to read, it only looks older than it is
            return


def _tree_size(tree: Path) -> int:
    """Bytes, as they were noted, or counted where the note is damaged."""
    try:
        return int((tree / TREE_SIZE).read_text())
    except (OSError, ValueError):
        return sum(path.lstat().st_size for path in tree.rglob("*"))


def _seal(name: str) -> float:
    """A modification time for the content: whole even seconds, which every file system keeps, in 2001 to 2033."""
    return 1_000_000_000 + int(name[:12], 16) % 500_000_000 * 2


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
