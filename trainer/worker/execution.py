"""One run, from lease to outcome. Read this file first, then attempt.py.

    claim ─▶ parse ─▶ prepare ─▶ train ─▶ publish ─▶ finish
                 ╰── a heartbeat holds the lease all the while ──╯

Whatever happens, the outcome is written to the journal before the queue hears of it, and told to the queue until it
answers. The one exception is a lost lease: then nothing is written at all.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial

import structlog

from trainer.core.job import Canceled, Completed, JsonObject, Lease, Outcome, Retry, Verdict
from trainer.core.ports import Queue, Reporter
from trainer.core.progress import Progress
from trainer.core.stop import StopSignal
from trainer.worker.attempt import Attempt
from trainer.worker.bulkhead import bulkhead
from trainer.worker.deliver import deliver
from trainer.worker.journal import Journal
from trainer.worker.lease import Heartbeat, LeaseTimes, kept_alive
from trainer.worker.pulse import Pulse
from trainer.worker.record import Record, RunLog
from trainer.worker.slots import SlotLoan
from trainer.worker.workshop import Workshop

log = structlog.get_logger()

SERVICE_FAILED = "The service failed on this run; see the worker's log."


class Execution:
    """Executes runs. One object serves all slots; everything about one run is in its `Attempt`."""

    def __init__(
        self,
        *,
        queue: Queue,
        workshop: Workshop,
        reporter: Reporter,
        lease_times: LeaseTimes,
        pulse: Pulse,
        timestamp_output: bool,
    ) -> None:
        self._queue = queue
        self._workshop = workshop
        self._reporter = reporter
        self._lease_times = lease_times
        self._pulse = pulse
        self._timestamp_output = timestamp_output

    def run(self, lease: Lease, slot: SlotLoan, shutdown: StopSignal) -> None:
        """Work on the run until it is over, one way or another."""
        uploaded, inherited = self._workshop.uploaded, lease.job.checkpoint
        if inherited and inherited.key:
            uploaded.note(lease.job.id, inherited.key)  # its worker may be gone for good
        with self._workshop.places.in_use(lease.job):
            self._run(lease, slot, shutdown)
        if not shutdown.must_stop:
            uploaded.settle(lease.job.id)

    def _run(self, lease: Lease, slot: SlotLoan, shutdown: StopSignal) -> None:
        job, places, stop = lease.job, self._workshop.places, shutdown.child()
        journal = Journal.create(places.journals, lease)
        run_log = RunLog(places.run_dir(job) / "run.log", timestamps=self._timestamp_output)
        progress = Progress()
        record = Record(job, journal, progress, run_log, self._reporter)
        with closing(journal), closing(run_log), structlog.contextvars.bound_contextvars(run=record.labels):
            heartbeat = Heartbeat(self._queue, lease, journal, stop, self._lease_times, progress.as_json, self._pulse)
            attempt = Attempt(self._workshop, job, slot, stop, record, progress, heartbeat)
            self._reporter.started(job)
            with kept_alive(heartbeat, job.id):
                outcome = self._outcome(attempt, job.id)
                # decided now: a cancel that is heard of after this line came too late to undo a finished model
                if outcome is not None:
                    journal.end(outcome)
                with bulkhead("the run's view could not be removed"):
                    attempt.clean_up()
                if outcome is None:
                    log.warning("the run belongs to somebody else now; nothing is written for it", run_id=job.id)
                    journal.discard()
                    return
                run_log.note(f"outcome: {outcome.kind}")
                self._reporter.ended(job, outcome)
                # the lease is held until the ending is delivered; only a shutdown leaves that to the next process
                with shutdown.borrowed_time(self._workshop.times.drain) as patience:
                    verdict = deliver(self._queue, journal, outcome, patience)
            if verdict is Verdict.OK and isinstance(outcome, Completed | Canceled):
                with bulkhead("what is left of an ended run could not be removed"):
                    places.forget_training(job.id)

    def _outcome(self, attempt: Attempt, run_id: str) -> Outcome | None:
        """The attempt's outcome; an error of our own in it costs this attempt, and nothing of what it has trained."""
        ended: list[Outcome | None] = []
        suspect = partial(self._workshop.health.suspect, run_id, SERVICE_FAILED)
        with bulkhead("the run failed in the service itself", suspect):
            ended.append(attempt.outcome())
        if ended:
            return ended[0]
        results: JsonObject = {}
        with bulkhead("artifacts were not published, they stay on this host"):
            results = attempt.salvage()
        return Retry(message=SERVICE_FAILED, results=results)
