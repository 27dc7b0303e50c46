"""What the service checks while a confined process works: its time, its progress and the free space on its disks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from trainer.core.errors import DatasetError, HostUnfit, MachineFailed

SECONDS = 24 * 3600.0  # for one job; the largest archive (1 TiB) takes about 6 hours on a slow disk
IDLE_SECONDS = 3600.0  # without any use of the processor; a sync of a slow disk can take minutes
LONGEST_GAP = 10.0  # seconds; a longer time between two checks does not count, because the service did not run
# bytes and files that stay free on a disk; on a fuller disk, half of what was free
FREE_BYTES, FREE_FILES = 1 << 30, 10_000


class Watch:
    """The limits of one job. `folders` are the folders and files that the job can write."""

    def __init__(self, process: int, folders: Iterable[str]) -> None:
        self._process = process
        self._last = time.monotonic()
        self._total = self._idle = 0.0  # seconds
        self._used = 0
        self._free = {folder: [least // 2 for least in _free(folder)] for folder in folders}

    def check(self) -> None:
        """Raise `MachineFailed`, `HostUnfit` or `DatasetError` if a limit is exceeded."""
        now, used = time.monotonic(), _processor_time(self._process)
        gap, self._last = min(now - self._last, LONGEST_GAP), now
        self._total += gap
        self._idle = 0.0 if used != self._used else self._idle + gap
        self._used = used
        if self._idle > IDLE_SECONDS:
            raise MachineFailed(
                "The process that reads the dataset did nothing for "
                f"{IDLE_SECONDS / 60:.0f} minutes. Check whether the disk of the dataset answers."
            )
        if self._total > SECONDS:
            raise DatasetError(
                f"The dataset cannot be read within {SECONDS / 3600:.0f} hours. Split the dataset, or use a faster disk."
            )
        for folder, half in self._free.items():
            limits = zip(_free(folder), half, (FREE_BYTES, FREE_FILES), strict=True)
            if any(free < min(before, least) for free, before, least in limits):
                raise HostUnfit(
                    f"The disk of {folder} became too full while the dataset was read. Free some space there, or move "
                    "DATASET_ROOT."
                )


def _free(folder: str) -> tuple[int, int]:
    """Return the number of free bytes and files on a disk. A disk without a limit of files has 0 files."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize, found.f_favail


def _processor_time(process: int) -> int:
    """Return the processor time of all threads of a process, in clock ticks, or 0 if the process does not exist."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0
