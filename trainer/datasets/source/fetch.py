"""Fetch the dataset of a reference as a complete, read-only source tree on local disk."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trainer.core.dataset import DatasetRef, DiskRef, HttpRef, ObjectRef
from trainer.core.errors import DatasetError, Misconfigured, ObjectMissing, Unavailable
from trainer.core.ports import ObjectInfo, ObjectStore
from trainer.core.stop import StopSignal
from trainer.core.text import shown
from trainer.core.transfer import Meter, OnTransfer
from trainer.datasets.cache.content import ContentCache, Put
from trainer.datasets.cache.disk import on_this_disk
from trainer.datasets.decoder import Decoder
from trainer.datasets.source.archive import is_archive, sniff
from trainer.datasets.source.archive_trees import ArchiveTrees, room_check
from trainer.datasets.source.fetched_tree import Fetched
from trainer.datasets.source.manifest import (
    ANNOTATION_SUFFIXES,
    Manifest,
    difference,
    identity_of,
    locate,
    suffix,
    take_manifest,
)
from trainer.datasets.source.ndjson import SUFFIXES as NDJSON
from trainer.datasets.source.ndjson_export import MAX_TEXT_BYTES
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.transfer import Transfer, in_parallel, link_tree
from trainer.datasets.source.url_files import WebSource, content_identity, web_identity
from trainer.datasets.source.yaml_folders import NeededFolders
from trainer.remote.web import Downloaded, GuardedClient

MAX_SYNCS = 3  # attempts to download a dataset that changes during its download


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """Fetches datasets to local disk through the content cache.

    Without a `store`, `fetch` raises `Misconfigured` for `storage:` datasets. `decode` reads the untrusted files.
    """

    rules: ReferenceRules
    cache: ContentCache
    web: GuardedClient
    store: ObjectStore | None
    decode: Decoder
    concurrency: int = 16

    def fetch(self, ref: DatasetRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        """Return the dataset of `ref`, complete on disk.

        `staging` is a new folder on the file system of the dataset root, usually inside the run's view. Until the
        folder is removed, the cache does not evict the files of the dataset.
        Raises `DatasetError` (or `ObjectMissing`), `Unavailable`, `Misconfigured`, `MachineFailed` or `Stopped`.
        """
        stop.raise_if_set()
        with on_this_disk(staging):
            staging.mkdir(parents=True)
        transfer = Transfer(staging, stop, on_event)
        if isinstance(ref, DiskRef):
            return self._from_disk(ref, transfer)
        return self._from_store(ref, transfer) if isinstance(ref, ObjectRef) else self._from_web(ref, transfer)

    @property
    def _trees(self) -> ArchiveTrees:
        return ArchiveTrees(self.cache, self.decode)

    @property
    def _url_files(self) -> WebSource:
        return WebSource(
            decode=self.decode, cache=self.cache, web=self.web, roots=self.rules.roots, concurrency=self.concurrency
        )

    def _exported(self, file: Path, name: str, transfer: Transfer, home: Path | None = None) -> Fetched:
        entry = self._url_files.from_ndjson(file, name, transfer, home)
        return Fetched(root=transfer.staging, entry=Path(entry) if entry else None, is_private=True)

    def _from_disk(self, ref: DiskRef, transfer: Transfer) -> Fetched:
        path = self.rules.roots.admit(ref.path)
        if path.is_dir():
            return Fetched(root=path, entry=None, is_private=False)
        if not path.is_file() or not os.access(path, os.R_OK):
            raise DatasetError(f"data_yaml: {shown(ref.path)} is not a file or folder that this worker can read.")
        found = path.stat()
        if found.st_size == 0:
            raise DatasetError(f"data_yaml: {shown(ref.path)} is empty. Copy the file again.")
        if is_archive(path.name) or sniff(path):
            identity = f"disk\n{path}\n{found.st_size}\n{found.st_mtime_ns}\n{found.st_ino}\n{found.st_ctime_ns}"
            return self._trees.extracted(identity, transfer, lambda: nullcontext(path), path.name)
        if suffix(path.name) in NDJSON:
            return self._exported(path, path.name, transfer, home=path.parent)
        return Fetched(root=path.parent, entry=Path(path.name), is_private=False)

    @property
    def _objects(self) -> ObjectStore:
        if self.store is None:
            raise Misconfigured("No storage is configured on this worker, so storage: datasets cannot be read.")
        return self.store

    def _from_store(self, ref: ObjectRef, transfer: Transfer) -> Fetched:
        found = locate(self._objects, self.rules.candidates(ref))
        if isinstance(found, ObjectInfo) and is_archive(found.ref.key):
            archive = functools.partial(self._stored_archive, found, transfer)
            return self._trees.extracted(identity_of(found), transfer, archive, found.ref.key)
        manifest = self._synced(found, transfer)
        files = ((path, self._cached(info)) for path, info in manifest.objects)
        if manifest.entry is not None and suffix(manifest.entry) in NDJSON:
            return self._exported(next(files)[1], manifest.entry, transfer)
        with on_this_disk(transfer.staging):
            link_tree(files, transfer.staging)
        return Fetched(root=transfer.staging, entry=Path(manifest.entry) if manifest.entry else None, is_private=True)

    def _is_cached(self, info: ObjectInfo) -> bool:
        return self.cache.get(identity_of(info), info.bytes) is not None

    def _cached(self, info: ObjectInfo) -> Path:
        path = self.cache.get(identity_of(info), info.bytes)
        if path is None:  # the object is marked as in use, so it was not evicted
            raise Unavailable(f"the cached copy of {shown(info.ref.key)} was damaged or removed")
        return path

    def _synced(self, found: ObjectInfo | ObjectRef, transfer: Transfer) -> Manifest:
        """Download the objects of a dataset.

        If the listing changed during the download, download again: at most MAX_SYNCS downloads in total.
        """

        def download(info: ObjectInfo) -> Path:
            if not self._is_cached(info):
                self._download_one(info, Meter(lambda _: None, total_files=1), self.cache.put, transfer.stop)
            return self._cached(info)

        def needed_folders(info: ObjectInfo) -> tuple[str, ...] | None:
            return self.decode(NeededFolders(yaml=str(download(info)), name=info.ref.key), transfer.stop).names

        def listed_again() -> Manifest:
            # the YAML can also have changed
            now = self._objects.stat(found.ref) if isinstance(found, ObjectInfo) else found
            return take_manifest(self._objects, now, needed_folders)

        manifest = take_manifest(self._objects, found, needed_folders)
        for _ in range(MAX_SYNCS):
            try:
                again = listed_again() if self._download(manifest, transfer) else manifest
            except (ObjectMissing, Unavailable):
                again = listed_again()
                if again.digest == manifest.digest:
                    raise
            if again.digest == manifest.digest:
                return manifest
            changed, manifest = difference(manifest, again), again
        raise DatasetError(
            f"The dataset {shown(manifest.place)} changed during each of {MAX_SYNCS} downloads "
            f"(last change: {shown(changed)}). Requeue the run when the upload is finished.",
        )

    def _download(self, manifest: Manifest, transfer: Transfer) -> bool:
        """Download the objects that are not in the cache. Return False if all objects were already cached."""
        self.cache.mark_in_use(transfer.staging, (identity_of(info) for _, info in manifest.objects))
        # one byte for each object, because there can be millions of them
        is_missing = bytearray(not self._is_cached(manifest.info(row)) for row in manifest.rows)
        if not any(is_missing):
            return False
        total = sum(size for _, _, size in compress(manifest.rows, is_missing))
        self.cache.make_room(total)
        meter = Meter(transfer.on_event, total_files=sum(is_missing), total_bytes=total)
        with self.cache.batch() as batch:
            infos = map(manifest.info, compress(manifest.rows, is_missing))
            downloads = (functools.partial(self._download_one, info, meter, batch.put) for info in infos)
            in_parallel(downloads, self.concurrency, transfer.stop)
        return True

    def _download_one(self, info: ObjectInfo, meter: Meter, put: Put, stop: StopSignal) -> None:
        with self._received(info, meter, stop) as path:
            put(identity_of(info), path)
        meter.finish_file()

    @contextmanager
    def _stored_archive(self, info: ObjectInfo, transfer: Transfer) -> Iterator[Path]:
        self.cache.make_room(info.bytes)
        meter = Meter(transfer.on_event, total_files=1, total_bytes=info.bytes)
        with self._received(info, meter, transfer.stop) as path:
            meter.finish_file()
            yield path

    @contextmanager
    def _received(self, info: ObjectInfo, meter: Meter, stop: StopSignal) -> Iterator[Path]:
        with self.cache.receiving(identity_of(info), info.bytes) as path, on_this_disk(self.cache.root):
            self._objects.download(info.ref, path, stop, expected=info, on_bytes=meter.count)
            size = path.stat().st_size
            if size != info.bytes:
                raise DatasetError(
                    f"The download of {shown(info.ref.key)} has {size} of {info.bytes} bytes. Upload the object again."
                )
            yield path

    def _from_web(self, ref: HttpRef, transfer: Transfer) -> Fetched:
        meter, room = Meter(transfer.on_event, total_files=1), room_check(self.cache)
        known: list[Fetched] = []

        def is_known(url: str, etag: str, size: int) -> bool:
            identity = web_identity(url, etag, size)
            self._trees.mark_in_use(transfer.staging, identity)
            tree = self._trees.get(identity)
            known.extend([tree] if tree else [])
            return tree is not None

        def count(moved: int) -> None:
            meter.count(moved)
            room.count(moved)

        def announce(size: int) -> None:
            meter.expect(size)
            self.cache.make_room(size)

        with self.cache.temporary() as path:
            with on_this_disk(self.cache.root):
                got = self.web.download(
                    ref.url, path, transfer.stop, on_bytes=count, on_length=announce, is_known=is_known
                )
            if known:
                return known[0]
            meter.finish_file()
            return self._web_file(got, path, transfer)

    def _web_file(self, got: Downloaded, path: Path, transfer: Transfer) -> Fetched:
        name = unquote(urlsplit(got.url).path.rpartition("/")[2])
        if is_archive(name) or sniff(path):
            return self._trees.extracted(content_identity(got), transfer, lambda: nullcontext(path), name)
        if not got.bytes or got.bytes > MAX_TEXT_BYTES:
            raise DatasetError(
                f"data_yaml: {shown(got.url)} has {got.bytes:,} bytes and is not an archive. "
                f"A YAML or an NDJSON export must have 1 to {MAX_TEXT_BYTES:,} bytes."
            )
        if suffix(name) in NDJSON or "ndjson" in got.content_type:
            return self._exported(path, name, transfer)
        if suffix(name) in ANNOTATION_SUFFIXES:
            raise DatasetError(
                f"data_yaml: {shown(got.url)} is an annotation file, whose images cannot be found over http(s). "
                "Use the URL of an archive of the dataset.",
            )
        self._url_files.from_yaml(got.url, path, transfer)
        return Fetched(root=transfer.staging, entry=Path("data.yaml"), is_private=True)
