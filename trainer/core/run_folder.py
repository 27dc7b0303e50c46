"""The file paths of a run on this host. This module does not read or write the disk.

Each attempt has its own folder inside RUNS_DIR, because the process of an earlier attempt may still be alive:

    train_<run id>              the first attempt
    train_<run id>-<attempt>    every later attempt
        run.log                 the events of the run and the output of the training
        manifest.json           every published artifact with its checksum
        .finished.json          the marker of a finished training
        .row                    the row to which the files belong (worker/folder_owner.py)
        resumed/                verified checkpoints from which the training can start
        output/                 the files of the training process, which cannot write to any other part of the folder
            results.csv         one row per epoch, written by Ultralytics
            weights/best.pt     the model of the best epoch
            weights/last.pt     the model of the last epoch
            checkpoints/        the newest checkpoints: epoch-00007.pt, and epoch-00007.json with its checksum

The service reads everything in `output` with `disk/untrusted_folder.py`, because the training process chose it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREFIX = "train_"
RUN_LOG = "run.log"
MANIFEST = "manifest.json"
FINISHED_MARKER = ".finished.json"
ROW = ".row"
RESUMED = "resumed"
OUTPUT = "output"
RESULTS = "results.csv"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"
BEST = "best.pt"
LAST = "last.pt"

_SHORTEST_UUID_PART = 12  # digits in the last part of a UUID; an attempt number has fewer digits


@dataclass(frozen=True, order=True)
class OutputFolder:
    """The folder of one training: the only part of a run folder that the training process can write to."""

    path: Path

    @property
    def results(self) -> Path:
        return self.path / RESULTS

    @property
    def weights(self) -> Path:
        return self.path / WEIGHTS

    @property
    def best(self) -> Path:
        return self.weights / BEST

    @property
    def last(self) -> Path:
        return self.weights / LAST

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    def checkpoint(self, epoch: int) -> Path:
        """Return the path of the checkpoint of `epoch`."""
        return self.checkpoints / checkpoint_name(epoch)


@dataclass(frozen=True, order=True)
class RunFolder:
    """The folder of one attempt. Only the service writes to it, except to `output`."""

    path: Path

    @classmethod
    def of(cls, runs: Path, run_id: str, attempt: int) -> RunFolder:
        """Return the folder of an attempt inside `runs`."""
        return cls(runs / f"{PREFIX}{name_of(run_id, attempt)}")

    @property
    def attempt(self) -> int:
        """The attempt number in the name of the folder, or 1."""
        number = self.path.name.rpartition("-")[2]
        return int(number) if number.isdecimal() and len(number) < _SHORTEST_UUID_PART else 1

    @property
    def output(self) -> OutputFolder:
        return OutputFolder(self.path / OUTPUT)

    @property
    def log(self) -> Path:
        return self.path / RUN_LOG

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST

    @property
    def finished_marker(self) -> Path:
        return self.path / FINISHED_MARKER

    @property
    def row(self) -> Path:
        return self.path / ROW

    @property
    def resumed(self) -> Path:
        return self.path / RESUMED


def checkpoint_name(epoch: int) -> str:
    """Return the file name of the checkpoint of `epoch`."""
    return f"epoch-{epoch:05d}.pt"


def name_of(run_id: str, attempt: int) -> str:
    """Return `<run id>` for the first attempt and `<run id>-<attempt>` for later attempts."""
    return run_id if attempt <= 1 else f"{run_id}-{attempt}"
