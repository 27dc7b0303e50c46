"""The events of a run.

The training process sends events as JSON lines (training/wire.py), and the worker adds more events. Durable events
(`is_durable`) are written to the journal and become rows of `training_run_events`.
Epochs are 1-based everywhere. Durations are in seconds, sizes and memory in bytes, rates per second.

The types of the fields contain their limits, because a training process can send any value. Every number within these
limits fits into the columns of the queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from trainer.core.job import JsonObject
from trainer.core.run_folder import BEST, LAST

Count: TypeAlias = Annotated[int, Field(ge=0, lt=10**9)]  # fits into int4
Bytes: TypeAlias = Annotated[int, Field(ge=0, lt=2**53)]  # fits into int8, and into a number of JavaScript
Amount: TypeAlias = Annotated[float, Field(gt=-1e12, lt=1e12)]  # seconds, or a number per second
Metrics: TypeAlias = Mapping[
    Annotated[str, Field(max_length=200, pattern=r"^[\w /().:+-]*$")], Annotated[float, Field(allow_inf_nan=False)]
]  # at most `MOST_METRICS` entries
MOST_METRICS = 500


class Phase(StrEnum):
    """The phase of a run. The training process reports LOADING to FINALIZING; the worker reports the others."""

    PREPARING = "preparing"  # the request is parsed, the dataset is located
    DOWNLOADING = "downloading"
    CHECKING = "checking"  # the dataset is validated and linked into its view
    STARTING = "starting"  # the training process is started, or a prestarted process receives its training order
    LOADING = "loading"  # the model and its weights are loaded
    SCANNING = "scanning"  # Ultralytics reads the labels
    TRAINING = "training"
    VALIDATING = "validating"
    FINALIZING = "finalizing"  # best.pt is evaluated on val and test; plots and exports are created
    UPLOADING = "uploading"
    ENDING = "ending"  # everything is uploaded, the outcome is sent to the queue


@dataclass(frozen=True, kw_only=True)
class PhaseStarted:
    """The run entered a phase. `seconds` is the duration of the previous phase, or None for the first phase.

    If the previous phase was a transfer, `files`, `bytes` and `rate` (bytes per second) describe it.
    """

    phase: Phase
    seconds: Amount | None = None
    files: Count | None = None
    bytes: Bytes | None = None
    rate: Amount | None = None
    kind: Literal["phase"] = "phase"


@dataclass(frozen=True, kw_only=True)
class TransferProgress:
    """Progress of a download or an upload."""

    phase: Phase
    files: Count
    total_files: Count
    bytes: Bytes
    total_bytes: Bytes
    rate: float  # bytes per second
    eta_seconds: float | None
    kind: Literal["transfer"] = "transfer"


@dataclass(frozen=True, kw_only=True)
class BatchProgress:
    """A batch was trained or validated. At most two such events per second are sent, and events can be lost."""

    phase: Phase
    epoch: Count
    total_epochs: Count
    batch: Count  # 1-based within the epoch
    total_batches: Count
    losses: Metrics = field(default_factory=dict)
    images_per_second: Amount | None = None
    gpu_memory: Bytes | None = None
    eta_seconds: Amount | None = None
    kind: Literal["batch"] = "batch"


@dataclass(frozen=True, kw_only=True)
class EpochFinished:
    """An epoch has finished: losses, validation metrics and learning rates, with the metric names of Ultralytics."""

    epoch: Count
    total_epochs: Count
    metrics: Metrics
    seconds: Amount
    eta_seconds: Amount | None = None
    kind: Literal["epoch"] = "epoch"


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved:
    """A checkpoint exists. Its epoch determines its file name (core/run_folder.py).

    `key` is None until the checkpoint is in the bucket. Only the worker sets the key.
    """

    epoch: Count
    sha256: str
    bytes: Bytes
    key: str | None = None
    kind: Literal["checkpoint"] = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class Warned:
    """A message for the user about a problem that did not stop the run. `code` is stable, so programs can use it."""

    code: str
    message: str
    kind: Literal["warning"] = "warning"


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A weights file of a finished training: SHA-256 (hexadecimal) and size in bytes."""

    sha256: str
    bytes: Bytes


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event of a training process that produced a model.

    `best` is weights/best.pt, or None if no epoch was the best. `last` is weights/last.pt.
    `report` becomes part of `results` in the row. It has a limited size and includes `mAP`, `precision`, `recall`,
    `metrics`, `test`, `per_class`, `curves`, `confusion_matrix`, `environment`, `exports`, `epochs_completed`.
    """

    best: WeightsFile | None
    last: WeightsFile
    report: JsonObject
    kind: Literal["finished"] = "finished"

    @property
    def weights(self) -> dict[str, WeightsFile]:
        """The files by their name in the folder `weights`. The first file is the model of the run."""
        return ({BEST: self.best} if self.best else {}) | {LAST: self.last}


@dataclass(frozen=True, kw_only=True)
class ChildStopped:
    """The last event of a training process that stopped on request. Its newest checkpoint was reported before."""

    kind: Literal["stopped"] = "stopped"


@dataclass(frozen=True, kw_only=True)
class Crashed:
    """The last event of a training process after an exception; the basis of the diagnosis."""

    error: str  # class name of the exception
    message: str
    traceback: str
    phase: Phase
    is_installation: bool = False  # the libraries could not be imported
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
    """Return whether the event is part of the history of the run. Progress events and `Finished` are not."""
    return not isinstance(event, BatchProgress | TransferProgress | Finished)
