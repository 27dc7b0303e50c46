"""Resumable uploads (TUS): the server keeps the offset, and this host keeps the ID of the upload on disk."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trainer.core.dataset import ObjectRef
from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.stop import StopSignal
from trainer.disk import durable
from trainer.remote.answers import number_in
from trainer.remote.storage_api import Answer, StorageApi, Target
from trainer.storage.files import shown

CHUNK = 6 * 1024 * 1024  # bytes; required by the hosted service
_SLICE = 256 * 1024
_ROUTE = "/upload/resumable"
_TUS = {"Tus-Resumable": "1.0.0"}
_KEPT_SECONDS = 48 * 3600  # the server discards an unfinished upload after a day
_GONE = {404, 410}


def tidy_notes(folder: Path) -> None:
    """Remove the files with the IDs of uploads (the notes) that the server has discarded. Raises OSError."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError, PermissionError):  # the upload ended
                    if entry.stat(follow_symlinks=False).st_mtime < time.time() - _KEPT_SECONDS:
                        Path(entry.path).unlink()


class ResumableUpload:
    """The upload of one file. `step` sends the remaining bytes; it can be called again after `Unavailable`.

    `notes` is a folder that survives a restart. A note is a file with the ID of an unfinished upload.
    """

    def __init__(self, api: StorageApi, ref: ObjectRef, path: Path, content_type: str, notes: Path) -> None:
        self._api, self._ref, self._path, self._type = api, ref, path, content_type
        status = path.stat()
        self._bytes = status.st_size
        # the name of the note changes with the file
        about = [api.base, ref.bucket, ref.key, str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]
        self._note = notes / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:40]}.json"
        self._target = Target(bucket=ref.bucket, key=ref.key, writing=True, bytes=self._bytes)
        self.offset = 0
        self._unnoted: str | None = None  # the id of the upload if its note cannot be written

    def step(self, stop: StopSignal, on_position: Callable[[int], None]) -> None:
        name = self._recall() or self._create()
        with self._path.open("rb") as source:
            while self.offset < self._bytes:
                source.seek(self.offset)
                chunk = source.read(CHUNK)
                if len(chunk) < min(CHUNK, self._bytes - self.offset):
                    raise Misconfigured(f"{shown(self._path)} became shorter during its upload")
                self.offset = self._send(name, chunk, stop, on_position)
        self._forget()

    def _recall(self) -> str | None:
        """Return the id of the unfinished upload if the server still knows it, and set its offset."""
        name = self._unnoted or self._noted()
        if name is None:
            return None
        answer = self._api.call("HEAD", f"{_ROUTE}/{name}", self._target, headers=_TUS, accept=_GONE | {400, 403})
        length = answer.headers.get("Upload-Length", str(self._bytes))
        if answer.status >= 400 or length != str(self._bytes):
            self._forget()
            return None
        self.offset = _offset(answer, self._bytes)
        return name

    def _create(self) -> str:
        metadata = {
            "bucketName": self._ref.bucket,
            "objectName": self._ref.key,
            "contentType": self._type,
            "cacheControl": "3600",
        }
        encoded = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in metadata.items())
        headers = {"Upload-Length": str(self._bytes), "Upload-Metadata": encoded, "x-upsert": "true", **_TUS}
        answer = self._api.call("POST", _ROUTE, self._target, headers=headers, content=b"")
        # behind a gateway, Location may name a host that only the server can reach, so use our own URL
        _, found, name = answer.headers.get("Location", "").partition(f"{_ROUTE}/")
        if not found:
            raise Unavailable(f"storage at {self._api.host} did not return the location of the new upload")
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            durable.write_text(self._note, json.dumps({"upload": name, "file": str(shown(self._path))}))
        except OSError:  # for example a full disk: after a restart, the upload starts from the beginning
            self._unnoted = name
        self.offset = 0
        return name

    def _noted(self) -> str | None:
        try:
            return str(json.loads(self._note.read_bytes())["upload"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _forget(self) -> None:
        self._unnoted = None
        with contextlib.suppress(OSError):  # at the next try, the server answers that the upload does not exist
            self._note.unlink(missing_ok=True)

    def _send(self, name: str, chunk: bytes, stop: StopSignal, on_position: Callable[[int], None]) -> int:
        headers = {
            "Upload-Offset": str(self.offset),
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(len(chunk)),
            "x-upsert": "true",
            **_TUS,
        }
        body = slices(chunk, stop, lambda sent: on_position(self.offset + sent))
        path = f"{_ROUTE}/{name}"
        answer = self._api.call("PATCH", path, self._target, headers=headers, content=body, accept=_GONE)
        if answer.status in _GONE:
            self._forget()
            raise Unavailable(
                f"storage at {self._api.host} discarded the upload of {self._ref.key!r}; the upload starts again"
            )
        return _offset(answer, self.offset + len(chunk))


def slices(data: bytes, stop: StopSignal, on_sent: Callable[[int], None]) -> Iterator[bytes]:
    """Yield `data` in pieces. Raises `Stopped` between two pieces."""
    for start in range(0, len(data), _SLICE):
        stop.raise_if_set()
        piece = data[start : start + _SLICE]
        yield piece
        on_sent(start + len(piece))


def _offset(answer: Answer, largest: int) -> int:
    """Return the number of bytes on the server. Raises Unavailable if it is larger than `largest`."""
    offset = number_in(answer.headers.get("Upload-Offset", ""), "Upload-Offset")
    if offset > largest:
        raise Unavailable(f"storage reports {offset} bytes of an upload, but at most {largest} bytes were sent")
    return offset
