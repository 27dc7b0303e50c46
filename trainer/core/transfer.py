"""The progress of a transfer of many files in many threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from trainer.core.events import Phase, TransferProgress

OnTransfer: TypeAlias = Callable[[TransferProgress], None]
EVERY_SECONDS = 0.5


class Meter:
    """Counts files and bytes. Reports at the start, after the last file, and at most twice per second in between."""

    def __init__(
        self,
        on_event: OnTransfer,
        *,
        total_files: int,
        total_bytes: int = 0,
        phase: Phase = Phase.DOWNLOADING,
    ) -> None:
        self._phase = phase
        self._on_event = on_event
        self._total_files = total_files
        self._total_bytes = total_bytes
        self._files = 0
        self._bytes = 0
        self._started = time.monotonic()
        self._reported = self._started
        self._lock = threading.Lock()
        self._report(always=total_files > 0)

    def count(self, moved: int) -> None:
        """Add transferred bytes. A negative number subtracts the bytes of a failed try."""
        with self._lock:
            self._bytes += moved
            self._report(always=False)

    def expect(self, more_bytes: int = 0, *, files: int = 0) -> None:
        """Increase the totals by additional bytes and files."""
        with self._lock:
            self._total_bytes += more_bytes
            self._total_files += files

    def finish_file(self) -> None:
        with self._lock:
            self._files += 1
            self._report(always=self._files == self._total_files)

    def _report(self, *, always: bool) -> None:
        now = time.monotonic()
        if not always and now - self._reported < EVERY_SECONDS:
            return
        self._reported = now
        rate = self._bytes / max(now - self._started, 1e-3)
        left = self._total_bytes - self._bytes
        self._on_event(
            TransferProgress(
                phase=self._phase,
                files=self._files,
                total_files=self._total_files,
                bytes=self._bytes,
                total_bytes=self._total_bytes,
                rate=rate,
                eta_seconds=max(0.0, left / rate) if self._total_bytes and rate else None,
            ),
        )
