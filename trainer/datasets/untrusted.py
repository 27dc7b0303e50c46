"""Read untrusted files and check untrusted names, within limits."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from trainer.core.errors import DatasetError, raise_if_disk_is_broken
from trainer.core.text import printable, shown

_ABSOLUTE = re.compile(r"/|[A-Za-z]:")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of an archive. `ratio`: extracted bytes per archived byte, checked above 64 MiB of extracted bytes."""

    members: int = 500_000
    bytes: int = 1 << 40
    ratio: float = 200.0
    name: int = 1024  # characters of a member's path
    depth: int = 32  # levels of folders


def read_file(path: Path | str, largest: int, name: str | None = None) -> bytes:
    """Return the content of a file. Raises `DatasetError` if it is unreadable or has more than `largest` bytes.

    `name` is the name of the file in messages, if it has another name in our cache.
    """
    name = printable(name or Path(path).name)
    try:
        # without O_NONBLOCK, the open of a named pipe would wait for a writer
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DatasetError(f"{name} is not a regular file. Replace it by a file.")
            data = file.read(largest + 1)
    except OSError as error:
        raise_if_disk_is_broken(error, name)
        raise DatasetError(f"{name} cannot be read: {error.strerror}.") from None
    if len(data) > largest:
        raise DatasetError(f"{name} is larger than {largest >> 20} MiB, which is the limit for this file.")
    return data


def safe_name(name: str, limits: Limits, where: str) -> str | None:
    """Return a name as a safe relative path in Unicode NFC, or None for the top folder.

    Raises `DatasetError` for an unsafe name. The message starts with `where`.
    """

    def reject(why: str) -> NoReturn:
        raise DatasetError(f"{where}: the name {shown(name)} {why}. Rename it.")

    if len(name) > limits.name:
        reject(f"is longer than {limits.name} characters")
    if any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in name):
        reject("has control characters or is not UTF-8")
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    if _ABSOLUTE.match(name):
        reject("is absolute")
    segments = [segment for segment in name.split("/") if segment not in {"", "."}]
    if ".." in segments:
        reject("leads outside the dataset")
    if len(segments) > limits.depth:
        reject(f"is more than {limits.depth} folders deep")
    if any(len(segment.encode()) > 255 for segment in segments):
        reject("has a folder or file name of more than 255 bytes")
    return "/".join(segments) or None
