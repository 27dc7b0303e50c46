"""Checkpoint files on this host. A training process wrote them, so every read has a limit, and every value is checked.

A training keeps its newest checkpoints as `checkpoints/epoch-00007.pt` with a sidecar `epoch-00007.json`, which has
`epoch`, `sha256` and `bytes`. The service keeps downloaded checkpoints in `resumed/`; their sidecars also have `key`.
The training writes each file under a temporary name and then renames it, so that the file is complete unless the disk
failed. The SHA-256 detects damage.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter, ValidationError

from trainer.core.artifact_keys import attempt_of
from trainer.core.job import Checkpoint, JsonObject
from trainer.core.run_folder import CHECKPOINTS, RESUMED, RunFolder, checkpoint_name
from trainer.disk.untrusted_folder import LARGEST_FILE, Unreadable, UntrustedFile, UntrustedFolder

MOST_CHECKPOINTS = 10  # per folder; a training keeps two
_MOST_ENTRIES = 1000  # entries that are read in a folder of checkpoints
_CHECKPOINT = TypeAdapter(Checkpoint)
_SIDECAR = re.compile(r"epoch-([0-9]{5,9})\.json")
_SHA256 = re.compile("[0-9a-f]{64}")
_LARGEST_JSON = 2**20  # bytes
_LARGEST_DIRECTORY = 8 * 2**20  # bytes of the zip archive's directory; yolo11x has a few hundred KiB
_INVALID_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError),
    *(LookupError, ValueError, RecursionError, NotImplementedError),
)


@dataclass(frozen=True, kw_only=True)
class LocalCheckpoint:
    """A checkpoint file on this host: `name` in `folder`. `sidecar` is the unverified content of its sidecar file."""

    folder: Path
    name: str
    attempt: int  # attempt that wrote the checkpoint
    sidecar: Checkpoint
    modified_ns: int


def local_checkpoints(folder: RunFolder) -> Iterator[LocalCheckpoint]:
    """Yield the checkpoint files of an attempt, at most `MOST_CHECKPOINTS` per folder, those of the last epochs."""
    # only the service writes the key of a checkpoint, which says which attempt wrote a downloaded checkpoint
    yield from (replace(found, attempt=folder.attempt) for found in _in_folder(folder.output.path, CHECKPOINTS))
    yield from _in_folder(folder.path, RESUMED)


def is_valid(epoch: int, sha256: str, size: int) -> bool:
    """Return whether these values can describe a checkpoint. The epoch and the SHA-256 become part of its key."""
    return 0 <= epoch < 10**9 and _SHA256.fullmatch(sha256) is not None and 0 <= size <= LARGEST_FILE


def write_sidecar(path: Path, checkpoint: Checkpoint) -> None:
    """Write the sidecar of the checkpoint file `path`. Raises OSError."""
    path.with_suffix(".json").write_text(json.dumps(asdict(checkpoint)))


def is_intact(file: UntrustedFile, sha256: str, size: int, before_chunk: Callable[[], object]) -> bool:
    """Return whether the file has this size and this SHA-256. `before_chunk` can raise an exception to stop."""
    return file.bytes == size <= LARGEST_FILE and file.sha256(before_chunk) == sha256


def read_metadata(path: Path) -> JsonObject:
    """Return the metadata that the training wrote into the checkpoint, or {} if the metadata cannot be read."""
    try:
        with path.open("rb") as file:
            if not _has_small_directory(file):
                return {}
            with zipfile.ZipFile(file) as archive:
                name = archive.namelist()[0].partition("/")[0] + "/run/checkpoint.json"
                if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                    return {}  # the training stores its metadata uncompressed
                with archive.open(name) as member:
                    metadata = json.loads(member.read(_LARGEST_JSON))
    except _INVALID_ARCHIVE:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _in_folder(place: Path, name: str) -> Iterator[LocalCheckpoint]:
    with UntrustedFolder(place) as folder:
        for sidecar in _newest_sidecars(folder, name):
            claimed = _read_sidecar(folder, sidecar)
            path = sidecar.removesuffix(".json") + ".pt"
            if claimed is None or path != f"{name}/{checkpoint_name(claimed.epoch)}":
                continue
            with suppress(Unreadable), folder.file(path) as file:
                attempt = attempt_of(claimed.key or "")
                yield LocalCheckpoint(
                    folder=place, name=path, attempt=attempt, sidecar=claimed, modified_ns=file.modified_ns
                )


def _newest_sidecars(folder: UntrustedFolder, name: str) -> list[str]:
    listing = folder.listing(name, depth=0, entries=_MOST_ENTRIES, is_wanted=lambda path: path.endswith(".json"))
    found = (_SIDECAR.fullmatch(file.path, len(name) + 1) for file in listing.files)
    return [
        f"{name}/{match[0]}"
        for match in heapq.nlargest(MOST_CHECKPOINTS, filter(None, found), key=lambda match: int(match[1]))
    ]


def _read_sidecar(folder: UntrustedFolder, path: str) -> Checkpoint | None:
    """Return the content of a sidecar, or None for an invalid one: a crash can leave an incomplete sidecar."""
    with suppress(Unreadable, ValidationError):
        claim = _CHECKPOINT.validate_json(folder.read(path, _LARGEST_JSON), strict=True)
        return claim if is_valid(claim.epoch, claim.sha256, claim.bytes) else None
    return None


def _has_small_directory(file: BinaryIO) -> bool:
    """Return whether the archive's directory, which `zipfile` reads into memory, is small.

    PyTorch writes no comment and no ZIP64 locator record, so the end record is the last 22 bytes.
    """
    file.seek(max(0, file.seek(0, os.SEEK_END) - 42))
    end = file.read()
    is_plain = end[-22:-18] == b"PK\5\6" and end[-2:] == b"\0\0" and end[:4] != b"PK\6\7"
    return is_plain and int.from_bytes(end[-10:-6], "little") <= _LARGEST_DIRECTORY
