"""The SHA-256 of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

_CHUNK = 2**20  # bytes


def sha256_of(path: Path, before_chunk: Callable[[], object] | None = None) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises OSError.

    `before_chunk` is called before each MiB is hashed. It can raise an exception to stop the calculation:
    the calculation for a sparse file of several terabytes takes hours.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            if before_chunk:
                before_chunk()
            digest.update(chunk)
    return digest.hexdigest()
