"""That a training is done, noted in its run folder: if only the upload is interrupted, only the upload is repeated."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from trainer.core.events import Finished, WeightsFile

NOTE = ".finished.json"


def remember(run_dir: Path, finished: Finished) -> None:
    """Write the note. It appears whole or not at all, and after the weights, also when the power fails. Raises OSError."""
    for weights in {finished.best.path, finished.last.path}:
        _sync(Path(weights))
    beside = run_dir / f"{NOTE}.tmp"
    beside.write_text(json.dumps(asdict(finished)))
    _sync(beside)
    beside.replace(run_dir / NOTE)
    _sync(run_dir)


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
