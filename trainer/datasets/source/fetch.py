"""From a reference to a read-only source tree on local disk, complete or not at all."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

from trainer.core.dataset import DatasetRef, DiskRef, HttpRef, ObjectRef
from trainer.core.errors import DatasetError, Misconfigured, ObjectMissing, Unavailable
from trainer.core.ports import ObjectInfo, ObjectStore
from trainer.core.stop import StopSignal
from trainer.core.text import shown
from trainer.core.transfer import Meter, OnTransfer
from trainer.datasets.cache.content import ContentCache, Put
from trainer.datasets.cache.disk import on_this_disk
from trainer.datasets.source.archive import extract, is_archive, sniff
from trainer.datasets.source.fetched_tree import FILES, Fetched, read_tree, write_listing
from trainer.datasets.source.manifest import (
    Manifest,
    difference,
    identity_of,
    listed_again,
    locate,
    suffix,
    take_manifest,
    wanted,
)
from trainer.datasets.source.ndjson import SUFFIXES as NDJSON
from trainer.datasets.source.reference import Roots
from trainer.datasets.source.transfer import Every, in_parallel, link_tree
from trainer.datasets.source.url_files import LARGEST_TEXT, WebSource, web_identity
from trainer.disk.durable import sync_below
from trainer.remote.web import Downloaded, GuardedClient

SYNCS = 3  # a dataset that changed during its download is compared and completed this often
ROOM_STEP = 64 << 20  # bytes between two looks at the disk while something of unknown size grows
SYNC_STEP = 1 << 30  # bytes that an archive unpacks to between two syncs: a stop waits for no more than these

Archive: TypeAlias = Callable[[], AbstractContextManager[Path]]


class Fetcher:
    """Brings the bytes of a dataset to local disk, through the content cache.

    Without a `store` there are no `storage:` datasets, and the error says so.
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
        self._web_source = WebSource(cache=cache, web=web, roots=roots, concurrency=concurrency)
        self._store = store
        self._datasets_bucket = datasets_bucket
        self._concurrency = concurrency

    def fetch(self, ref: DatasetRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        """The dataset behind `ref`, complete on disk.

        `staging` is a folder that does not exist yet, on the file system of the dataset root and best inside the
        run's view. What the tree needs in the cache is kept there as long as the folder `staging` exists, so remove
        it when the run's view goes, not before.
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
        """A new path for a dataset that is only looked at; what is there at the end is removed, the cache keeps its bytes."""
        return self._cache.temporary()

    def tidy(self) -> None:
        """Remove what crashed processes left in the cache."""
        with on_this_disk(self._cache.root):
            self._cache.tidy()

    # ── this host ──

    def _from_disk(self, ref: DiskRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        path = self._roots.admit(ref.path)
        if path.is_dir():
            return Fetched(root=path, entry=None, is_private=False)
        if not path.is_file() or not os.access(path, os.R_OK):
            raise DatasetError(f"data_yaml: {shown(ref.path)} is no file or folder that this worker may read.")
        found = path.stat()
        if found.st_size == 0:
            raise DatasetError(f"data_yaml: {shown(ref.path)} is an empty file.")
        if is_archive(path.name) or sniff(path):
            identity = f"disk\n{path}\n{found.st_size}\n{found.st_mtime_ns}\n{found.st_ino}"
            return self._unpacked(identity, staging, stop, lambda: nullcontext(path), path.name)
        if suffix(path.name) in NDJSON:
            return self._exported(path, path.name, staging, stop, on_event, home=path.parent)
        return Fetched(root=path.parent, entry=Path(path.name), is_private=False)

    # ── the object store ──

    def _from_store(self, ref: ObjectRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        store = self._store
        if store is None:
            raise Misconfigured("Storage is not configured on this worker, so storage: datasets cannot be read.")
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
        if path is None:  # it is pinned, so only damage explains it
            raise Unavailable(f"{shown(info.ref.key)} was damaged in the cache while it was needed")
        return path

    def _synced(
        self,
        store: ObjectStore,
        found: ObjectInfo | ObjectRef,
        staging: Path,
        stop: StopSignal,
        on_event: OnTransfer,
    ) -> Manifest:
        """Download until the listing after it is the one before it."""

        def bring(info: ObjectInfo) -> Path:
            if self._cache.get(identity_of(info), info.bytes) is None:
                self._download_one(store, info, Meter(lambda _: None, total_files=1), self._cache.put, stop)
            return self._cached(info)

        manifest = take_manifest(store, found, bring)
        for _ in range(SYNCS):
            try:
                moved = self._download(store, manifest, staging, stop, on_event)
            except (ObjectMissing, Unavailable):
                again = listed_again(store, found, bring)
                if again.objects == manifest.objects:
                    raise
            else:
                again = listed_again(store, found, bring) if moved else manifest
                if again.objects == manifest.objects:
                    return manifest
            changed, manifest = difference(manifest.objects, again.objects), again
        raise DatasetError(
            f"The dataset {shown(f'{manifest.bucket}/{manifest.folder}')} was edited during its download, {SYNCS} times "
            f"(last {shown(changed)}); start the run again when the upload is finished.",
        )

    def _download(
        self,
        store: ObjectStore,
        manifest: Manifest,
        staging: Path,
        stop: StopSignal,
        on_event: OnTransfer,
    ) -> bool:
        """Bring into the cache what is not there; False when all was."""
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
                raise DatasetError(
                    f"{shown(info.ref.key)} arrived with {size} of {info.bytes} bytes; upload it again.",
                )
            put(identity_of(info), path)
        meter.finish_file()

    def _stored_archive(
        self,
        store: ObjectStore,
        info: ObjectInfo,
        staging: Path,
        stop: StopSignal,
        on_event: OnTransfer,
    ) -> Fetched:
        @contextmanager
        def downloaded() -> Iterator[Path]:
            self._cache.make_room(info.bytes)
            meter = Meter(on_event, total_files=1, total_bytes=info.bytes)
            with self._cache.receiving(identity_of(info), info.bytes) as path:
                store.download(info.ref, path, stop, expected=info, on_bytes=meter.count)
                meter.finish_file()
                yield path

        return self._unpacked(identity_of(info), staging, stop, downloaded, info.ref.key)

    # ── archives ──

    def _unpacked(self, identity: str, staging: Path, stop: StopSignal, archive: Archive, name: str) -> Fetched:
        """The archive's tree in the cache; unless it is there, the archive is had and extracted."""
        identity = f"tree\n{identity}"
        self._cache.pin(staging, [identity])
        known = self._known_tree(identity)
        if known is not None:
            return known
        with self._cache.temporary() as tree, on_this_disk(self._cache.root), archive() as file:
            self._cache.make_room(file.stat().st_size)
            extracted = extract(
                file,
                tree / FILES,
                stop,
                wanted=wanted,
                name=name,
                on_total=self._cache.make_room,
                on_bytes=self._growing(tree),
            )
            write_listing(tree, extracted.findings)
            self._cache.put_tree(identity, tree, extracted.bytes, is_whole=lambda path: read_tree(path) is not None)
        self._cache.make_room(0)
        made = self._known_tree(identity)
        if made is None:
            raise Unavailable(f"the files of {shown(name)} were damaged in the cache while they were needed")
        return made

    def _growing(self, tree: Path) -> Callable[[int], None]:
        """For each piece of a tree that is written."""
        room, unsynced = self._room_check(), Every(SYNC_STEP, lambda: sync_below(tree))

        def count(more: int) -> None:
            room.count(more)
            unsynced.count(more)

        return count

    def _room_check(self) -> Every:
        return Every(ROOM_STEP, lambda: self._cache.require_free(0))

    def _known_tree(self, identity: str) -> Fetched | None:
        tree = self._cache.get_tree(identity)
        fetched = read_tree(tree) if tree is not None else None
        if tree is not None and fetched is None:
            self._cache.drop_tree(identity)
        return fetched

    # ── the web ──

    def _from_web(self, ref: HttpRef, staging: Path, stop: StopSignal, on_event: OnTransfer) -> Fetched:
        meter, room = Meter(on_event, total_files=1), self._room_check()
        known: list[Fetched] = []

        def is_known(url: str, etag: str, size: int) -> bool:
            identity = web_identity(url, etag, size)
            self._cache.pin(staging, [f"tree\n{identity}"])
            tree = self._known_tree(f"tree\n{identity}")
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
                got = self._web.download(
                    ref.url,
                    path,
                    stop,
                    on_bytes=count,
                    on_length=announce,
                    is_known=is_known,
                )
            if known:
                return known[0]
            meter.finish_file()
            return self._web_file(got, path, staging, stop, on_event)

    def _web_file(
        self,
        got: Downloaded,
        path: Path,
        staging: Path,
        stop: StopSignal,
        on_event: OnTransfer,
    ) -> Fetched:
        name = unquote(urlsplit(got.url).path.rpartition("/")[2])
        if is_archive(name) or sniff(path):
            identity = web_identity(got.url, got.etag, got.bytes) if got.etag else f"sha256\n{got.sha256}"
            return self._unpacked(identity, staging, stop, lambda: nullcontext(path), name)
        if not got.bytes or got.bytes > LARGEST_TEXT:
            raise DatasetError(
                f"data_yaml: {shown(got.url)} has {got.bytes:,} bytes: no YAML, archive or NDJSON export."
            )
        if suffix(name) in NDJSON or "ndjson" in got.content_type:
            return self._exported(path, name, staging, stop, on_event)
        if suffix(name) == "json":
            raise DatasetError(
                f"data_yaml: {shown(got.url)} is an annotations file, whose images cannot be found over http(s); "
                "give an archive of the dataset.",
            )
        self._web_source.from_yaml(got.url, path, staging, stop, on_event)
        return Fetched(root=staging, entry=Path("data.yaml"), is_private=True)

    def _exported(
        self,
        file: Path,
        name: str,
        staging: Path,
        stop: StopSignal,
        on_event: OnTransfer,
        home: Path | None = None,
    ) -> Fetched:
        entry = self._web_source.from_ndjson(file, name, staging, stop, on_event, home)
        return Fetched(root=staging, entry=Path(entry) if entry else None, is_private=True)


__all__ = ["Fetched", "Fetcher"]
