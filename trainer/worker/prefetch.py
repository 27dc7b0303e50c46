"""Prefetching: start the process for the next dataset early and, while all slots are busy, download the dataset."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import structlog

from trainer.core.errors import TrainerError
from trainer.core.job import RunRequest
from trainer.core.plan import TrainPlan
from trainer.core.ports import Datasets, Queue, Worker
from trainer.core.stop import Stopped, StopSignal
from trainer.core.threads import thread_running
from trainer.worker.error_boundary import error_boundary
from trainer.worker.fetching import dataset_order
from trainer.worker.slots import Slots

log = structlog.get_logger()

AFTER_START = 3.0  # seconds after the start of a run, which needs the processors
AFTER_ERROR = 60.0  # seconds until the next try after an unexpected error
LAST_PREFETCH = 5.0  # seconds that a shutdown waits for a prefetch, which can hang on a broken disk


@dataclass(eq=False, kw_only=True)
class Prefetcher:
    """Prefetches the dataset of the next run every `interval` seconds while no slot is free, without claiming it.

    Also keeps a process for the next dataset prestarted.
    """

    queue: Queue
    datasets: Datasets
    parse: Callable[[RunRequest], TrainPlan]
    slots: Slots
    describe_worker: Callable[[int], Worker]
    interval: float
    _last: str | None = field(default=None, init=False)

    def running(self, stop: StopSignal) -> AbstractContextManager[None]:
        """Prefetch in a thread while the block runs."""
        ended = threading.Event()
        return thread_running("prefetch", lambda: self._run(stop, ended), ended.set, LAST_PREFETCH)

    def _run(self, stop: StopSignal, ended: threading.Event) -> None:
        while not ended.wait(self.interval) and not stop.must_stop:
            if self.slots.seconds_since_acquired < AFTER_START:
                continue
            with error_boundary("prefetch failed, retrying", lambda: ended.wait(AFTER_ERROR)):
                self.datasets.warm()
                if self.slots.free == 0:
                    self.prefetch_next(stop)

    def prefetch_next(self, stop: StopSignal) -> None:
        """Prefetch the dataset of the next run, unless it is the same run as at the last call.

        Errors are only logged, because the attempt of this run reports them later.
        """
        try:
            job = self.queue.peek(self.describe_worker(self.slots.gpus))
            if job is None or job.id == self._last:
                return
            self._last = job.id
            self.datasets.prefetch(dataset_order(self.parse(job.request), job), stop)
            log.info("dataset prefetched", run_id=job.id)
        except (TrainerError, OSError) as error:
            log.debug("dataset not prefetched", error=str(error))
        except Stopped:
            return
