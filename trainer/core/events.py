"""What happens during a run, in the order in which it happens.

The child process sends these as JSON lines (training/wire.py); the supervisor adds its own; the journal keeps
those that must not be lost (`is_durable`), and they become rows of `training_run_events`.
Epochs are 1-based everywhere. Times are in seconds, sizes in bytes, rates per second, memory in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from trainer.core.job import JsonObject


class Phase(StrEnum):
    """Where a run is. LOADING to FINALIZING belong to the child, the others to the supervisor."""

    PREPARING = "preparing"  # the request is read, the dataset looked for
    DOWNLOADING = "downloading"
    CHECKING = "checking"  # the dataset is validated and linked into its view
    STARTING = "starting"  # slot taken, child started or a spare handed its plan
    LOADING = "loading"  # model and weights
    SCANNING = "scanning"  # Ultralytics reads the labels
    TRAINING = "training"
    VALIDATING = "validating"
    FINALIZING = "finalizing"  # best.pt on val and test, plots, exports
    UPLOADING = "uploading"
    ENDING = "ending"  # everything is uploaded, the outcome is told


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """The run entered a phase; `seconds` is how long the phase before it took, None for the first.

    `files` and `bytes` are what that phase moved, if it was a transfer, and `rate` its bytes per second.
    """

    phase: Phase
    seconds: float | None = None
    files: int | None = None
    bytes: int | None = None
    rate: float | None = None
    kind: Literal["phase"] = "phase"


@dataclass(frozen=True, kw_only=True)
class TransferProgress:
    """A download or an upload is advancing."""

    phase: Phase
    files: int
    total_files: int
    bytes: int
    total_bytes: int
    rate: float  # bytes per second
    eta_seconds: float | None
    kind: Literal["transfer"] = "transfer"


@dataclass(frozen=True, kw_only=True)
class BatchProgress:
    """A batch was trained or validated; at most two a second are sent, and any of them may be lost."""

    phase: Phase
    epoch: int
    total_epochs: int
    batch: int  # 1-based within the epoch
    total_batches: int
    losses: Mapping[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    gpu_memory: int | None = None
    eta_seconds: float | None = None
    kind: Literal["batch"] = "batch"


@dataclass(frozen=True, kw_only=True)
class EpochFinished:
    """An epoch is complete: its losses, its validation metrics and its learning rates, as Ultralytics names them."""

    epoch: int
    total_epochs: int
    metrics: Mapping[str, float]
    seconds: float
    eta_seconds: float | None = None
    kind: Literal["epoch"] = "epoch"


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A verified, resumable copy of the training state exists; `key` is None until it is in the bucket."""

    epoch: int
    sha256: str
    bytes: int
    path: str
    key: str | None = None
    kind: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class Warned:
    """Something that the user should know and that did not stop the run. `code` is stable, for programs."""

    code: str
    message: str
    kind: Literal["warning"] = "warning"


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights as the training left it: absolute path, SHA-256 (hexadecimal) and size in bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The child's last word after a training that produced a model.

    `report` holds what goes into the row's `results` (numbers only, bounded size): `mAP`, `precision`, `recall`,
    `metrics`, `test`, `per_class`, `curves`, `confusion_matrix`, `environment`, `exports`, `epochs_completed`.
    """

    best: WeightsFile
    last: WeightsFile
    report: JsonObject
    kind: Literal["finished"] = "finished"


@dataclass(frozen=True, kw_only=True)
class ChildStopped:
    """The child's last word after a polite stop; the newest checkpoint was announced before it."""

    kind: Literal["stopped"] = "stopped"


@dataclass(frozen=True, kw_only=True)
class Crashed:
    """The child's last word after an exception: what the diagnosis starts from."""

    error: str  # the exception's class name
    message: str
    traceback: str
    phase: Phase
    is_installation: bool = False  # the libraries could not be imported; nothing of the run was looked at yet
    kind: Literal["crashed"] = "crashed"


Event: TypeAlias = (
    PhaseStarted
    | TransferProgress
    | BatchProgress
    | EpochFinished
    | CheckpointSaved
    | Warned
    | Finished
    | ChildStopped
    | Crashed
)


def is_durable(event: Event) -> bool:
    """Whether the event belongs to the run's history: ticks only move the progress bar, a report goes to `results`."""
    return not isinstance(event, BatchProgress | TransferProgress | Finished)
