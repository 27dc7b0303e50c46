"""The row to which a run folder belongs.

A user chooses the ID of a new row, and can choose the ID of a deleted run of another user. So the files of a run folder
are used only for the row that made them: the row with the same owner and the same time of creation, which the database
sets. The service records both as a SHA-256 in the run folder, where a training process cannot write.
"""

from __future__ import annotations

import hashlib
import json

from trainer.core.job import Job
from trainer.core.run_folder import ROW, RunFolder
from trainer.disk import durable
from trainer.disk.untrusted_folder import UntrustedFolder


def record(folder: RunFolder, job: Job) -> None:
    """Create the run folder if needed, and record that it belongs to the row of `job`. Raises OSError."""
    folder.path.mkdir(parents=True, exist_ok=True)
    durable.write_text(folder.row, _digest(job))


def belongs_to(folder: RunFolder, job: Job) -> bool:
    """Return whether the files of the folder belong to the row of `job`. A folder without a record belongs to no row."""
    expected = _digest(job)
    try:
        with UntrustedFolder(folder.path) as opened:
            return opened.read(ROW, len(expected)) == expected.encode()
    except OSError:
        return False


def _digest(job: Job) -> str:
    return hashlib.sha256(json.dumps([job.id, job.created_by, job.created_at]).encode()).hexdigest()
