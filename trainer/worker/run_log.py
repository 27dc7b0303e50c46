"""The log file of one run: its events and the output of its training."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import structlog

log = structlog.get_logger()

# O_NOFOLLOW and O_NONBLOCK: a training process can replace the log by a link or a pipe
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class RunLog:
    """Appends lines to the log. A disk error loses lines but never fails the run.

    If `timestamps` is True, each line of the training gets the time in UTC as a prefix.
    """

    def __init__(self, path: Path, *, timestamps: bool) -> None:
        self.path = path
        self._timestamps = timestamps
        self._lock = threading.Lock()
        self._has_failed = False
        self._file: TextIO | None = None
        with self._disk_errors_logged():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.fdopen(os.open(path, _APPEND, 0o666), "a", encoding="utf-8", errors="replace", buffering=1)

    def note(self, text: str) -> None:
        """Write a line of the service, always with a timestamp."""
        self._write(f"[{_now()}] {text}\n")

    def output(self, line: str) -> None:
        """Write a line of the output of the training."""
        self._write(f"[{_now()}] {line}\n" if self._timestamps else f"{line}\n")

    def close(self) -> None:
        """Close the file. Later lines are not written."""
        with self._lock, self._disk_errors_logged():
            if self._file:
                self._file.close()

    def _write(self, text: str) -> None:
        with self._lock, self._disk_errors_logged():
            if self._file and not self._file.closed:
                self._file.write(text)

    @contextmanager
    def _disk_errors_logged(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_failed:
                log.error("run log cannot be written, losing lines", path=str(self.path), error=str(error))
            self._has_failed = True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
