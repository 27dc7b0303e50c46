"""Read the files that a confined process wrote: one JSON value per line, within limits."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_LINE = 1 << 18  # bytes


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
