"""An object store in Supabase Storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest, Misconfigured, ObjectMissing, Unavailable
from trainer.core.ports import ObjectInfo, OnBytes, StoredObject
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import StopSignal
from trainer.remote.answers import amount, mapping, number_in, text
from trainer.remote.stoppable import stoppable
from trainer.remote.storage_api import StorageApi, Target, TooLarge, object_path
from trainer.storage.buckets import Buckets
from trainer.storage.files import disk_errors
from trainer.storage.keys import KEY_ADVICE, escaped_key
from trainer.storage.listing import entries
from trainer.storage.partial import PartialFile
from trainer.storage.resumable import CHUNK, ResumableUpload, slices, tidy_notes

T = TypeVar("T")
_PLACEHOLDER = ".emptyFolderPlaceholder"
_TYPES = {
    ".csv": "text/csv", ".html": "text/html", ".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".json": "application/json",
    ".log": "text/plain", ".md": "text/markdown", ".png": "image/png", ".svg": "image/svg+xml", ".txt": "text/plain",
    ".webp": "image/webp", ".yaml": "application/yaml", ".yml": "application/yaml", ".zip": "application/zip",
}  # fmt: skip


class SupabaseObjectStore:
    """`ObjectStore` over the Storage API; thread-safe.

    `notes` is the folder for the IDs of unfinished uploads, so that they resume after a restart. `stop` interrupts the
    calls that get no `stop` argument. Signed URLs are valid for `url_seconds`.
    """

    name = "supabase"

    def __init__(
        self,
        api: StorageApi,
        *,
        notes: Path,
        stop: StopSignal,
        policy: RetryPolicy | None = None,
        url_seconds: int = 7 * 24 * 3600,
    ) -> None:
        self._api = api
        self._notes = notes
        self._stop = stop
        self._policy = policy or RetryPolicy()
        self._url_seconds = url_seconds
        self._buckets = Buckets(api, self._persist)

    def close(self) -> None:
        self._api.close()

    def tidy(self) -> None:
        """Remove the files with the IDs of abandoned uploads. Raises OSError."""
        tidy_notes(self._notes)

    def key(self, name: str) -> str:
        return escaped_key(name)

    def list(self, folder: ObjectRef, stop: StopSignal | None = None) -> Iterator[ObjectInfo]:
        folder, found, stop = folder.in_store(self.name), False, stop or self._stop
        prefix = folder.key.strip("/")
        for key, entry in entries(partial(self._ask, folder.bucket, stop), f"{prefix}/" if prefix else ""):
            found = True
            if PurePosixPath(key).name != _PLACEHOLDER:
                yield self._listed(replace(folder, key=key), entry)
        if not found:
            # a missing bucket has an empty listing; this call raises ObjectMissing for it
            self._buckets.settings(folder.bucket, stop)

    def stat(self, ref: ObjectRef) -> ObjectInfo:
        own = ref.in_store(self.name)
        return self._persist(lambda: self._stat(own), self._stop)

    def download(
        self,
        ref: ObjectRef,
        path: Path,
        stop: StopSignal,
        *,
        expected: ObjectInfo | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        stop.raise_if_set()
        ref = ref.in_store(self.name)
        target, position = _object(ref), _Position(on_bytes)
        part = PartialFile(path, stop)
        try:
            return self._persist(
                lambda: self._fetch(ref, target, part, expected, stop, position),
                stop,
                lambda: part.offset,
            )
        except BaseException:
            part.leave()
            raise

    def upload(
        self,
        path: Path,
        ref: ObjectRef,
        stop: StopSignal,
        *,
        content_type: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> StoredObject:
        stop.raise_if_set()
        ref = ref.in_store(self.name)
        _object(ref)
        content_type = content_type or _TYPES.get(PurePosixPath(ref.key).suffix.lower(), "application/octet-stream")
        position = _Position(on_bytes)
        try:
            with disk_errors(path):
                size = path.stat().st_size
                if size <= CHUNK:
                    with path.open("rb") as source:
                        data = source.read(size)  # a limit, because the file may grow
                    self._persist(lambda: self._send(data, ref, content_type, stop, position), stop)
                else:
                    large = ResumableUpload(self._api, ref, path, content_type, self._notes)
                    self._persist(lambda: large.step(stop, position.reached), stop, lambda: large.offset)
        except TooLarge as error:
            raise Misconfigured(f"{error}: {self._buckets.limit_advice(ref.bucket, stop)}") from error
        return StoredObject(ref=ref, bytes=size, url=self._url(ref, stop, is_stored=True))

    def delete(self, ref: ObjectRef) -> None:
        path, target = _object(ref.in_store(self.name)), Target(bucket=ref.bucket, key=ref.key)
        try:
            self._persist(lambda: mapping(self._api.call("DELETE", path, target).json(), "message"), self._stop)
        except ObjectMissing:
            return

    def url(self, ref: ObjectRef) -> str:
        _object(ref.in_store(self.name))
        return self._url(ref, self._stop)

    def _url(self, ref: ObjectRef, stop: StopSignal, *, is_stored: bool = False) -> str:
        if self._buckets.is_public(ref.bucket, stop):
            return self._api.base + object_path("object/public", ref.bucket, ref.key)
        path, target = object_path("object/sign", ref.bucket, ref.key), Target(bucket=ref.bucket, key=ref.key)
        body = {"expiresIn": self._url_seconds}

        def sign() -> str:
            try:
                answer = self._api.call("POST", path, target, body=body)
            except ObjectMissing as error:
                if not is_stored:
                    raise
                raise Unavailable(f"{error}, although it has just been stored") from error
            # take only the token from `signedURL`: the path in it is not encoded, and a key may contain `?`
            _, found, token = text(answer.json(), "signedURL").rpartition("?token=")
            if not found:
                raise Unavailable(
                    "storage signed a URL without a token; "
                    "look for a proxy or a login page between this host and the server"
                )
            return f"{self._api.base}{path}?token={token}"

        return self._persist(sign, stop)

    def _ask(
        self,
        bucket: str,
        stop: StopSignal,
        route: str,
        body: Mapping[str, Any],
        read: Callable[[Any], T],
    ) -> T:
        path, target = object_path(route, bucket, "").rstrip("/"), Target(bucket=bucket)
        return self._persist(lambda: read(self._api.call("POST", path, target, body=body).json()), stop)

    def _listed(self, ref: ObjectRef, entry: Mapping[str, Any]) -> ObjectInfo:
        metadata = entry.get("metadata")
        if not isinstance(metadata, dict) or metadata.get("size") is None or not metadata.get("eTag"):
            return self.stat(ref)
        return ObjectInfo(ref=ref, bytes=amount(metadata, "size"), etag=_plain_etag(text(metadata, "eTag")))

    def _stat(self, ref: ObjectRef) -> ObjectInfo:
        path, target = _object(ref), Target(bucket=ref.bucket, key=ref.key)
        answer = self._api.call("HEAD", path, target, accept={400, 404})
        # a HEAD response has no body with the reason, and some proxies remove its length
        if answer.status >= 400 or "Content-Length" not in answer.headers:
            info = self._api.call("GET", object_path("object/info", ref.bucket, ref.key), target).json()
            return ObjectInfo(ref=ref, bytes=amount(info, "size"), etag=_plain_etag(text(info, "etag")))
        return _described(ref, answer.headers)

    def _fetch(
        self,
        ref: ObjectRef,
        path: str,
        part: PartialFile,
        expected: ObjectInfo | None,
        stop: StopSignal,
        position: _Position,
    ) -> ObjectInfo:
        headers = {"Range": f"bytes={part.offset}-"} if part.offset else {}
        with self._api.stream("GET", path, headers=headers) as response:
            if not response.is_success:
                refusal = self._api.refused(self._api.read(response), Target(bucket=ref.bucket, key=ref.key))
                if part.offset and response.status_code in (400, 416):
                    part.discard()
                raise refusal
            info = _described(ref, response.headers)
            if expected and (expected.etag, expected.bytes) != (info.etag, info.bytes):
                part.discard()
                raise Unavailable(f"object {ref.key!r} of bucket {ref.bucket!r} changed since it was listed")
            # the server ignores If-Range, so compare ETag and size here
            resumes = response.status_code == 206 and _start(response.headers) == part.offset
            if response.status_code == 206 and not (resumes and (part.etag, part.bytes) == (info.etag, info.bytes)):
                part.discard()
                raise Unavailable(f"object {ref.key!r} of bucket {ref.bucket!r} changed during the download")
            if not resumes:
                part.begin(info)
            with part.writing() as out:
                for block in response.iter_raw():
                    stop.raise_if_set()
                    part.append(out, block)
                    position.reached(part.offset)
        stop.raise_if_set()
        part.publish(info)
        return info

    def _send(self, data: bytes, ref: ObjectRef, content_type: str, stop: StopSignal, position: _Position) -> None:
        headers = {"Content-Type": content_type, "Content-Length": str(len(data)), "x-upsert": "true"}
        target = Target(bucket=ref.bucket, key=ref.key, writing=True, bytes=len(data))
        body = slices(data, stop, position.reached)
        # a login page answers every upload with 200; only Storage returns the key of the stored object
        text(self._api.call("POST", _object(ref), target, headers=headers, content=body).json(), "Key")

    def _persist(self, call: Callable[[], T], stop: StopSignal, progress: Callable[[], int] | None = None) -> T:
        """Call `call` with retries. Progress resets the number of retries to 0."""
        with stoppable(stop):
            while True:
                before = progress() if progress else 0
                try:
                    return retrying(call, self._policy, stop)
                except Unavailable:
                    if not progress or progress() <= before:
                        raise


class _Position:
    """Reports the progress of a transfer: each byte once, even if it is sent several times."""

    def __init__(self, on_bytes: OnBytes | None) -> None:
        self._on_bytes = on_bytes
        self._reported = 0

    def reached(self, offset: int) -> None:
        if self._on_bytes and offset > self._reported:
            self._on_bytes(offset - self._reported)
        self._reported = max(self._reported, offset)


def _object(ref: ObjectRef) -> str:
    """Return the path of an object. Raises BadRequest for a key that a client or a gateway would change."""
    segments = ref.key.split("/")
    if not ref.bucket or "/" in ref.bucket or any(segment in ("", ".", "..") for segment in segments):
        raise BadRequest(f"{ref.key!r} cannot be an object of bucket {ref.bucket!r}: {KEY_ADVICE}")
    return object_path("object", ref.bucket, ref.key)


def _plain_etag(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _described(ref: ObjectRef, headers: Mapping[str, str]) -> ObjectInfo:
    etag = _plain_etag(headers.get("ETag", ""))
    length = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    if not etag:
        raise Unavailable(
            f"the answer for {ref.key!r} is not from storage; "
            "look for a proxy or a login page between this host and the server"
        )
    return ObjectInfo(ref=ref, bytes=number_in(length, "Content-Length"), etag=etag)


def _start(headers: Mapping[str, str]) -> int:
    start = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return number_in(start, "Content-Range") if start else -1
