"""The published files of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest
from trainer.core.job import Json
from trainer.core.ports import ObjectStore, StoredObject


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A published file. `path` is its key in `bucket` of `store`. `sha256` is the checksum of the uploaded bytes.

    `url` was valid at the time of the upload; `with_fresh_urls` returns a new URL. Rows that other programs wrote may
    have no bucket and no store. The defaults are the artifacts bucket and the configured store of the service.
    """

    name: str
    path: str
    url: str
    bytes: int
    sha256: str
    bucket: str = ""
    store: str = ""

    @classmethod
    def of(cls, name: str, stored: StoredObject, sha256: str) -> Artifact:
        """Return the artifact of an uploaded object."""
        place = {"path": stored.ref.key, "bucket": stored.ref.bucket, "store": stored.ref.store}
        return cls(name=name, url=stored.url, bytes=stored.bytes, sha256=sha256, **place)

    def ref(self, artifacts_bucket: str) -> ObjectRef:
        """Return the reference of the object. The default bucket is `artifacts_bucket`."""
        return ObjectRef(store=self.store, bucket=self.bucket or artifacts_bucket, key=self.path)


def artifacts_in(results: Json) -> list[Artifact]:
    """Return the artifacts in the `results` of a row. Entries without a name or a key are left out."""
    listed = results.get("artifacts") if isinstance(results, Mapping) else None
    return [
        _artifact(entry)
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, Mapping) and _text(entry, "name") and _text(entry, "path")
    ]


def with_fresh_urls(artifacts: Sequence[Artifact], store: ObjectStore, artifacts_bucket: str) -> list[Artifact]:
    """Return the artifacts with new URLs: public, or signed for a private bucket.

    Artifacts with a deleted object, an invalid key or an unknown store are left out. Raises Unavailable, Misconfigured.
    """
    fresh = []
    for artifact in artifacts:
        with suppress(BadRequest):
            fresh.append(replace(artifact, url=store.url(artifact.ref(artifacts_bucket))))
    return fresh


def _artifact(entry: Mapping[str, Json]) -> Artifact:
    size = entry.get("bytes")
    texts = {name: _text(entry, name) for name in ("name", "path", "url", "sha256", "bucket", "store")}
    return Artifact(**texts, bytes=size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else 0)


def _text(entry: Mapping[str, Json], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) else ""
