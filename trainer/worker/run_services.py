"""The services that all runs share: ports, folders and time limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.core.job import RunRequest
from trainer.core.plan import TrainPlan
from trainer.core.ports import Datasets, ObjectStore, Trainer, Weights
from trainer.worker.health import Health
from trainer.worker.run_folders import RunFolders
from trainer.worker.uploaded_checkpoints import UploadedCheckpoints


@dataclass(frozen=True, kw_only=True)
class RunTimes:
    """Time limits of a run, and the interval of its checkpoint uploads, in seconds.

    The training must save its checkpoint in the first 40 % of `drain`. Uploads must end at 80 %. The remaining time is
    for the delivery of the outcome.
    """

    checkpoint: float  # from one checkpoint upload to the next
    drain: float  # from the stop of a run to its end

    @property
    def save_checkpoint(self) -> float:
        return 0.4 * self.drain

    @property
    def upload(self) -> float:
        return 0.8 * self.drain


@dataclass(frozen=True, kw_only=True)
class RunServices:
    """The ports, folders and time limits of all runs."""

    datasets: Datasets
    weights: Weights
    trainer: Trainer
    store: ObjectStore
    artifacts_bucket: str
    parse: Callable[[RunRequest], TrainPlan]
    folders: RunFolders
    uploaded: UploadedCheckpoints
    times: RunTimes
    health: Health
