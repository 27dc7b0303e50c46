"""Disk space: what nobody needs any more is removed, what a run is going to need is checked first."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import structlog

from trainer.core.errors import HostUnfit, TrainerError
from trainer.core.run_folder import PREFIX
from trainer.core.stop import Stopped, StopSignal
from trainer.disk.old_folders import OldFolders
from trainer.worker.bulkhead import bulkhead
from trainer.worker.run_folders import VIEW_PREFIX, RunFolders

log = structlog.get_logger()

DAY = 86_400.0
EVERY = 3600.0  # seconds between two times
LEAVES = 2.0  # seconds
MIB = 2**20

# beside the weights themselves: last.pt and best.pt with optimizer state, two checkpoint generations with both, one
# more of each while it is being written; measured for yolo11n: 5.4 MB of weights, 26 MB with the optimizer
TIMES_THE_WEIGHTS = 24
LEAST = 200 * MIB  # logs, plots, and weights that are only drawn by lot

Chore: TypeAlias = Callable[[], None]


class Housekeeping:
    """The chores of this host. Each is done at the start, once an hour, and after `soon`."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._chores = chores
        self._asked = threading.Event()

    def soon(self) -> None:
        """Something became free: do the chores now, if their thread is not at it, else once more after that."""
        self._asked.set()

    @contextmanager
    def running(self, shutdown: StopSignal) -> Iterator[None]:
        """Do the chores in a thread while the block runs: a slow disk or store holds up no claim.

        At its end a chore that is being done is not waited for long: the next start does it again.
        """
        thread = threading.Thread(target=self._run, args=(shutdown,), name="housekeeping", daemon=True)
        thread.start()
        try:
            yield
        finally:
            thread.join(LEAVES)

    def _run(self, shutdown: StopSignal) -> None:
        while not shutdown.must_stop:
            self._asked.clear()
            again = time.monotonic() + EVERY
            for chore in self._chores:
                if shutdown.must_stop:
                    return
                with bulkhead("housekeeping chore failed"):
                    _do(chore)
            while time.monotonic() < again and not self._asked.is_set():
                if shutdown.wait(1.0):
                    return


def _do(chore: Chore) -> None:
    try:
        chore()
    except (TrainerError, Stopped, OSError) as error:
        log.warning("housekeeping chore failed, trying again later", error=str(error))


def forget_unreadable(journals: Path, keep_days: float) -> None:
    """Remove journals that were set aside as unreadable, after `keep_days`. Raises OSError."""
    if not journals.is_dir():
        return
    with os.scandir(journals) as entries:
        for entry in entries:
            if entry.name.endswith(".unreadable") and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat(follow_symlinks=False).st_ctime < time.time() - keep_days * DAY:
                        Path(entry.path).unlink()


def old_folders(folders: RunFolders, keep_days: float) -> list[OldFolders]:
    """The run folders and views of this host.

    A run folder stays while it is in use, while a journal names its run, and for `keep_days` after that. A view is of
    no use to another attempt: one whose process died goes at once, unless views are kept.
    """
    keep = keep_days * DAY
    runs = OldFolders(
        folders.runs, PREFIX, folders.locks,
        keep_seconds=keep, left_seconds=keep, is_needed=lambda name: folders.has_journal(name.removeprefix(PREFIX)),
    )  # fmt: skip
    views = OldFolders(
        folders.views, VIEW_PREFIX, folders.locks,
        keep_seconds=keep, left_seconds=keep if folders.keep_views else 0.0,
        is_needed=lambda name: folders.has_journal(name.removeprefix(VIEW_PREFIX)),
    )  # fmt: skip
    return [runs, views]


def require_space(run_dir: Path, model: Path) -> None:
    """Raise `HostUnfit` when the disk cannot hold what a training of `model` writes into `run_dir`."""
    weights = model.stat().st_size if model.exists() else 0
    needed = LEAST + TIMES_THE_WEIGHTS * weights
    run_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise HostUnfit(
            f"The disk of {run_dir.parent} has {free // MIB} MiB free and this training needs about "
            f"{needed // MIB} MiB: free some space, lower KEEP_RUNS_DAYS, or move RUNS_DIR.",
        )
