"""That a training is done, noted in its run folder: if only the upload is interrupted, only the upload is repeated."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from trainer.core.events import Finished, WeightsFile
from trainer.disk import durable

NOTE = ".finished.json"


def remember(run_dir: Path, finished: Finished) -> None:
    """Write the note, whole or not at all, once everything else in the folder would survive a power cut. Raises OSError."""
    durable.sync_below(run_dir)
    durable.write_text(run_dir / NOTE, json.dumps(asdict(finished)))


def recall(run_dir: Path) -> Finished | None:
    """What the note says; None without one that can be read."""
    try:
        note = json.loads((run_dir / NOTE).read_text())
        best, last = (WeightsFile(**note.pop(name)) for name in ("best", "last"))
        return Finished(best=best, last=last, **note)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def forget(run_dir: Path) -> None:
    """Remove the note."""
    (run_dir / NOTE).unlink(missing_ok=True)
