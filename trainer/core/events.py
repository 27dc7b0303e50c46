"""The events of a run.

The training process sends them as JSON lines (training/wire.py), and the worker adds its own. The journal keeps those
that must not be lost (`is_durable`); they become rows of `training_run_events`.
Epochs are 1-based everywhere. Times are in seconds, sizes in bytes, rates per second, memory in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias

from trainer.core.job import JsonObject


class Phase(StrEnum):
    """Where a run is. The training process reports LOADING to FINALIZING, the worker the others."""

    PREPARING = "preparing"  # the request is read, the dataset is located
    DOWNLOADING = "downloading"
    CHECKING = "checking"  # the dataset is validated and linked into its view
    STARTING = "starting"  # the training process is started, or a prepared one gets its order
    LOADING = "loading"  # model and weights
    SCANNING = "scanning"  # Ultralytics reads the labels
    TRAINING = "training"
    VALIDATING = "validating"
    FINALIZING = "finalizing"  # best.pt on val and test, plots, exports
    UPLOADING = "uploading"
    ENDING = "ending"  # everything is uploaded, the outcome is sent to the queue


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """The run entered a phase. `seconds` is the duration of the previous phase, None for the first.

    If the previous phase was a transfer, `files`, `bytes` and `rate` (bytes per second) describe it.
    """

    phase: Phase
    seconds: float | None = None
    files: int | None = None
    bytes: int | None = None
    rate: float | None = None
    kind: Literal["phase"] = "phase"


@dataclass(frozen=True, kw_only=True)
class TransferProgress:
    """Progress of a download or an upload."""

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
    """A batch was trained or validated. At most two per second are sent, and any of them may be lost."""

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
    """An epoch has finished: losses, validation metrics and learning rates, with the names of Ultralytics."""

    epoch: int
    total_epochs: int
    metrics: Mapping[str, float]
    seconds: float
    eta_seconds: float | None = None
    kind: Literal["epoch"] = "epoch"


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A verified checkpoint exists. `key` is None until it is in the bucket."""

    epoch: int
    sha256: str
    bytes: int
    path: str
    key: str | None = None
    kind: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class Warned:
    """A message for the user about something that did not stop the run. `code` is stable, for programs."""

    code: str
    message: str
    kind: Literal["warning"] = "warning"


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of weights at the end of the training: absolute path, SHA-256 (hexadecimal) and size in bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event of a training process that produced a model.

    `report` becomes part of the row's `results` (numbers only, bounded size): `mAP`, `precision`, `recall`,
    `metrics`, `test`, `per_class`, `curves`, `confusion_matrix`, `environment`, `exports`, `epochs_completed`.
    """

    best: WeightsFile
    last: WeightsFile
    report: JsonObject
    kind: Literal["finished"] = "finished"


@dataclass(frozen=True, kw_only=True)
class ChildStopped:
    """The last event of a training process that was asked to stop; it reported its newest checkpoint before."""

    kind: Literal["stopped"] = "stopped"


@dataclass(frozen=True, kw_only=True)
class Crashed:
    """The last event of a training process after an exception; the diagnosis starts from it."""

    error: str  # the exception's class name
    message: str
    traceback: str
    phase: Phase
    is_installation: bool = False  # the libraries could not be imported; the run itself was not read yet
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
    """Return whether the event is part of the run's history. Progress is not, and a report goes to `results`."""
    return not isinstance(event, BatchProgress | TransferProgress | Finished)
