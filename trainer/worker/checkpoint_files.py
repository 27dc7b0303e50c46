"""Checkpoint files on this host. A training process wrote them, so reads into memory have a size limit.

A training keeps its newest checkpoints as `epoch-00007.pt` with a sidecar `epoch-00007.json`. The sidecar has `epoch`,
`sha256` and `bytes`, and also `key` if the checkpoint was downloaded from the bucket.
The training writes each file under a temporary name and then renames it, so that the file is complete unless the disk
failed. The SHA-256 detects damage.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter, ValidationError

from trainer.core.job import Checkpoint, JsonObject
from trainer.core.run_folder import RunFolder
from trainer.disk.checksum import sha256_of

_CHECKPOINT = TypeAdapter(Checkpoint)
_LARGEST_JSON = 2**20  # bytes
_LARGEST_DIRECTORY = 8 * 2**20  # bytes of the zip archive's directory; yolo11x has a few hundred KiB
_INVALID_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError),
    *(LookupError, ValueError, RecursionError, NotImplementedError),
)


def local_checkpoints(folder: RunFolder) -> Iterator[tuple[Path, Checkpoint]]:
    """Yield the checkpoint files of an attempt with the content of their sidecars."""
    for sidecar in folder.checkpoints.glob("epoch-*.json"):
        path = sidecar.with_suffix(".pt")
        if _is_regular(sidecar) and _is_regular(path) and (checkpoint := _read_sidecar(sidecar)):
            yield path, checkpoint


def write_sidecar(path: Path, checkpoint: Checkpoint) -> None:
    """Write the sidecar of the checkpoint file `path`. Raises OSError."""
    path.with_suffix(".json").write_text(json.dumps(asdict(checkpoint)))


def is_intact(path: Path, checkpoint: Checkpoint) -> bool:
    """Return whether the size and the SHA-256 of the file match the checkpoint."""
    return path.stat().st_size == checkpoint.bytes and sha256_of(path) == checkpoint.sha256


def read_metadata(path: Path) -> JsonObject:
    """Return the metadata that the training wrote into the checkpoint, or {} if the metadata cannot be read."""
    try:
        with path.open("rb") as file:
            if not _has_small_directory(file):
                return {}
            with zipfile.ZipFile(file) as archive:
                name = archive.namelist()[0].partition("/")[0] + "/run/checkpoint.json"
                with archive.open(name) as member:
                    metadata = json.loads(member.read(_LARGEST_JSON))
    except _INVALID_ARCHIVE:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _read_sidecar(sidecar: Path) -> Checkpoint | None:
    with sidecar.open("rb") as file, contextlib.suppress(ValidationError):
        return _CHECKPOINT.validate_json(file.read(_LARGEST_JSON), strict=True)
    return None  # a crash can leave an incomplete sidecar; the previous checkpoint has another sidecar


def _is_regular(path: Path) -> bool:
    """Return whether `path` is a regular file, not a link or a pipe."""
    return path.is_file() and not path.is_symlink()


def _has_small_directory(file: BinaryIO) -> bool:
    """Return whether the archive's directory, which `zipfile` reads into memory, is small.

    PyTorch writes no comment and no ZIP64 locator record, so the end record is the last 22 bytes.
    """
    file.seek(max(0, file.seek(0, os.SEEK_END) - 42))
    end = file.read()
    is_plain = end[-22:-18] == b"PK\5\6" and end[-2:] == b"\0\0" and end[:4] != b"PK\6\7"
    return is_plain and int.from_bytes(end[-10:-6], "little") <= _LARGEST_DIRECTORY
