"""An object store in a folder of this host: one folder per bucket, one file per object."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from trainer.core.dataset import ObjectRef
from trainer.core.errors import ObjectMissing, Unavailable
from trainer.core.json_text import storable
from trainer.core.ports import ObjectInfo, OnBytes, StoredObject
from trainer.core.stop import StopSignal
from trainer.storage.files import copy, disk_errors, is_temporary, replacing
from trainer.storage.keys import KEY_ADVICE, escaped_key, is_escaped

_PLACEHOLDER = ".emptyFolderPlaceholder"
_ABANDONED = 86_400.0  # seconds without a write after which a temporary file counts as abandoned


class LocalObjectStore:
    """`ObjectStore` over `root`. An upload creates its bucket; no key can name a file outside of the bucket."""

    name = "local"

    def __init__(self, root: Path) -> None:
        self._root = root

    def tidy(self) -> None:
        """Remove temporary files that no process has written to for a day."""
        for folder, _, names in os.walk(self._root):
            for path in (Path(folder, name) for name in names if is_temporary(name)):
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    if path.lstat().st_mtime < time.time() - _ABANDONED:
                        path.unlink()

    def key(self, name: str) -> str:
        # A key is text, so a name that is not UTF-8 is escaped. Different names must have different keys, so a name
        # that looks like an escaped name is also escaped.
        return escaped_key(name) if storable(name) != name or is_escaped(name) else name

    def list(self, folder: ObjectRef, stop: StopSignal | None = None) -> Iterator[ObjectInfo]:
        folder = folder.in_store(self.name)
        bucket = self._bucket(folder.bucket)
        if not bucket.is_dir():
            raise ObjectMissing(f"bucket {folder.bucket!r} does not exist: there is no folder {bucket}")
        key = folder.key.strip("/")
        top = self._path(replace(folder, key=key)) if key else bucket
        if top.is_dir():
            yield from self._inside(folder.bucket, top)

    def stat(self, ref: ObjectRef) -> ObjectInfo:
        ref, path = ref.in_store(self.name), self._path(ref)
        with disk_errors(path):
            try:
                return _info(ref, path.stat())
            except (FileNotFoundError, NotADirectoryError):
                raise _missing(ref) from None

    def download(
        self,
        ref: ObjectRef,
        path: Path,
        stop: StopSignal,
        *,
        expected: ObjectInfo | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        before = self.stat(ref)
        _must_equal(expected or before, before)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # not durable: after a power cut, the file can be downloaded again
            with self._path(ref).open("rb") as source, replacing(path, durable=False) as out:
                copy(source, out, before.bytes, stop, on_bytes)
                _must_equal(before, _info(ref, os.fstat(source.fileno())))
                if out.tell() != before.bytes:
                    raise _changed(ref)
        return before

    def upload(
        self,
        path: Path,
        ref: ObjectRef,
        stop: StopSignal,
        *,
        content_type: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> StoredObject:
        ref, target = ref.in_store(self.name), self._path(ref)
        with disk_errors(path), path.open("rb") as source, disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target, durable=True) as out:
                copy(source, out, os.fstat(source.fileno()).st_size, stop, on_bytes)
                size = out.tell()
        return StoredObject(ref=ref, bytes=size, url=self.url(ref))

    def delete(self, ref: ObjectRef) -> None:
        path = self._path(ref)
        with disk_errors(path):
            try:
                path.unlink(missing_ok=True)
            except (NotADirectoryError, IsADirectoryError):
                return  # a folder is not an object

    def url(self, ref: ObjectRef) -> str:
        return self._path(ref).absolute().as_uri()

    def _bucket(self, bucket: str) -> Path:
        if bucket in ("", ".", "..") or "/" in bucket or "\0" in bucket:
            raise ObjectMissing(f"{bucket!r} is not the name of a bucket")
        return self._root / bucket

    def _path(self, ref: ObjectRef) -> Path:
        """Return the file of `ref`. Raises ObjectMissing for an invalid key, or for a link out of the bucket."""
        bucket = self._bucket(ref.in_store(self.name).bucket)
        key = PurePosixPath(ref.key)
        plain = str(key) == ref.key and not key.is_absolute() and ".." not in key.parts and "\0" not in ref.key
        if not plain or ref.key == ".":
            raise ObjectMissing(f"{ref.key!r} cannot be an object of bucket {ref.bucket!r}: {KEY_ADVICE}")
        path = bucket / key
        with disk_errors(path):
            inside = path.resolve().is_relative_to(bucket.resolve())
        if not inside:
            raise ObjectMissing(
                f"{ref.key!r} is a symbolic link that leaves bucket {ref.bucket!r}: copy the file into the bucket",
            )
        return path

    def _inside(self, bucket: str, folder: Path) -> Iterator[ObjectInfo]:
        with disk_errors(folder), os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            path = folder / entry.name
            ref = ObjectRef(store=self.name, bucket=bucket, key=path.relative_to(self._root / bucket).as_posix())
            if entry.is_dir(follow_symlinks=False):
                yield from self._inside(bucket, path)
            elif entry.is_dir():
                # following the link could loop forever, and skipping it would make the list incomplete
                raise ObjectMissing(f"{ref.key!r} in bucket {bucket!r} is a symbolic link to a folder: copy the folder")
            elif entry.name != _PLACEHOLDER and not is_temporary(entry.name):
                yield self.stat(ref)


def _info(ref: ObjectRef, status: os.stat_result) -> ObjectInfo:
    if not stat.S_ISREG(status.st_mode):
        raise _missing(ref)
    # an upload always creates a new file, so size, time or inode changes with the content
    etag = f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"
    return ObjectInfo(ref=ref, bytes=status.st_size, etag=etag)


def _missing(ref: ObjectRef) -> ObjectMissing:
    return ObjectMissing(f"object {ref.key!r} does not exist in bucket {ref.bucket!r}")


def _must_equal(expected: ObjectInfo, found: ObjectInfo) -> None:
    if (expected.etag, expected.bytes) != (found.etag, found.bytes):
        raise _changed(found.ref)


def _changed(ref: ObjectRef) -> Unavailable:
    return Unavailable(f"object {ref.key!r} of bucket {ref.bucket!r} changed since it was listed")
