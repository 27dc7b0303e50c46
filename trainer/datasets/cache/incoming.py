"""Files and folders of the cache that are incomplete or not synced yet."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.datasets.cache.disk import NOT_OURS, entries, on_this_disk, status
from trainer.disk import durable
from trainer.disk.removal import remove_tree

LARGE = 8 << 20  # bytes; a partial download of a larger object is kept, so that it can be resumed
STALE_SECONDS = 24 * 3600.0  # older temporary files are leftovers of crashes
# a batch is synced when it reaches one of these limits, so that a killed process loses few files
BATCH_SECONDS = 30.0
BATCH_BYTES = 1 << 30
BATCH_FILES = 10_000  # the service lists them in memory


class Incoming:
    """A folder of temporary files on the file system of the cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """Yield a new path. When the context ends, remove the file or folder at this path."""
        path = self.folder / uuid.uuid4().hex
        try:
            yield path
        finally:
            try:
                path.unlink(missing_ok=True)
            except IsADirectoryError:
                _remove(path)

    @contextmanager
    def receiving(self, identity: str, size: int) -> Iterator[Path]:
        """See `ContentCache.receiving`."""
        if size <= LARGE:
            with self.temporary() as path:
                yield path
            return
        folder = self.folder / name_of(identity)
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
                # keep the folder only for a partial download: a complete file was already used, or is damaged
                if is_done or (folder / "object").exists():
                    _remove(folder)

    def remove(self, path: Path) -> None:
        """Remove an entry. A folder is renamed first, so that no process finds a partially removed folder."""
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        with self.temporary() as doomed:
            path.rename(doomed)

    def sweep(self) -> None:
        """Remove the leftovers of crashes."""
        for left in entries(self.folder):
            found = status(left)
            # the modification time is not the age: it is computed from the identity of the entry
            if found is None or time.time() - found.st_ctime <= STALE_SECONDS or _is_downloading(Path(left.path)):
                continue
            if left.is_dir(follow_symlinks=False):
                _remove(Path(left.path))
            else:
                with contextlib.suppress(*NOT_OURS):
                    Path(left.path).unlink()


class FileBatch:
    """Complete files that are synced together. Then `admit(file, name)` makes each file an entry.

    One sync for many files is cheap; one sync per file would take longer than the downloads. Thread-safe.
    """

    def __init__(self, folder: Path, admit: Callable[[Path, str], object]) -> None:
        self._top = folder
        self._admit = admit
        self._lock = threading.Lock()
        self._batch: Path | None = None
        self._began = 0.0
        self._bytes = self._files = 0

    def put(self, identity: str, file: Path) -> None:
        """Add a complete file. `ContentCache.get` finds the file after its batch is synced."""
        size = file.stat().st_size
        with self._lock, on_this_disk(self._top):
            if self._batch is None:
                self._batch, self._began = self._top / uuid.uuid4().hex, time.monotonic()
                self._bytes = self._files = 0
                self._batch.mkdir()
            file.replace(self._batch / name_of(identity))
            self._bytes += size
            self._files += 1
            is_due = (
                self._bytes >= BATCH_BYTES
                or self._files >= BATCH_FILES
                or time.monotonic() - self._began >= BATCH_SECONDS
            )
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Sync the current batch and turn its files into entries."""
        with self._lock:
            batch, self._batch = self._batch, None
        if batch is None:
            return
        try:
            with on_this_disk(self._top):
                durable.sync_below(batch)
                for file in entries(batch):
                    self._admit(Path(file.path), file.name)
                # sync the new names: without this sync, a power cut could undo the renames
                durable.sync_below(self._top)
        finally:
            _remove(batch)


def _remove(folder: Path) -> None:
    """Remove a folder. What cannot be removed now is removed by a later sweep."""
    with contextlib.suppress(OSError):
        remove_tree(folder)


def _is_downloading(folder: Path) -> bool:
    """Return whether a process is downloading a large object into the folder. A download can take days."""
    try:
        with (folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the lock does not exist
        return False
    return False


def name_of(identity: str) -> str:
    """Return the file name of the entry for an identity."""
    return hashlib.sha256(identity.encode()).hexdigest()
