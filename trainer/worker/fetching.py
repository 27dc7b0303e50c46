"""Fetching what a run needs before it can train: its dataset, its model, the checkpoint that it resumes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from trainer.core.dataset import DatasetOrder
from trainer.core.errors import Misconfigured, ObjectMissing, Unavailable
from trainer.core.plan import TrainPlan
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import StopSignal
from trainer.worker.event_sink import Record

T = TypeVar("T")

# Before the training there is less to lose, and the slot is idle; an outage of minutes still costs no attempt.
FETCH_PATIENCE = RetryPolicy(tries=100_000, first_wait=1.0, longest_wait=15.0, total_seconds=300)


def dataset_order(run_id: str, plan: TrainPlan) -> DatasetOrder:
    """What the plan needs of its dataset."""
    return DatasetOrder(run_id=run_id, sources=plan.sources, task=plan.task, split=plan.split, imgsz=plan.imgsz)


def fetched(fetch: Callable[[], T], record: Record, stop: StopSignal) -> T:
    """Call `fetch`, retrying while a service does not answer or refuses us. A 404 is believed when it comes twice.

    Raises Unavailable after `FETCH_PATIENCE`, Stopped, and what `fetch` raises.
    """
    was_missing = False

    def ask() -> T:
        nonlocal was_missing
        try:
            return fetch()
        except ObjectMissing as error:
            if was_missing:
                raise
            was_missing = True
            raise Unavailable(str(error)) from error
        except (Unavailable, Misconfigured) as error:
            record.warn_once("fetch_waits", f"The run waits: {error}")
            raise Unavailable(str(error), retry_after=getattr(error, "retry_after", None)) from error

    return retrying(ask, FETCH_PATIENCE, stop)
