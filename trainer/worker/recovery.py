"""Recovery of runs whose process crashed: publish what the attempt made, then queue the run again."""

from __future__ import annotations

from trainer.core.job import Canceled, JsonObject, Outcome, Retry, Verdict
from trainer.core.ports import AttemptEnd
from trainer.core.stop import StopReason, StopSignal
from trainer.worker.error_boundary import call_or
from trainer.worker.execution import RunHost
from trainer.worker.journal import Journal
from trainer.worker.lease import kept_alive
from trainer.worker.publish import Publisher

ORPHANED = "The worker stopped without warning during this run (a crash, a kill or a reboot)."
MOST_RECOVERIES = 3  # of one attempt; each one renews the lease, so the queue would never count the attempt as lost


class Recovery:
    """Ends the attempts of processes that crashed."""

    def __init__(self, host: RunHost) -> None:
        self._host = host

    def recover(self, journal: Journal, shutdown: StopSignal) -> Outcome:
        """Decide the outcome of an attempt whose process crashed, and write it to the journal.

        Its artifacts are published while the lease is renewed, as far as the run still belongs to this worker. Raises
        what the queue raises.
        """
        stop, results = shutdown.child(), JsonObject()
        verdict = self._host.queue.beat(journal.lease, None, [])
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
        """Tell the reporters how the attempt ended. The journal has no request, so `job.request` is empty."""
        self._host.reporter_for(journal.lease.job).ended(journal.lease.job, end)

    def _publish(self, journal: Journal, stop: StopSignal) -> JsonObject:
        """Publish what is in the run folder, under the lease of the crashed process. Return the results."""
        host, job = self._host, journal.lease.job
        folder = host.services.folders.folder(job)
        if folder.path.is_symlink() or not folder.path.is_dir():
            return {}
        # the row keeps the progress that the crashed process reported
        opened = host.open_run(journal, stop, host.reporter_for(job), sends_progress=False)
        with host.services.folders.in_use(job), opened as run, kept_alive(run.heartbeat, job.id):
            run.events.note(ORPHANED)
            is_last = stop.reason is StopReason.CANCELED
            return Publisher(host.services, run).publish_unfinished(folder, is_last=is_last)
