"""What a run leaves behind."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trainer.core.job import JsonObject


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A published file. `path` is its key in the artifacts bucket; `sha256` that of the bytes that were sent."""

    name: str
    path: str
    url: str
    bytes: int
    sha256: str

    def as_json(self) -> JsonObject:
        return asdict(self)
