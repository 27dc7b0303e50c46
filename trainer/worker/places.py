"""Where the files of a run are on this host, and who may remove them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from trainer.core.job import Job
from trainer.disk.folder_locks import FolderLocks
from trainer.disk.removal import remove_tree
from trainer.worker import finished_marker

log = structlog.get_logger()

_UUID_PART = 12  # characters after the last hyphen of a run's id; no attempt has so many digits


@dataclass(frozen=True, kw_only=True)
class Places:
    """Each attempt has folders of its own: an earlier one may not be dead."""

    runs: Path
    views: Path
    journals: Path
    keep_views: bool = False
    locks: FolderLocks = field(default_factory=FolderLocks)

    def run_dir(self, job: Job) -> Path:
        return self.runs / f"train_{job.id}{_suffix(job)}"

    def run_dirs(self, job: Job) -> list[Path]:
        """Those of all attempts that this host has made. A link in place of one is none of them."""
        return self._run_dirs(job.id)

    def _run_dirs(self, run_id: str) -> list[Path]:
        first = f"train_{run_id}"
        try:
            # no glob, whose patterns Python remembers for the runs of a whole day
            later = sorted(name for name in os.listdir(self.runs) if name.startswith(f"{first}-"))  # noqa: PTH208
        except OSError:
            later = []
        folders = [self.runs / name for name in (first, *later)]
        return [folder for folder in folders if not os.path.islink(folder)]  # noqa: PTH114 - raises nothing

    def forget_training(self, run_id: str) -> None:
        """The run is over: remove what only another attempt would have used."""
        for run_dir in self._run_dirs(run_id):
            with contextlib.suppress(OSError):  # what stays goes with the run folder
                remove_tree(run_dir / "checkpoints")
            with contextlib.suppress(OSError):
                finished_marker.forget(run_dir)

    def view(self, job: Job) -> Path:
        return self.views / f"run_{job.id}{_suffix(job)}"

    def clear_way(self, job: Job) -> None:
        """Remove what lies where this attempt's folders belong and is no folder: a link there must not be followed."""
        for folder in (self.run_dir(job), self.view(job)):
            with contextlib.suppress(
                OSError
            ):  # nothing is there, or the attempt fails with what is wrong with the disk
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    folder.unlink()
                    log.warning("removed what was in place of a run's folder", path=str(folder))

    @contextmanager
    def in_use(self, job: Job) -> Iterator[None]:
        """Keep every service from removing a folder of this attempt, or of an earlier one, while the block runs."""
        with ExitStack() as locks:
            for folder in sorted({self.run_dir(job), *self.run_dirs(job), self.view(job)}):
                locks.enter_context(self.locks.held(folder))
            yield

    def is_worked_on(self, run_id: str) -> bool:
        """Whether this host works on the run, or has something about it that the queue does not have yet. Raises OSError."""
        return self.is_journaled(run_id) or any(self.locks.is_held(folder) for folder in self._run_dirs(run_id))

    def is_journaled(self, name: str) -> bool:
        """Whether a journal of this host is about the run `name`, which may have an attempt's suffix. Raises OSError."""
        try:
            journals = os.listdir(self.journals)  # noqa: PTH208
        except FileNotFoundError:
            return False
        runs = {journal.split(".")[0] for journal in journals if journal.endswith(".jsonl")}
        return any(name == run_id or name.startswith(f"{run_id}-") for run_id in runs)


def attempt_of(run_dir: Path) -> int:
    """The attempt that a run folder, `train_<id>` or `train_<id>-<attempt>`, belongs to."""
    number = run_dir.name.rpartition("-")[2]
    return int(number) if number.isdecimal() and len(number) < _UUID_PART else 1


def _suffix(job: Job) -> str:
    return "" if job.attempt <= 1 else f"-{job.attempt}"
