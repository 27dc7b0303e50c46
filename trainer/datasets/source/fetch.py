"""Fetch the dataset of a reference: a complete, read-only source tree on local disk."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
from trainer.datasets.source.archive import is_archive, sniff
from trainer.datasets.source.archive_trees import ArchiveTrees, room_check
from trainer.datasets.source.fetched_tree import Fetched
from trainer.datasets.source.manifest import (
    Manifest,
    difference,
    identity_of,
    listed_again,
    locate,
    suffix,
    take_manifest,
)
from trainer.datasets.source.ndjson import SUFFIXES as NDJSON
from trainer.datasets.source.reference import Roots
from trainer.datasets.source.transfer import in_parallel, link_tree
from trainer.datasets.source.url_files import LARGEST_TEXT, WebSource, web_identity
from trainer.remote.web import Downloaded, GuardedClient

SYNCS = 3  # attempts to download a dataset that changes during its download


class Fetcher:
    """Brings datasets to local disk through the content cache.

    Without a `store`, `storage:` datasets raise `Misconfigured`.
    """

    def __init__(
        self,
        *,
        roots: Roots,
        cache: ContentCache,
        web: GuardedClient,
        store: ObjectStore | None,
        datasets_bucket: str,
        concurrency: int = 16,
    ) -> None:
        self._roots = roots
        self._cache = cache
        self._web = web
        self._trees = ArchiveTrees(cache)
        self._web_source = WebSource(cache=cache, web=web, roots=roots, concurrency=concurrency)
        self._store = store
        self._datasets_bucket = datasets_bucket
        self._concurrency = concurrency

    def fetch(self, ref: DatasetRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        """Return the dataset of `ref`, complete on disk.

        `staging` is a new folder on the file system of the dataset root, best inside the run's view. The cache keeps
        what the tree needs as long as the folder `staging` exists. Remove it together with the run's view.
        Raises `DatasetError` (or `ObjectMissing`), `Unavailable`, `Misconfigured`, `MachineFailed` or `Stopped`.
        """
        stop.raise_if_set()
        with on_this_disk(staging):
            staging.mkdir(parents=True)
        if isinstance(ref, DiskRef):
            return self._from_disk(ref, staging, stop, on_event)
        if isinstance(ref, ObjectRef):
            return self._from_store(ref, staging, stop, on_event)
        return self._from_web(ref, staging, stop, on_event)

    def scratch(self) -> AbstractContextManager[Path]:
        """Return a context with a new path for a dataset that is only checked. The path is removed afterwards."""
        return self._cache.temporary()

    def tidy(self) -> None:
        """Remove the leftovers of crashed processes from the cache."""
        with on_this_disk(self._cache.root):
            self._cache.tidy()

    # ── files of this host ──

    def _from_disk(self, ref: DiskRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        path = self._roots.admit(ref.path)
        if path.is_dir():
            return Fetched(root=path, entry=None, is_private=False)
        if not path.is_file() or not os.access(path, os.R_OK):
            raise DatasetError(f"data_yaml: {shown(ref.path)} is not a file or folder that this worker can read.")
        found = path.stat()
        if found.st_size == 0:
            raise DatasetError(f"data_yaml: {shown(ref.path)} is empty. Copy the file again.")
        if is_archive(path.name) or sniff(path):
            identity = f"disk\n{path}\n{found.st_size}\n{found.st_mtime_ns}\n{found.st_ino}"
            return self._trees.extracted(identity, staging, stop, lambda: nullcontext(path), path.name)
        if suffix(path.name) in NDJSON:
            return self._exported(path, path.name, staging, stop, on_event, home=path.parent)
        return Fetched(root=path.parent, entry=Path(path.name), is_private=False)

    # ── the object store ──

    def _from_store(self, ref: ObjectRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        store = self._store
        if store is None:
            raise Misconfigured("No storage is configured on this worker, so storage: datasets cannot be read.")
        found = locate(store, ref, self._datasets_bucket)
        if isinstance(found, ObjectInfo) and is_archive(found.ref.key):
            return self._stored_archive(store, found, staging, stop, on_event)
        manifest = self._synced(store, found, staging, stop, on_event)
        files = {relpath: self._cached(info) for relpath, info in manifest.objects.items()}
        if manifest.entry is not None and suffix(manifest.entry) in NDJSON:
            return self._exported(files[manifest.entry], manifest.entry, staging, stop, on_event)
        with on_this_disk(staging):
            link_tree(files.items(), staging)
        return Fetched(root=staging, entry=Path(manifest.entry) if manifest.entry else None, is_private=True)

    def _cached(self, info: ObjectInfo) -> Path:
        path = self._cache.get(identity_of(info), info.bytes)
        if path is None:  # it is pinned, so it must have been damaged
            raise Unavailable(f"{shown(info.ref.key)} was damaged in the cache while it was needed")
        return path

    def _synced(
        self, store: ObjectStore, found: ObjectInfo | ObjectRef, staging: Path, stop: StopSignal, on_event: OnTransfer
    ) -> Manifest:
        """Download the objects of a dataset until the listing does not change meanwhile."""

        def download(info: ObjectInfo) -> Path:
            if self._cache.get(identity_of(info), info.bytes) is None:
                self._download_one(store, info, Meter(lambda _: None, total_files=1), self._cache.put, stop)
            return self._cached(info)

        manifest = take_manifest(store, found, download)
        for _ in range(SYNCS):
            try:
                moved = self._download(store, manifest, staging, stop, on_event)
            except (ObjectMissing, Unavailable):
                again = listed_again(store, found, download)
                if again.objects == manifest.objects:
                    raise
            else:
                again = listed_again(store, found, download) if moved else manifest
                if again.objects == manifest.objects:
                    return manifest
            changed, manifest = difference(manifest.objects, again.objects), again
        raise DatasetError(
            f"The dataset {shown(f'{manifest.bucket}/{manifest.folder}')} was edited during its download, {SYNCS} times "
            f"(last {shown(changed)}). Start the run again when the upload is finished."
        )

    def _download(
        self, store: ObjectStore, manifest: Manifest, staging: Path, stop: StopSignal, on_event: OnTransfer
    ) -> bool:
        """Download the objects that the cache lacks. Return False if there are none."""
        identities = {relpath: identity_of(info) for relpath, info in manifest.objects.items()}
        self._cache.pin(staging, identities.values())
        missing = [i for i in manifest.objects.values() if self._cache.get(identity_of(i), i.bytes) is None]
        if not missing:
            return False
        total = sum(info.bytes for info in missing)
        self._cache.make_room(total)
        meter = Meter(on_event, total_files=len(missing), total_bytes=total)
        with self._cache.arriving() as arrivals:
            jobs = [functools.partial(self._download_one, store, info, meter, arrivals.put) for info in missing]
            in_parallel(jobs, self._concurrency, stop)
        return True

    def _download_one(self, store: ObjectStore, info: ObjectInfo, meter: Meter, put: Put, stop: StopSignal) -> None:
        with self._cache.receiving(identity_of(info), info.bytes) as path, on_this_disk(self._cache.root):
            store.download(info.ref, path, stop, expected=info, on_bytes=meter.count)
            size = path.stat().st_size
            if size != info.bytes:
                raise DatasetError(f"{shown(info.ref.key)} arrived with {size} of {info.bytes} bytes. Upload it again.")
            put(identity_of(info), path)
        meter.finish_file()

    def _stored_archive(
        self, store: ObjectStore, info: ObjectInfo, staging: Path, stop: StopSignal, on_event: OnTransfer
    ) -> Fetched:
        @contextmanager
        def downloaded() -> Iterator[Path]:
            self._cache.make_room(info.bytes)
            meter = Meter(on_event, total_files=1, total_bytes=info.bytes)
            with self._cache.receiving(identity_of(info), info.bytes) as path:
                store.download(info.ref, path, stop, expected=info, on_bytes=meter.count)
                meter.finish_file()
                yield path

        return self._trees.extracted(identity_of(info), staging, stop, downloaded, info.ref.key)

    # ── the web ──

    def _from_web(self, ref: HttpRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        meter, room = Meter(on_event, total_files=1), room_check(self._cache)
        known: list[Fetched] = []

        def is_known(url: str, etag: str, size: int) -> bool:
            identity = web_identity(url, etag, size)
            self._trees.pin(staging, identity)
            tree = self._trees.get(identity)
            known.extend([tree] if tree else [])
            return tree is not None

        def count(moved: int) -> None:
            meter.count(moved)
            room.count(moved)

        def announce(size: int) -> None:
            meter.expect(size)
            self._cache.make_room(size)

        with self._cache.temporary() as path:
            with on_this_disk(self._cache.root):
                got = self._web.download(ref.url, path, stop, on_bytes=count, on_length=announce, is_known=is_known)
            if known:
                return known[0]
            meter.finish_file()
            return self._web_file(got, path, staging, stop, on_event)

    def _web_file(self, got: Downloaded, path: Path, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        name = unquote(urlsplit(got.url).path.rpartition("/")[2])
        if is_archive(name) or sniff(path):
            identity = web_identity(got.url, got.etag, got.bytes) if got.etag else f"sha256\n{got.sha256}"
            return self._trees.extracted(identity, staging, stop, lambda: nullcontext(path), name)
        if not got.bytes or got.bytes > LARGEST_TEXT:
            raise DatasetError(
                f"data_yaml: {shown(got.url)} has {got.bytes:,} bytes: it is not a YAML, an archive or an NDJSON export."
            )
        if suffix(name) in NDJSON or "ndjson" in got.content_type:
            return self._exported(path, name, staging, stop, on_event)
        if suffix(name) == "json":
            raise DatasetError(
                f"data_yaml: {shown(got.url)} is an annotation file, whose images cannot be found over http(s). "
                "Use the URL of an archive of the dataset."
            )
        self._web_source.from_yaml(got.url, path, staging, stop, on_event)
        return Fetched(root=staging, entry=Path("data.yaml"), is_private=True)

    def _exported(
        self, file: Path, name: str, staging: Path, stop: StopSignal, on_event: OnTransfer, home: Path | None = None
    ) -> Fetched:
        entry = self._web_source.from_ndjson(file, name, staging, stop, on_event, home)
        return Fetched(root=staging, entry=Path(entry) if entry else None, is_private=True)


__all__ = ["Fetched", "Fetcher"]
