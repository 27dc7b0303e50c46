"""Files with one JSON value per line. A confined process writes them, so they are read within limits."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from trainer.core.errors import DatasetError
from trainer.datasets.untrusted import Limits, safe_name

LONGEST_LINE = 1 << 18  # bytes


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Create a file with one value per line. Raises OSError."""
    with path.open("x", encoding="utf-8") as out:
        out.writelines(f"{json.dumps(value)}\n" for value in values)


def read_lines(path: Path) -> Iterator[Any]:
    """Yield the value of each line. Raises OSError if the file cannot be read, and ValueError for invalid content."""
    with opened(path) as file:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:
                raise ValueError(f"{path.name} has a line of more than {LONGEST_LINE} bytes")
            try:
                yield json.loads(line.decode())
            except RecursionError:
                raise ValueError(f"{path.name} has a line that is nested too deeply") from None


def opened(path: Path) -> BinaryIO:
    """Open a file that a confined process wrote. Raises OSError, and ValueError if it is not a regular file."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError(f"{path.name} is not a regular file")
    return file


def require_safe(place: Any) -> None:
    """Raise ValueError unless `place` is a relative path without unsafe names."""
    try:
        is_safe = isinstance(place, str) and place == safe_name(place, Limits(), "")
    except DatasetError:
        is_safe = False
    if not is_safe:
        raise ValueError("an unsafe place")
