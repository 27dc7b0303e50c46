"""All reporters of a service: reporters for every run, and reporters that a single run requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import structlog

from trainer.core.events import Event
from trainer.core.job import Job
from trainer.core.ports import AttemptEnd, Reporter
from trainer.reporting.background import BackgroundReporter, OnDropped

log = structlog.get_logger()

ReporterFactory: TypeAlias = Callable[[Job], Reporter | None]


class Reporters:
    """Starts a thread for each reporter in `for_all_runs`, and for each reporter that a factory returns for a run.

    A factory returns None if the run does not request its reporter, for example without a callback URL.
    """

    def __init__(
        self,
        for_all_runs: Sequence[Reporter],
        factories: Sequence[ReporterFactory] = (),
        *,
        on_dropped: OnDropped = lambda *_: None,
    ) -> None:
        self._on_dropped = on_dropped
        self._factories = factories
        self._lock = threading.Lock()
        self._shared = [BackgroundReporter(reporter, on_dropped=on_dropped) for reporter in for_all_runs]
        self._of_runs: list[BackgroundReporter] = []

    def for_run(self, job: Job) -> Reporter:
        """Return a reporter that passes every call to all reporters of a run, without waiting for them."""
        own = [reporter for factory in self._factories if (reporter := self._started(factory, job)) is not None]
        with self._lock:
            self._of_runs = [*(reporter for reporter in self._of_runs if reporter.is_running), *own]
        return _Group([*self._shared, *own])

    def close(self, seconds: float) -> None:
        """Wait up to `seconds` until all reporters have received all calls."""
        deadline = time.monotonic() + seconds
        with self._lock:
            running = [*self._shared, *self._of_runs]
        for reporter in running:
            if lost := reporter.close(max(0.0, deadline - time.monotonic())):
                log.error("reporter did not finish in time, reports are lost", reporter=reporter.name, lost=lost)

    def _started(self, factory: ReporterFactory, job: Job) -> BackgroundReporter | None:
        """Start the thread of a reporter for one run. Return None if the run has no reporter of this kind."""
        try:
            reporter = factory(job)
            if reporter is None:
                return None
            return BackgroundReporter(reporter, is_for_one_run=True, on_dropped=self._on_dropped)
        except Exception:
            # the run must not fail because of a reporter
            log.exception("reporter for the run cannot be created", run_id=job.id)
            return None


class _Group:
    """Passes every call to several reporters."""

    def __init__(self, reporters: Sequence[BackgroundReporter]) -> None:
        self._reporters = reporters

    def started(self, job: Job) -> None:
        for reporter in self._reporters:
            reporter.started(job)

    def event(self, job: Job, event: Event) -> None:
        for reporter in self._reporters:
            reporter.event(job, event)

    def ended(self, job: Job, end: AttemptEnd) -> None:
        for reporter in self._reporters:
            reporter.ended(job, end)
