"""The folders of all runs on this host: their paths, their locks and their removal."""

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
from trainer.core.run_folder import CHECKPOINTS, PREFIX, RESUMED, RunFolder, name_of
from trainer.disk.folder_locks import FolderLocks
from trainer.disk.old_folders import remove_renamed
from trainer.disk.removal import remove_subfolder
from trainer.worker.folder_owner import belongs_to, record

log = structlog.get_logger()

VIEW_PREFIX = "run_"


@dataclass(frozen=True, kw_only=True)
class RunFolders:
    """Run folders (`runs`), dataset views (`views`) and journals. Each attempt has one of each kind."""

    runs: Path
    views: Path
    journals: Path
    keep_views: bool = False
    locks: FolderLocks = field(default_factory=FolderLocks)

    def folder(self, job: Job) -> RunFolder:
        """Return the run folder of this attempt."""
        return RunFolder.of(self.runs, job.id, job.attempt)

    def view(self, job: Job) -> Path:
        """Return the folder of this attempt's dataset. It contains the view and the fetched files."""
        return self.views / f"{VIEW_PREFIX}{name_of(job.id, job.attempt)}"

    def attempts(self, run_id: str) -> list[RunFolder]:
        """Return the run folders of all attempts on this host, without symbolic links."""
        return attempts_in(self.runs, run_id)

    def own_attempts(self, job: Job) -> list[RunFolder]:
        """Return the run folders that belong to the row of `job`. A deleted row can have had the same ID."""
        return [folder for folder in self.attempts(job.id) if belongs_to(folder, job)]

    def create(self, job: Job) -> None:
        """Create the run folder of this attempt. A folder of a deleted row with the same ID is removed first.

        Raises OSError if that folder cannot be moved away. Its files must not be published for this row.
        """
        folder = self.folder(job)
        if folder.path.is_dir() and not belongs_to(folder, job):
            log.warning("run folder belongs to a deleted row with the same ID, removing it", path=str(folder.path))
            remove_renamed(folder.path)
        try:
            record(folder, job)
        except OSError as error:  # for example a full disk: the attempt reports it
            log.warning("run folder has no record, later attempts will not use its files", error=str(error))

    def remove_checkpoints(self, run_id: str) -> None:
        """Remove the checkpoints and finished markers of a run that has no further attempt."""
        for folder in self.attempts(run_id):
            for owner, name in ((folder.output.path, CHECKPOINTS), (folder.path, RESUMED)):
                with contextlib.suppress(OSError):  # after an error, the checkpoints are removed with the run folder
                    remove_subfolder(owner, name)
            with contextlib.suppress(OSError):
                folder.finished_marker.unlink(missing_ok=True)

    def remove_obstacles(self, job: Job) -> None:
        """Remove a file or a link that has the name of a folder of this attempt. A link must not be followed."""
        run = self.folder(job)
        for folder in (run.path, run.output.path, self.view(job)):
            with contextlib.suppress(OSError):  # no folder yet, or the attempt reports the error later
                if not stat.S_ISDIR(os.lstat(folder).st_mode):
                    folder.unlink()
                    log.warning("removed a file in place of a run folder", path=str(folder))

    @contextmanager
    def in_use(self, job: Job) -> Iterator[None]:
        """Lock the folders of this attempt and of earlier attempts. While the block runs, no service removes them."""
        earlier = [folder.path for folder in self.attempts(job.id)]
        with ExitStack() as locks:
            for folder in sorted({self.folder(job).path, *earlier, self.view(job)}):
                locks.enter_context(self.locks.held(folder))
            yield

    def is_active(self, run_id: str) -> bool:
        """Return True if this process executes the run, or if the run has an undelivered journal. Raises OSError."""
        return self.has_journal(run_id) or any(self.locks.is_held(folder.path) for folder in self.attempts(run_id))

    def has_journal(self, name: str) -> bool:
        """Return whether the run `name` has a journal. `name` can end with an attempt number. Raises OSError."""
        try:
            journals = os.listdir(self.journals)  # noqa: PTH208
        except FileNotFoundError:
            return False
        runs = {journal.split(".")[0] for journal in journals if journal.endswith(".jsonl")}
        return any(name == run_id or name.startswith(f"{run_id}-") for run_id in runs)


def attempts_in(runs: Path, run_id: str) -> list[RunFolder]:
    """Return the folders of a run in `runs`, the first attempt first, without symbolic links."""
    first = f"{PREFIX}{run_id}"
    try:
        # not glob(): it would cache one pattern per run, and the service runs for a long time
        names = [name for name in os.listdir(runs) if name.startswith(f"{first}-")]  # noqa: PTH208
    except OSError:
        names = []
    paths = [runs / name for name in (first, *sorted(names))]
    return [RunFolder(path) for path in paths if not os.path.islink(path)]  # noqa: PTH114 - never raises
