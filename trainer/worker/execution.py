"""One run, from lease to outcome. Read this file first, then attempt.py.

    claim ─▶ parse ─▶ prepare ─▶ train ─▶ publish ─▶ finish
                 ╰── a heartbeat holds the lease all the while ──╯

Whatever happens, the outcome is written to the journal before the queue hears of it, and told to the queue until it
answers. The one exception is a lost lease: then nothing is written at all. A process that dies leaves its journal, and
the next one continues after "train" (`recover`).
"""

from __future__ import annotations

from contextlib import closing
from functools import partial

import structlog

from trainer.core.job import Canceled, JsonObject, Lease, Outcome, Retry, Status, Verdict
from trainer.core.ports import Queue, Reporter
from trainer.core.progress import Progress
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopReason, StopSignal
from trainer.worker.artifacts import ONE_TRY, Artifacts
from trainer.worker.attempt import Attempt
from trainer.worker.bulkhead import bulkhead
from trainer.worker.event_sink import Record, RunLog
from trainer.worker.journal import Journal
from trainer.worker.lease import Heartbeat, LeaseTimes, kept_alive
from trainer.worker.liveness import Pulse
from trainer.worker.outcome_delivery import FOR_EVER, deliver
from trainer.worker.publish import Publisher
from trainer.worker.slots import SlotLoan
from trainer.worker.workshop import Workshop

log = structlog.get_logger()

SERVICE_FAILED = "The service failed on this run; see the worker's log."
ORPHANED = "The worker stopped without warning while it worked on this run (a crash, a kill or a reboot)."
MOST_RECOVERIES = 3  # of one attempt; each one renews the lease, so the queue alone would never count it as lost


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
        with (
            closing(Journal.create(self._workshop.folders.journals, lease)) as journal,
            bulkhead("the run failed in the service itself", lambda: self._give_up(journal, slot, shutdown)),
        ):
            self._run(journal, slot, shutdown)
        if not shutdown.must_stop:
            self._workshop.uploaded.settle(lease.job.id)

    def give_back(self, lease: Lease, stop: StopSignal) -> None:
        """Give back a run that this process cannot begin. The queue is told once, and again by the next process."""
        with closing(Journal.create(self._workshop.folders.journals, lease)) as journal:
            self._end(journal, stop, ONE_TRY)

    def recover(self, journal: Journal, shutdown: StopSignal) -> Outcome:
        """End the attempt of a process that died: publish what it made, and write its outcome to its journal.

        Raises Unavailable or Misconfigured while the queue does not say who has the run now.
        """
        stop, results = shutdown.child(), JsonObject()
        verdict = self._queue.beat(journal.lease, None, [])
        if verdict is Verdict.CANCEL:
            stop.set(StopReason.CANCELED)
        if verdict is not Verdict.LOST and journal.recoveries < MOST_RECOVERIES:
            journal.begin_recovery()
            with bulkhead("artifacts were not published, they stay on this host"):
                results = self._left_behind(journal, stop)
        is_canceled = stop.reason is StopReason.CANCELED
        outcome = Canceled(results=results) if is_canceled else Retry(message=ORPHANED, results=results)
        journal.end(outcome)
        return outcome

    def _left_behind(self, journal: Journal, stop: StopSignal) -> JsonObject:
        """Publish what is in the run folder under the lease of the dead process, as the process itself would have."""
        lease, shop = journal.lease, self._workshop
        job, folder = lease.job, shop.folders.folder(lease.job)
        if folder.path.is_symlink() or not folder.path.is_dir():
            return {}
        run_log = RunLog(folder.log, timestamps=self._timestamp_output)
        record = Record(job, journal, Progress(), run_log, self._reporter)
        # the row keeps what it says of the training's progress
        heartbeat = Heartbeat(self._queue, lease, journal, stop, self._lease_times, dict, self._pulse)
        publisher = Publisher(shop.store, shop.artifacts_bucket, job)
        artifacts = Artifacts(publisher, record, heartbeat, stop, shop.times.upload)
        with shop.folders.in_use(job), closing(run_log), kept_alive(heartbeat, job.id):
            run_log.note(ORPHANED)
            return artifacts.left_behind(folder.path, job.attempt, is_last=stop.reason is StopReason.CANCELED)

    def _run(self, journal: Journal, slot: SlotLoan, shutdown: StopSignal) -> None:
        lease, shop = journal.lease, self._workshop
        if lease.job.checkpoint and lease.job.checkpoint.key:
            shop.uploaded.note(lease.job.id, lease.job.checkpoint.key)  # its worker may be gone for good
        with shop.folders.in_use(lease.job):
            shop.folders.remove_obstacles(lease.job)
            self._attempted(journal, slot, shutdown)

    def _attempted(self, journal: Journal, slot: SlotLoan, shutdown: StopSignal) -> None:
        lease, folders, stop = journal.lease, self._workshop.folders, shutdown.child()
        job, progress = lease.job, Progress()
        run_log = RunLog(folders.folder(job).log, timestamps=self._timestamp_output)
        record = Record(job, journal, progress, run_log, self._reporter)
        with closing(run_log), structlog.contextvars.bound_contextvars(run=record.labels):
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
                    end = deliver(self._queue, journal, outcome, patience)
            if end.status in (Status.COMPLETED, Status.CANCELED):
                with bulkhead("what is left of an ended run could not be removed"):
                    folders.remove_checkpoints(job.id)

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

    def _give_up(self, journal: Journal, slot: SlotLoan, shutdown: StopSignal) -> None:
        """After an error of our own around the attempt: the run goes back, unless its ending is decided already."""
        slot.give_back()
        self._end(journal, shutdown, FOR_EVER)

    def _end(self, journal: Journal, stop: StopSignal, policy: RetryPolicy) -> None:
        self._workshop.health.suspect(journal.lease.job.id, SERVICE_FAILED)
        if journal.ending is None:
            journal.end(Retry(message=SERVICE_FAILED))
        assert journal.ending is not None
        deliver(self._queue, journal, journal.ending, stop, policy)
