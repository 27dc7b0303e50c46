"""Every object once: files and extracted trees by the identity of their content, shared by all runs and processes.

    objects/ab/abcdef…   a file       trees/abcdef…/   an extracted archive     spares/ab/abcdef…   what can be made again
    tmp/                 not complete yet              pins/  who uses what      lock  held while evicting or pinning

An entry appears by one rename, so it is never torn. A pin belongs to a folder (a run's staging folder) and lasts as
long as that folder exists: no process has to live for it, and a crashed run's pin goes when its folder is cleaned up.
Files are read-only and carry a modification time that is computed from their identity: one that was written to, say
through a hard link, no longer has it, and counts as missing. The access time says when an entry was last wanted.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.core.errors import BROKEN_DISK, MachineFailed, disk_failed

MACHINE_ERRNOS = BROKEN_DISK | {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE}
TREE_SIZE = ".size"  # the file in a tree that says how many bytes the tree has
OBJECTS, SPARES = "objects", "spares"
LARGE = 8 << 20  # bytes from which a download is worth going on with
STALE_SECONDS = 24 * 3600.0  # a temporary file that nobody touched for this long is a crash's


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
    the bytes of the disk that stay free. Raises `MachineFailed` when the disk is the problem.
    """

    def __init__(self, root: Path, *, max_bytes: int, reserve: int = 1 << 30) -> None:
        self.root = root
        self._max_bytes = max_bytes
        self._reserve = reserve
        self._pins = root / "pins"
        self._tmp = root / "tmp"

    def get(self, identity: str, size: int) -> Path | None:
        """The complete, unchanged file of that identity, or None. Marks it as just used."""
        name = _name(identity)
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
        return self._put(file, _name(identity), OBJECTS)

    def _put(self, file: Path, name: str, kind: str) -> Path:
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
        name = _name(identity)
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
        """Move complete files in, by identity, as far as there is room without evicting anything else; how many.

        Spares that were used longest ago make room for them, and all spares for anything else.
        """
        self._make_folders()
        kept = 0
        with self._locked(), on_this_disk(self.root):
            entries = [*self._files(), *self._trees()]
            spares = sorted((entry for entry in entries if entry.is_spare), key=lambda entry: entry.used_ns)
            room = self._max_bytes - sum(entry.bytes for entry in entries)
            for identity, file in files.items():
                size = file.stat().st_size
                while room < size and spares:
                    oldest = spares.pop(0)
                    self._remove(oldest.path)
                    room += oldest.bytes
                if room < size or shutil.disk_usage(self.root).free < self._reserve:
                    break
                self._put(file, _name(identity), SPARES)
                room -= size
                kept += 1
        return kept

    def get_tree(self, identity: str) -> Path | None:
        """The complete folder of that identity, or None. Marks it as just used."""
        path = self.root / "trees" / _name(identity)
        if not path.is_dir():
            return None
        self._touch(path, path.stat().st_mtime)
        return path

    def put_tree(self, identity: str, folder: Path, size: int) -> Path:
        """Move a complete folder of `size` bytes in; when another process put it first, theirs is kept."""
        path = self.root / "trees" / _name(identity)
        with on_this_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            (folder / TREE_SIZE).write_text(str(size))
            try:
                folder.rename(path)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                shutil.rmtree(folder)
        return path

    def drop_tree(self, identity: str) -> None:
        """Forget a tree that turned out to be damaged."""
        self._make_folders()
        with self._locked():
            self._remove(self.root / "trees" / _name(identity))

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A new path on the cache's file system, for `put` or `put_tree`; what is left there is removed."""
        self._make_folders()
        path = self._tmp / uuid.uuid4().hex
        try:
            yield path
        finally:
            try:
                path.unlink(missing_ok=True)
            except IsADirectoryError:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def receiving(self, identity: str, size: int) -> Iterator[Path]:
        """A path to download `size` bytes to. For a large object it is the same one the next time.

        So a store that left the beginning of it beside that path can go on from there, unless another process is at
        it at this moment, which gets a path of its own.
        """
        if size <= LARGE:
            with self.temporary() as path:
                yield path
            return
        self._make_folders()
        folder = self._tmp / _name(identity)
        with on_this_disk(folder):
            folder.mkdir(exist_ok=True)
        with (folder / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with self.temporary() as other:
                    other.mkdir()
                    yield other / "object"
                return
            is_done = False
            try:
                yield folder / "object"
                is_done = True
            finally:
                if is_done or (folder / "object").exists():  # it arrived, and what failed came after
                    shutil.rmtree(folder, ignore_errors=True)

    def pin(self, holder: Path, identities: Iterable[str]) -> None:
        """Keep these entries, present or to come, as long as the folder `holder` exists. Pins add up."""
        self._make_folders()
        lines = [os.path.relpath(holder.resolve(), self.root.resolve()), *sorted({_name(i) for i in identities})]
        with self._locked(), on_this_disk(self._pins):
            (self._pins / uuid.uuid4().hex).write_text("\n".join(lines))

    def make_room(self, needed: int) -> None:
        """Evict until `needed` more bytes fit into the limit and onto the disk.

        Entries in use are kept even over the limit; raises `MachineFailed` when the disk has too little room.
        """
        self._make_folders()
        with self._locked():
            self._evict(needed)
        self.require_free(needed)

    def require_free(self, needed: int) -> None:
        """Raise `MachineFailed`, naming path, need and free space, when the disk has no room for `needed` bytes."""
        self._make_folders()
        free = shutil.disk_usage(self.root).free
        if free - self._reserve < needed:
            raise MachineFailed(
                f"The disk of {self.root} is too full: the dataset needs {_mib(needed)}, {_mib(free)} are free and "
                f"{_mib(self._reserve)} of them are kept in reserve; free space there or move DATASET_ROOT.",
            )

    def _evict(self, needed: int) -> None:
        pinned = self._pinned()
        entries = [*self._files(), *self._trees()]
        excess = sum(entry.bytes for entry in entries) + needed - self._max_bytes
        excess = max(excess, needed + self._reserve - shutil.disk_usage(self.root).free)
        for entry in sorted(entries, key=lambda e: (not e.is_spare, e.used_ns)):
            if excess <= 0:
                break
            if entry.name in pinned or entry.is_linked:
                continue
            self._remove(entry.path)
            excess -= entry.bytes
        self._sweep_tmp()

    def _remove(self, path: Path) -> None:
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        doomed = self._tmp / uuid.uuid4().hex  # renamed first: a half-removed tree must not look complete
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _files(self) -> Iterator[_Entry]:
        for kind in (OBJECTS, SPARES):
            for shard in _scan(self.root / kind):
                for file in _scan(Path(shard.path)):
                    found = _stat(file)
                    if found is not None:
                        # a second name means that a view holds it: removing ours would free nothing
                        is_linked, is_spare = found.st_nlink > 1, kind == SPARES
                        yield _Entry(file.name, Path(file.path), found.st_size, found.st_atime_ns, is_linked, is_spare)

    def _trees(self) -> Iterator[_Entry]:
        for tree in _scan(self.root / "trees"):
            found = _stat(tree)
            if found is not None:
                size = int((Path(tree.path) / TREE_SIZE).read_text())
                yield _Entry(tree.name, Path(tree.path), size, found.st_atime_ns, is_linked=False)

    def _pinned(self) -> set[str]:
        names: set[str] = set()
        root = self.root.resolve()  # holders are relative, so that they hold under another mount point too
        for pin in _scan(self._pins):
            holder, *pinned = Path(pin.path).read_text().split("\n")
            if (root / holder).is_dir():
                names.update(pinned)
            else:
                Path(pin.path).unlink(missing_ok=True)
        return names

    def _sweep_tmp(self) -> None:
        for left in _scan(self._tmp):
            found = _stat(left)
            # not the modification time: `put` sets that to the seal, which may be years ago
            if found is not None and time.time() - found.st_ctime > STALE_SECONDS:
                if left.is_dir(follow_symlinks=False):
                    shutil.rmtree(left.path, ignore_errors=True)
                else:
                    Path(left.path).unlink(missing_ok=True)

    def _object(self, name: str, kind: str = OBJECTS) -> Path:
        return self.root / kind / name[:2] / name

    def _make_folders(self) -> None:
        if not (self._tmp.is_dir() and self._pins.is_dir()):  # also when somebody emptied the cache by hand
            with on_this_disk(self.root):
                self._pins.mkdir(parents=True, exist_ok=True)
                self._tmp.mkdir(exist_ok=True)

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


def _name(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()


def _seal(name: str) -> float:
    """A modification time for the content: whole even seconds, which every file system keeps, in 2001 to 2033."""
    return 1_000_000_000 + int(name[:12], 16) % 500_000_000 * 2


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
