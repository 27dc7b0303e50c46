"""What all runs of a service have in common: the ports that they use, their folders and their times."""

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
    """Seconds: how often checkpoints leave the host, and what a run may still take once it was stopped.

    Of `drain` the training has the first 40 % to keep its state, uploads end at 80 %, and the rest is the queue's.
    """

    checkpoint: float
    drain: float

    @property
    def keep_state(self) -> float:
        return 0.4 * self.drain

    @property
    def upload(self) -> float:
        return 0.8 * self.drain


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What every run of this service is made with."""

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
