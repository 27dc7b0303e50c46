"""Retries for the downloads before a training: the dataset, the model and the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from trainer.core.dataset import DatasetOrder
from trainer.core.errors import Misconfigured, ObjectMissing, Unavailable
from trainer.core.job import Job
from trainer.core.plan import TrainPlan
from trainer.core.retry import RetryPolicy, retrying
from trainer.worker.run_context import RunContext

T = TypeVar("T")

# the slot is idle during the retries, so the time limit is short: five minutes
FETCH_RETRIES = RetryPolicy(tries=100_000, first_wait=1.0, longest_wait=15.0, total_seconds=300)


def dataset_order(plan: TrainPlan, job: Job) -> DatasetOrder:
    """Return the argument of `Datasets.prepare` for a run."""
    return DatasetOrder(sources=plan.sources, task=plan.task, split=plan.split, imgsz=plan.imgsz, owner=job.created_by)


def fetch_with_retries(fetch: Callable[[], T], run: RunContext) -> T:
    """Call `fetch`, retrying while a service is unavailable or misconfigured. A missing object is retried once.

    Raises Unavailable after the last retry of `FETCH_RETRIES`, Stopped, and all other errors of `fetch`.
    """
    was_missing = False

    def attempt() -> T:
        nonlocal was_missing
        try:
            return fetch()
        except ObjectMissing as error:
            if was_missing:
                raise
            was_missing = True
            raise Unavailable(str(error)) from error
        except (Unavailable, Misconfigured) as error:
            run.events.warn_once("fetch_waits", f"Download failed, retrying: {error}")
            raise Unavailable(str(error), retry_after=getattr(error, "retry_after", None)) from error

    return retrying(attempt, FETCH_RETRIES, run.stop)
