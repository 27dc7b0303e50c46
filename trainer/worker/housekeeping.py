"""Disk space: remove files that are no longer needed, and check the free space before a training."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import structlog

from trainer.core.errors import HostUnfit, TrainerError
from trainer.core.run_folder import PREFIX
from trainer.core.stop import Stopped, StopSignal
from trainer.core.threads import thread_running
from trainer.disk.old_folders import OldFolders
from trainer.worker.error_boundary import error_boundary
from trainer.worker.run_folders import VIEW_PREFIX, RunFolders

log = structlog.get_logger()

DAY = 86_400.0
EVERY = 3600.0  # seconds between two executions of the chores
POLL = 1.0  # seconds between checks for a call of `soon`
LAST_CHORE = 2.0  # seconds that a shutdown waits for a chore
MIB = 2**20

# The disk space of a training is this multiple of the size of its weights. A training writes last.pt and best.pt with
# optimizer state, two checkpoints that contain both, and temporary copies of these files. For example, yolo11n has
# 5.4 MB of weights, and 26 MB with optimizer state.
TIMES_THE_WEIGHTS = 24
LEAST = 200 * MIB  # bytes; for logs, plots and randomly initialized weights


class Housekeeping:
    """Does the chores at the start, every hour, and after `soon`.

    A chore is a function that removes old files or deletes uploaded checkpoints.
    """

    def __init__(self, chores: Sequence[Callable[[], None]]) -> None:
        self._chores = chores
        self._asked = threading.Event()

    def soon(self) -> None:
        """Do the chores now. If the chores are already running, do them again afterwards."""
        self._asked.set()

    def running(self, shutdown: StopSignal) -> AbstractContextManager[None]:
        """Do the chores in a thread while the block runs, so that a slow disk or store does not delay claims.

        At the end of the block, a running chore has 2 s to finish. Otherwise the next start of the service repeats it.
        """
        return thread_running("housekeeping", lambda: self._run(shutdown), lambda: None, LAST_CHORE)

    def _run(self, shutdown: StopSignal) -> None:
        while not shutdown.must_stop:
            self._asked.clear()
            again = time.monotonic() + EVERY
            for chore in self._chores:
                if shutdown.must_stop:
                    return
                with error_boundary("housekeeping chore failed"):
                    try:
                        chore()
                    except (TrainerError, Stopped, OSError) as error:
                        log.warning("housekeeping chore failed, trying again later", error=str(error))
            while time.monotonic() < again and not self._asked.is_set():
                if shutdown.wait(POLL):
                    return


def remove_unreadable(journals: Path, keep_days: float) -> None:
    """Remove unreadable journals after `keep_days`. Raises OSError."""
    if not journals.is_dir():
        return
    with os.scandir(journals) as entries:
        for entry in entries:
            if entry.name.endswith(".unreadable") and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    if entry.stat(follow_symlinks=False).st_ctime < time.time() - keep_days * DAY:
                        Path(entry.path).unlink()


def old_folders(folders: RunFolders, keep_days: float) -> list[OldFolders]:
    """Return the chores that remove old run folders and old dataset views.

    A run folder is kept while it is in use, while its run has a journal, and for `keep_days` after that.
    No other attempt uses a view, so the view of a crashed process is removed immediately, unless `keep_views` is set.
    """
    keep = keep_days * DAY
    kinds = (folders.runs, PREFIX, keep), (folders.views, VIEW_PREFIX, keep if folders.keep_views else 0.0)
    return [
        OldFolders(root, prefix, folders.locks, keep_seconds=keep, left_seconds=left, is_needed=folders.has_journal)
        for root, prefix, left in kinds
    ]


def require_space(runs: Path, model: Path) -> None:
    """Raise `HostUnfit` if the disk of the folder `runs` has too little space for a training of `model`."""
    weights = model.stat().st_size if model.exists() else 0
    needed = LEAST + TIMES_THE_WEIGHTS * weights
    free = shutil.disk_usage(runs).free
    if free < needed:
        raise HostUnfit(
            f"The disk of {runs} has {free // MIB} MiB free and this training needs about "
            f"{needed // MIB} MiB: free some space, lower KEEP_RUNS_DAYS, or move RUNS_DIR.",
        )
