"""Recovery of runs whose process crashed: deliver the outcome, or publish the existing files and requeue the run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import structlog

from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Canceled, JsonObject, Outcome, Retry, Verdict
from trainer.core.ports import AttemptEnd, Queue, Reporter
from trainer.core.stop import StopReason, StopSignal
from trainer.worker.error_boundary import call_or, error_boundary
from trainer.worker.execution import RunHost
from trainer.worker.folder_owner import belongs_to
from trainer.worker.journal import Journal
from trainer.worker.orphaned_journals import set_aside
from trainer.worker.outcome_delivery import RETRY_FOREVER, delivered, send
from trainer.worker.publish import Publisher

log = structlog.get_logger()

ORPHANED = "The worker stopped without warning during this run (a crash, a kill or a reboot)."
MOST_RECOVERIES = 3  # per attempt: each recovery renews the lease, so without a limit the lease would never expire


class Recovery:
    """Ends the attempts of processes that crashed."""

    def __init__(self, host: RunHost) -> None:
        self._host = host
        self._reporters: dict[Path, Reporter] = {}  # journal → the reporter of its run, until the end is reported

    def recover(self, journal: Journal, shutdown: StopSignal) -> Outcome:
        """Decide the outcome of an attempt whose process crashed, and write it to the journal.

        If this worker still holds the lease, the artifacts are published while the lease is renewed.
        Raises the errors of the queue.
        """
        stop, results = shutdown.child(), JsonObject()
        verdict = self._host.beat(journal.lease, None, [])
        if verdict is Verdict.CANCEL:
            stop.set(StopReason.CANCELED)
        if verdict is not Verdict.LOST and journal.recoveries < MOST_RECOVERIES:
            journal.begin_recovery()
            failed = "artifacts not published, they stay on this host"
            results = call_or(lambda: self._publish(journal, stop), failed, JsonObject)
        is_canceled = stop.reason is StopReason.CANCELED
        outcome = Canceled(results=results) if is_canceled else Retry(message=ORPHANED, results=results)
        journal.end(outcome)
        return outcome

    def report_end(self, journal: Journal, end: AttemptEnd) -> None:
        """Report the end of the attempt to the reporters. The journal has no request, so `job.request` is empty."""
        reporter = self._reporter(journal)
        del self._reporters[journal.path]
        reporter.ended(journal.lease.job, end)

    def _reporter(self, journal: Journal) -> Reporter:
        """Return the reporter of the run, always the same object, because a new reporter can start a thread."""
        if journal.path not in self._reporters:
            self._reporters[journal.path] = self._host.reporter_for(journal.lease.job)
        return self._reporters[journal.path]

    def _publish(self, journal: Journal, stop: StopSignal) -> JsonObject:
        """Publish the files of the run folder under the lease of the crashed process. Return the results."""
        host, job = self._host, journal.lease.job
        folder = host.services.folders.folder(job)
        if not belongs_to(folder, job):
            return {}
        # the row keeps the progress that the crashed process reported
        opened = host.open_run(journal, stop, self._reporter(journal), sends_progress=False)
        with host.services.folders.in_use(job), opened as run, run.heartbeat.running():
            run.events.log.note(ORPHANED)
            is_last = stop.reason is StopReason.CANCELED
            return Publisher(host.services, run).publish_unfinished(folder, is_last=is_last)


class OrphanDelivery:
    """Delivers the outcomes of earlier processes, and recovers the runs without an outcome.

    `orphans` locks and yields the orphaned journals.
    """

    def __init__(self, queue: Queue, orphans: Callable[[], Iterator[Journal]], recovery: Recovery) -> None:
        self._queue = queue
        self._orphans = orphans
        self._recovery = recovery
        self._logged: set[str] = set()
        self._undelivered: list[str] = []

    def run(self, stop: StopSignal) -> None:
        """Deliver every outcome, with retries until `stop` is set.

        If one outcome cannot be delivered, the other outcomes are still delivered. Recoveries run in parallel, because
        a recovery is slow and the leases of the runs expire soon.
        """
        recoveries: list[threading.Thread] = []
        for again in count():
            self._undelivered.clear()
            # a journal that is locked by a recovery is not yielded again
            for journal in sorted(self._orphans(), key=lambda journal: journal.outcome is None):
                if stop.must_stop:
                    journal.close()
                elif journal.outcome is None:
                    thread = threading.Thread(target=self._attend, args=(journal, stop), name="recovery", daemon=True)
                    recoveries.append(thread)
                    thread.start()
                else:
                    self._attend(journal, stop)
            if not self._undelivered:
                for thread in recoveries:
                    thread.join()
            if not self._undelivered or stop.wait(RETRY_FOREVER.wait_before(again, None)):
                break
        for thread in recoveries:
            thread.join()

    def _attend(self, journal: Journal, stop: StopSignal) -> None:
        end: AttemptEnd | None = None
        failed = False

        def set_journal_aside() -> None:
            nonlocal failed
            failed = True
            set_aside(journal.path, "see the error above")

        with closing(journal), error_boundary("orphaned journal cannot be delivered", set_journal_aside):
            end = self._deliver(journal, stop)
        if end is not None:
            with error_boundary("end of a recovered run cannot be reported"):
                self._recovery.report_end(journal, end)
        elif not failed:  # appended after the journal is closed, so that the next iteration can lock it
            self._undelivered.append(journal.path.name)

    def _deliver(self, journal: Journal, stop: StopSignal) -> AttemptEnd | None:
        """Send the outcome once. Return None if the queue does not answer."""
        name, run_id, known = journal.path.name, journal.lease.job.id, journal.outcome
        if name not in self._logged:
            log.info("recovering run of a crashed process", run_id=run_id, outcome=known and known.kind)
        try:
            outcome = known or self._recovery.recover(journal, stop)
            status = send(self._queue, journal, outcome)
        except (Unavailable, Misconfigured) as error:
            if name not in self._logged:
                log.warning("outcome not delivered yet, retrying", run_id=run_id, error=str(error))
            self._logged.add(name)
            return None
        return delivered(journal, outcome, status)
