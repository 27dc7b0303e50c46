"""Resumable uploads (TUS): chunks at an offset that the server keeps, under a URL that we keep on disk."""

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

CHUNK = 6 * 1024 * 1024  # bytes; what the hosted service asks for
_SLICE = 256 * 1024
_ROUTE = "/upload/resumable"
_TUS = {"Tus-Resumable": "1.0.0"}
_KEPT_SECONDS = 48 * 3600  # the server forgets an unfinished upload after a day
_GONE = {404, 410}


class UploadNotes:
    """Which upload a file is in the middle of, in a folder that survives a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def tidy(self) -> None:
        """Remove the notes of uploads that the server has forgotten. Raises OSError."""
        if not self._folder.is_dir():
            return
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # the upload ended
                        if entry.stat(follow_symlinks=False).st_mtime < time.time() - _KEPT_SECONDS:
                            Path(entry.path).unlink()

    def place(self, server: str, ref: ObjectRef, path: Path) -> Path:
        """The note of this very content of `path` on its way to `ref`: another file at that path has another."""
        status = path.stat()
        identity = [server, ref.bucket, ref.key, str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]
        return self._folder / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:40]}.json"


class ResumableUpload:
    """One file on its way. `step` sends what is left; after an `Unavailable` it may be called again."""

    def __init__(self, api: StorageApi, ref: ObjectRef, path: Path, content_type: str, notes: UploadNotes) -> None:
        self._api, self._ref, self._path, self._type = api, ref, path, content_type
        self._bytes = path.stat().st_size
        self._note = notes.place(api.base, ref, path)
        self._target = Target(bucket=ref.bucket, key=ref.key, writing=True, bytes=self._bytes)
        self.offset = 0
        self._begun: str | None = None  # the upload, where its note could not be written

    def step(self, stop: StopSignal, on_position: Callable[[int], None]) -> None:
        name = self._recall() or self._create()
        with self._path.open("rb") as source:
            while self.offset < self._bytes:
                source.seek(self.offset)
                chunk = source.read(CHUNK)
                if len(chunk) < min(CHUNK, self._bytes - self.offset):
                    raise Misconfigured(f"{self._path} became shorter while it was uploaded")
                self.offset = self._send(name, chunk, stop, on_position)
        self._forget()

    def _recall(self) -> str | None:
        """The upload that was begun, if the server still knows it; sets the offset that it has reached."""
        name = self._begun or self._noted()
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
        # behind a gateway the Location may name a host that only the server can reach: ours is the one that works
        _, found, name = answer.headers.get("Location", "").partition(f"{_ROUTE}/")
        if not found:
            raise Unavailable(f"storage at {self._api.host} began an upload without saying where")
        try:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            durable.write_text(self._note, json.dumps({"upload": name, "file": str(self._path)}))
        except OSError:  # a full disk: only after a restart the upload begins again
            self._begun = name
        self.offset = 0
        return name

    def _noted(self) -> str | None:
        try:
            return str(json.loads(self._note.read_bytes())["upload"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _forget(self) -> None:
        self._begun = None
        with contextlib.suppress(OSError):  # the server says again that it does not know it
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
            raise Unavailable(f"storage at {self._api.host} forgot the upload of {self._ref.key!r}: it begins again")
        return _offset(answer, self.offset + len(chunk))


def slices(data: bytes, stop: StopSignal, on_sent: Callable[[int], None]) -> Iterator[bytes]:
    """`data` in pieces; raises `Stopped` between two of them."""
    for start in range(0, len(data), _SLICE):
        stop.raise_if_set()
        piece = data[start : start + _SLICE]
        yield piece
        on_sent(start + len(piece))


def _offset(answer: Answer, largest: int) -> int:
    """How much of the upload the server has: at most what it can have."""
    offset = number_in(answer.headers.get("Upload-Offset", ""), "Upload-Offset")
    if offset > largest:
        raise Unavailable(f"storage says that it has {offset} bytes of an upload, of which it can have {largest}")
    return offset
