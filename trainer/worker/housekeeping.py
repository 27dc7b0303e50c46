"""Disk space: what old runs left behind goes, what a run is going to need is checked first."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from trainer.core.errors import MachineFailed

log = structlog.get_logger()

DAY = 86_400.0
EVERY = 3600.0  # seconds between sweeps
MIB = 2**20

# beside the weights themselves: last.pt and best.pt with optimiser state, two checkpoint generations with both, one
# more of each while it is being written; measured for yolo11n: 5.4 MB of weights, 26 MB with the optimiser
TIMES_THE_WEIGHTS = 24
LEAST = 200 * MIB  # logs, plots, and weights that are only drawn by lot


class Housekeeping:
    """Removes run folders and views that nobody works on, once they are `keep_days` old.

    A run is being worked on while its journal exists: `<run_id>.<attempt>.jsonl`.
    """

    def __init__(self, *, runs: Path, views: Path, journals: Path, keep_days: float) -> None:
        self._runs = runs
        self._views = views
        self._journals = journals
        self._keep_seconds = keep_days * DAY
        self._next = 0.0

    def sweep_if_due(self) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            self.sweep()

    def sweep(self) -> None:
        in_use = {path.name.split(".")[0] for path in self._journals.glob("*.jsonl")}
        for folder in [*self._old("train_", self._runs), *self._old("run_", self._views)]:
            if not any(run_id in folder.name for run_id in in_use):
                shutil.rmtree(folder, ignore_errors=True)
                log.info("an old folder was removed", path=str(folder))

    def _old(self, prefix: str, root: Path) -> Iterator[Path]:
        for folder in root.glob(f"{prefix}*"):
            newest = max((path.stat().st_mtime for path in [folder, *folder.glob("*")]), default=0.0)
            if folder.is_dir() and time.time() - newest > self._keep_seconds:
                yield folder


def require_space(run_dir: Path, model: Path) -> None:
    """Raise `MachineFailed` when the disk cannot hold what a training of `model` writes into `run_dir`."""
    weights = model.stat().st_size if model.exists() else 0
    needed = LEAST + TIMES_THE_WEIGHTS * weights
    run_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(run_dir).free
    if free < needed:
        raise MachineFailed(
            f"The disk of {run_dir.parent} has {free // MIB} MiB free and this training needs about "
            f"{needed // MIB} MiB: free some space, lower KEEP_RUNS_DAYS, or move RUNS_DIR.",
        )
