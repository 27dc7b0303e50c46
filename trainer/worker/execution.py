"""Execution of one run, from its lease to its outcome. Read this file first, then attempt.py.

    claim ─▶ parse ─▶ prepare ─▶ train ─▶ publish ─▶ finish
                 ╰── a heartbeat renews the lease meanwhile ──╯

The outcome is written to the journal, then sent to the queue with retries, then passed to the reporters.
If the lease is lost, there is no outcome and the row is not changed. If this process crashes, its journal stays on disk
and the next process recovers the run (recovery.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import structlog

from trainer.core.job import Beat, Failed, Job, JsonObject, Lease, Outcome, Retry, Status
from trainer.core.ports import AttemptEnd, Delivery, Queue, Reporter
from trainer.core.progress import Progress
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.core.text import escaped
from trainer.worker.attempt import Attempt
from trainer.worker.error_boundary import call_or, error_boundary
from trainer.worker.event_sink import EventSink
from trainer.worker.journal import Journal
from trainer.worker.lease import Heartbeat, LeaseTimes
from trainer.worker.liveness import Liveness
from trainer.worker.outcome_delivery import RETRY_FOREVER, deliver
from trainer.worker.publish import ONE_TRY
from trainer.worker.run_context import RunContext
from trainer.worker.run_log import RunLog
from trainer.worker.run_services import RunServices
from trainer.worker.slots import AcquiredSlots

log = structlog.get_logger()

SERVICE_FAILED = "An internal error of the service ended this attempt: see the worker's log."
RUN_FAILED_IN_SERVICE = "run failed: error in the service"


@dataclass(frozen=True, kw_only=True)
class RunHost:
    """Opens the context of each run on this host: its log, its events and its heartbeat."""

    queue: Queue
    beat: Beat  # sends a heartbeat to the queue
    services: RunServices
    reporter_for: Callable[[Job], Reporter]
    lease_times: LeaseTimes
    liveness: Liveness
    timestamp_output: bool

    @contextmanager
    def open_run(
        self, journal: Journal, stop: StopSignal, reporter: Reporter, *, sends_progress: bool = True
    ) -> Iterator[RunContext]:
        """Open the log and the heartbeat of an attempt. The caller starts the heartbeat."""
        lease, folder = journal.lease, self.services.folders.folder(journal.lease.job)
        progress = Progress()
        report = progress.as_json if sends_progress else dict
        with closing(RunLog(folder.log, timestamps=self.timestamp_output)) as run_log:
            events = EventSink(lease.job, journal, progress, run_log, reporter)
            heartbeat = Heartbeat(self.beat, journal, stop, self.lease_times, report, self.liveness)
            yield RunContext(job=lease.job, folder=folder, stop=stop, events=events, heartbeat=heartbeat)


class Execution:
    """Executes runs. One object serves all slots; the state of one run is in its `Attempt`."""

    def __init__(self, host: RunHost) -> None:
        self._host = host
        self._services = host.services
        self._queue = host.queue

    def run(self, lease: Lease, slots: AcquiredSlots, shutdown: StopSignal) -> AttemptEnd:
        """Execute one attempt of the run. Return the end of the attempt, which the reporters also receive."""
        reporter, end = self._host.reporter_for(lease.job), AttemptEnd(outcome=None, delivery=Delivery.PENDING)
        try:
            with closing(Journal.create(self._services.folders.journals, lease)) as journal:
                end = call_or(
                    lambda: self._run(journal, slots, shutdown, reporter),
                    RUN_FAILED_IN_SERVICE,
                    lambda: self._give_up(journal, slots, shutdown),
                )
        finally:
            reporter.ended(lease.job, end)
        if not shutdown.must_stop:
            self._services.uploaded.settle(lease.job.id)
        return end

    def requeue(self, lease: Lease, stop: StopSignal) -> None:
        """Requeue a run that cannot be started. If the queue does not answer, the next process requeues the run."""
        with closing(Journal.create(self._services.folders.journals, lease)) as journal:
            self._end_after_error(journal, stop, ONE_TRY)

    def _run(self, journal: Journal, slots: AcquiredSlots, shutdown: StopSignal, reporter: Reporter) -> AttemptEnd:
        job, services = journal.lease.job, self._services
        reporter.started(job)
        if job.checkpoint and job.checkpoint.key:
            # listed for a later deletion, because the worker that uploaded the checkpoint can be gone
            services.uploaded.note(job.id, job.checkpoint.key)
        with services.folders.in_use(job):
            services.folders.remove_obstacles(job)
            services.folders.create(job)
            with self._host.open_run(journal, shutdown.child(), reporter) as run:
                end = self._run_attempt(journal, Attempt(services, run, slots), run, shutdown)
            if end.status in (Status.COMPLETED, Status.CANCELED):
                with error_boundary("checkpoints of an ended run cannot be removed"):
                    services.folders.remove_checkpoints(job.id)
        return end

    def _run_attempt(self, journal: Journal, attempt: Attempt, run: RunContext, shutdown: StopSignal) -> AttemptEnd:
        labels = structlog.contextvars.bound_contextvars(run=run.events.labels)
        with labels, run.heartbeat.running():
            outcome = call_or(
                attempt.outcome, RUN_FAILED_IN_SERVICE, lambda: self._outcome_after_error(attempt, run.job.id)
            )
            # a cancel request after this line has no effect, because the outcome is decided
            if isinstance(outcome, Failed | Retry):  # the message can quote a row, a dataset or a training
                outcome = replace(outcome, message=escaped(outcome.message))
            if outcome is not None:
                journal.end(outcome)
            with error_boundary("dataset view cannot be removed"):
                attempt.clean_up()
            if outcome is None:
                log.warning("lease lost, abandoning run")
                journal.discard()
                return AttemptEnd(outcome=None, delivery=Delivery.LOST)
            run.events.log.note(f"outcome: {outcome.kind}")
            # the lease is renewed until the delivery of the outcome; after a shutdown, the next process delivers it
            with shutdown.extra_time(self._services.times.drain) as time_limit:
                return deliver(self._queue, journal, outcome, time_limit)

    def _outcome_after_error(self, attempt: Attempt, run_id: str) -> Outcome | None:
        """Return the outcome after an internal error of the service. The next attempt resumes from the checkpoints."""
        retry = self._retry_after_error(run_id)  # before the slots are released
        results: JsonObject = call_or(
            attempt.publish_unfinished, "artifacts not published, they stay on this host", dict
        )
        return replace(retry, results=results)

    def _give_up(self, journal: Journal, slots: AcquiredSlots, shutdown: StopSignal) -> AttemptEnd:
        """End a run after an internal error outside of the attempt. An outcome in the journal is kept."""
        slots.release()
        return self._end_after_error(journal, shutdown, RETRY_FOREVER)

    def _end_after_error(self, journal: Journal, stop: StopSignal, policy: RetryPolicy) -> AttemptEnd:
        retry = self._retry_after_error(journal.lease.job.id)
        outcome = journal.outcome or retry
        if journal.outcome is None:
            journal.end(outcome)
        return deliver(self._queue, journal, outcome, stop, policy)

    def _retry_after_error(self, run_id: str) -> Retry:
        """Return the outcome after an internal error. If the host has a problem, the run is not the cause of the error."""
        problem = self._services.health.record_service_failure(run_id, SERVICE_FAILED)
        message = f"{SERVICE_FAILED} {problem}" if problem else SERVICE_FAILED
        return Retry(message=message, host_failed=problem is not None)
