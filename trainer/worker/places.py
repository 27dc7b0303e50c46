"""Where the files of a run are on this host, and who may remove them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trainer.core.job import Job
from trainer.disk.folder_locks import FolderLocks


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
        """Those of all attempts that this host has made."""
        return [self.runs / f"train_{job.id}", *self.runs.glob(f"train_{job.id}-*")]

    def view(self, job: Job) -> Path:
        return self.views / f"run_{job.id}{_suffix(job)}"

    @contextmanager
    def in_use(self, job: Job) -> Iterator[None]:
        """Keep every service from removing a folder of this attempt, or of an earlier one, while the block runs."""
        with ExitStack() as locks:
            for folder in sorted({self.run_dir(job), *self.run_dirs(job), self.view(job)}):
                locks.enter_context(self.locks.held(folder))
            yield

    def is_journaled(self, name: str) -> bool:
        """Whether a journal of this host is about the run `name`, which may have an attempt's suffix. Raises OSError."""
        try:
            journals = os.listdir(self.journals)  # noqa: PTH208
        except FileNotFoundError:
            return False
        runs = {journal.split(".")[0] for journal in journals if journal.endswith(".jsonl")}
        return any(name == run_id or name.startswith(f"{run_id}-") for run_id in runs)


def _suffix(job: Job) -> str:
    return "" if job.attempt <= 1 else f"-{job.attempt}"
