"""The objects, uploads and faults of the fake Storage server."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Refusal(Exception):
    """An error response: nearly always HTTP 400, with the real status in the body."""

    def __init__(self, code: int, error: str, message: str, http: int = 400) -> None:
        super().__init__(message)
        self.http = http
        self.body = {"statusCode": str(code), "error": error, "message": message, "code": error}


class Cut(Exception):
    """Raised to close the connection without sending another byte."""


@dataclass
class Bucket:
    public: bool = False
    file_size_limit: int | None = None
    mime_types: list[str] | None = None


@dataclass
class Stored:
    file: Path
    size: int
    md5: str
    mime: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()))


@dataclass
class Upload:
    bucket: str
    key: str
    mime: str
    length: int
    file: Path
    lock: threading.Lock = field(
        default_factory=threading.Lock
    )  # each request holds the lock until its end, even if the client has disconnected


@dataclass
class Fault:
    """A fault in the next `times` requests whose `METHOD /path` contains `on`.

    status       answer with `status`, `headers` and `body`
    portal       answer with a login page
    delay        answer after `seconds`
    slow         send or receive `rate` bytes per second
    cut          close the connection after `after` bytes of the response's body
    cut_request  close the connection after `after` bytes of the request's body
    lost         perform the request, and close the connection without an answer
    truncate     send only the first `after` bytes of the object, as if the object ended there
    corrupt      change the first byte of the object
    etag         send a wrong ETag
    """

    kind: str
    on: str
    times: int
    status: int = 503
    after: int = 0  # bytes
    seconds: float = 0.0
    rate: float = 1e6  # bytes per second
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


class StorageState:
    """The state of the server. `requests`: "METHOD /path", without the prefix `/storage/v1` and the query."""

    def __init__(
        self, buckets: dict[str, bool] | None, *, key: str, anon_key: str, limit: int | None, v2: bool,
    ) -> None:  # fmt: skip
        self.buckets = {name: Bucket(public) for name, public in (buckets or {}).items()}
        self.keys, self.limit, self.v2 = {key: "service", anon_key: "anon"}, limit, v2
        self.objects: dict[str, dict[str, Stored]] = {name: {} for name in self.buckets}
        self.uploads: dict[str, Upload] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.received = self.sent = 0  # bytes of object bodies
        self.lock = threading.RLock()
        self.busy = 0  # requests in progress
        self.idle = threading.Condition(self.lock)
        self.tus_host = ""  # the URL for resumable uploads
        self._secret = secrets.token_hex(8)
        self._folder = tempfile.TemporaryDirectory(prefix="storage-")

    def remove_files(self) -> None:
        self._folder.cleanup()

    def fault(self, kind: str, *, on: str = "", times: int = 1, **details: Any) -> Fault:
        """Add a fault to the next `times` requests whose `METHOD /path` contains `on`."""
        with self.lock:
            self.faults.append(Fault(kind, on, times, **details))
            return self.faults[-1]

    def sent_when_idle(self) -> int:
        """Return `sent` after all responses have ended, including responses to disconnected clients."""
        with self.idle:
            assert self.idle.wait_for(lambda: self.busy == 0, 30)
            return self.sent

    def take_faults(self, request: str) -> dict[str, Fault]:
        with self.lock:
            self.requests.append(request)
            taken = {fault.kind: fault for fault in reversed(self.faults) if fault.times > 0 and fault.on in request}
            for fault in taken.values():
                fault.times -= 1
            return taken

    def put(self, bucket: str, key: str, content: bytes, mime: str = "application/octet-stream") -> None:
        file = self.new_file()
        file.write_bytes(content)
        self.commit(bucket, key, file, mime)

    def get(self, bucket: str, key: str) -> bytes:
        return self.objects[bucket][key].file.read_bytes()

    def new_file(self) -> Path:
        return Path(self._folder.name) / uuid.uuid4().hex

    def commit(self, bucket: str, key: str, file: Path, mime: str) -> Stored:
        with file.open("rb") as content:
            md5 = hashlib.file_digest(content, "md5").hexdigest()
        with self.lock:
            stored = self.objects[bucket][key] = Stored(file, file.stat().st_size, md5, mime)
        return stored

    def token(self, path: str, expires: float) -> str:
        signature = hashlib.sha256(f"{self._secret}{path}{expires}".encode()).hexdigest()
        return base64.urlsafe_b64encode(json.dumps([path, expires, signature]).encode()).decode().rstrip("=")
