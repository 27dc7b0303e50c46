"""Several object stores behind one interface: each reference is sent to the store that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest
from trainer.core.ports import ObjectInfo, ObjectStore, OnBytes, StoredObject
from trainer.core.stop import StopSignal


class StoreRouter:
    """`ObjectStore` over several stores. References without a store, and new keys, belong to `default`."""

    def __init__(self, stores: Mapping[str, ObjectStore], default: str) -> None:
        self._stores = stores
        self.name = default

    def key(self, name: str) -> str:
        return self._stores[self.name].key(name)

    def list(self, folder: ObjectRef, stop: StopSignal | None = None) -> Iterator[ObjectInfo]:
        return self._store(folder).list(folder, stop)

    def stat(self, ref: ObjectRef) -> ObjectInfo:
        return self._store(ref).stat(ref)

    def download(
        self,
        ref: ObjectRef,
        path: Path,
        stop: StopSignal,
        *,
        expected: ObjectInfo | None = None,
        on_bytes: OnBytes | None = None,
    ) -> ObjectInfo:
        return self._store(ref).download(ref, path, stop, expected=expected, on_bytes=on_bytes)

    def upload(
        self,
        path: Path,
        ref: ObjectRef,
        stop: StopSignal,
        *,
        content_type: str | None = None,
        on_bytes: OnBytes | None = None,
    ) -> StoredObject:
        return self._store(ref).upload(path, ref, stop, content_type=content_type, on_bytes=on_bytes)

    def delete(self, ref: ObjectRef) -> None:
        self._store(ref).delete(ref)

    def url(self, ref: ObjectRef) -> str:
        return self._store(ref).url(ref)

    def _store(self, ref: ObjectRef) -> ObjectStore:
        name = ref.store or self.name
        if name not in self._stores:
            known = ", ".join(sorted(self._stores))
            raise BadRequest(f"object {ref.key!r}: this service has no store {name!r}; use one of {known}")
        return self._stores[name]
