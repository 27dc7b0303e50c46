"""The files that a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from trainer.core.job import Json, JsonObject


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A published file. `path` is its key in the artifacts bucket, `sha256` the checksum of the uploaded bytes."""

    name: str
    path: str
    url: str
    bytes: int
    sha256: str

    def as_json(self) -> JsonObject:
        return asdict(self)


def artifacts_in(results: Json) -> list[Artifact]:
    """Return the artifacts that a row's `results` list. Entries without a name or a key are left out."""
    listed = results.get("artifacts") if isinstance(results, Mapping) else None
    return [
        _artifact(entry)
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, Mapping) and _text(entry, "name") and _text(entry, "path")
    ]


def _artifact(entry: Mapping[str, Json]) -> Artifact:
    size = entry.get("bytes")
    return Artifact(
        name=_text(entry, "name"),
        path=_text(entry, "path"),
        url=_text(entry, "url"),
        bytes=size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else 0,
        sha256=_text(entry, "sha256"),
    )


def _text(entry: Mapping[str, Json], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) else ""
