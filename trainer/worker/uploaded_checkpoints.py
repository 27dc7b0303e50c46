"""The on-disk list of uploaded checkpoints of this service, for their later deletion.

Each run has one file, in a folder that no training can write to. The lines of the file:

    {"bucket": …, "key": …, "at": …}   written before an upload starts
    {"deleted": key}                    written after the object was deleted

Only objects with a key in this list are deleted. A checkpoint is kept while its run can still resume from it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from io import FileIO
from pathlib import Path
from urllib.parse import quote, unquote

import structlog

from trainer.core.artifact_keys import is_checkpoint_of
from trainer.core.dataset import ObjectRef
from trainer.core.errors import TrainerError
from trainer.core.job import JsonObject, Status
from trainer.core.ports import ObjectStore
from trainer.core.run_row import RunRow
from trainer.core.stop import Stopped
from trainer.disk import durable
from trainer.worker.run_folders import RunFolders

log = structlog.get_logger()

RUNS_AT_ONCE = 100  # limit of runs per call of `tidy`
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0  # seconds between tries while the queue or the store is unavailable
ENDED_FOR_GOOD = (Status.COMPLETED, Status.CANCELED)


@dataclass(eq=False)
class UploadedCheckpoints:
    """The uploaded checkpoints of all runs of this host. Safe for threads and processes.

    The checkpoint in the row of a failed run is kept for `keep_seconds`, because the user can requeue the run.
    """

    folder: Path
    _: KW_ONLY
    store: ObjectStore
    bucket: str
    row_of: Callable[[str], RunRow | None]
    folders: RunFolders
    keep_seconds: float
    _pause: float = field(default=0.0, init=False)
    _not_before: float = field(default=0.0, init=False)  # monotonic time of the next try

    def note(self, run_id: str, key: str) -> None:
        """Add a checkpoint to the list, before its upload. A key of another run or object is ignored.

        If the list cannot be written, the checkpoint is uploaded without an entry and may stay in the bucket.
        """
        if is_checkpoint_of(run_id, key):
            self._try_append(run_id, {"bucket": self.bucket, "key": key, "at": time.time()})

    def delete(self, run_id: str, key: str) -> None:
        """Delete a checkpoint from the bucket. Raises the errors of the store.

        A key of another run or object is ignored.
        """
        if is_checkpoint_of(run_id, key):
            self.store.delete(ObjectRef(bucket=self.bucket, key=key))
            self._try_append(run_id, {"deleted": key})

    def settle(self, run_id: str) -> None:
        """Delete the checkpoints that the run can no longer resume from. After an error, `tidy` tries again."""
        if time.monotonic() < self._not_before:
            return
        try:
            self._settle(run_id)
        except OSError as error:  # the list of this run cannot be read or written; other lists may be usable
            log.warning("checkpoints not deleted, trying again later", run_id=run_id, error=str(error))
        except (TrainerError, Stopped) as error:
            self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
            self._not_before = time.monotonic() + self._pause
            log.warning("checkpoints not deleted, trying again later", run_id=run_id, error=str(error))
        else:
            self._pause = 0.0

    def tidy(self) -> None:
        """Call `settle` for up to 100 runs, starting with the run that was checked least recently."""
        for run_id in self._runs()[:RUNS_AT_ONCE]:
            if time.monotonic() < self._not_before:
                return
            self.settle(run_id)

    def _settle(self, run_id: str) -> None:
        path = self._path(run_id)
        try:
            os.utime(path, follow_symlinks=False)  # the time of the file is the time of the last check
            listed = _read(path)
        except FileNotFoundError:
            return
        if self.folders.is_active(run_id):
            return
        row = self.row_of(run_id)
        if row is None or row.status in ENDED_FOR_GOOD:
            self.folders.remove_checkpoints(run_id)
        needed = self._needed(row, max((entry["at"] for entry in listed.values()), default=0.0))
        for key, entry in listed.items():
            if key != needed and is_checkpoint_of(run_id, key):
                self.store.delete(ObjectRef(bucket=entry["bucket"], key=key))
                self._append(run_id, {"deleted": key})
        if row is None or row.status in (*ENDED_FOR_GOOD, Status.FAILED):
            self._drop(run_id)  # removed last, so that `tidy` repeats these steps after a crash or an error

    def _needed(self, row: RunRow | None, last_upload: float) -> object:
        """Return the key of the checkpoint that the run can still resume from, or None."""
        if row is None or row.status in ENDED_FOR_GOOD:
            return None
        if row.status == Status.FAILED and time.time() - last_upload > self.keep_seconds:
            return None
        checkpoint = row.checkpoint
        return checkpoint.get("key") if isinstance(checkpoint, dict) else None

    def _runs(self) -> list[str]:
        try:
            with os.scandir(self.folder) as entries:
                found = [
                    (entry.stat(follow_symlinks=False).st_mtime, unquote(entry.name.removesuffix(".jsonl")))
                    for entry in entries
                    if entry.name.endswith(".jsonl") and entry.is_file(follow_symlinks=False)
                ]
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("list of uploaded checkpoints cannot be read", folder=str(self.folder), error=str(error))
            return []
        return [run_id for _, run_id in sorted(found)]

    def _path(self, run_id: str) -> Path:
        return self.folder / f"{quote(run_id, safe='')}.jsonl"

    def _try_append(self, run_id: str, line: JsonObject) -> None:
        try:
            self._append(run_id, line)
        except OSError as error:
            log.warning("list of uploaded checkpoints cannot be written", run_id=run_id, error=str(error))

    def _append(self, run_id: str, line: JsonObject) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(run_id)
        with _locked(path) as file:
            is_new = os.fstat(file.fileno()).st_size == 0
            # starts with a line break, because the last line may be incomplete
            file.write(b"\n" + json.dumps(line).encode() + b"\n")
            durable.sync(path)
            if is_new:
                durable.sync(self.folder)

    def _drop(self, run_id: str) -> None:
        path = self._path(run_id)
        with _locked(path):
            if not _read(path):
                path.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[FileIO]:
    while True:
        with path.open("ab", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # the previous owner of the lock may have removed the file
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield file
                return


def _read(path: Path) -> dict[str, JsonObject]:
    """Return the entries of the checkpoints that are not deleted yet, by key. Raises OSError."""
    listed: dict[str, JsonObject] = {}
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
            if "deleted" in line:
                listed.pop(line["deleted"], None)
            else:
                listed[str(line["key"])] = {"bucket": str(line["bucket"]), "at": float(line["at"])}
        except (ValueError, KeyError, TypeError):
            continue  # a power cut can leave an incomplete line
    return listed
