"""An ending reaches the queue, however long it takes: now, after an outage, or from the next process's start."""

from __future__ import annotations

from pathlib import Path

import structlog

from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Outcome, Retry, Verdict
from trainer.core.ports import Queue
from trainer.core.stop import Stopped, StopSignal
from trainer.remote.retry import RetryPolicy, retrying
from trainer.worker.journal import Journal, leftovers

log = structlog.get_logger()

FOR_EVER = RetryPolicy(tries=1_000_000, first_wait=0.5, longest_wait=30.0, total_seconds=float("inf"))

ORPHANED = "The worker stopped without warning while it worked on this run (a crash, a kill or a reboot)."


def deliver(queue: Queue, journal: Journal, outcome: Outcome, stop: StopSignal) -> Verdict | None:
    """Tell the queue until it answers; then the journal is gone. None if `stop` came first: the journal stays."""
    told: set[str] = set()

    def finish() -> Verdict:
        try:
            return queue.finish(journal.lease, outcome, journal.pending(limit=100_000))
        except (Unavailable, Misconfigured) as error:
            if str(error) not in told:
                told.add(str(error))
                log.warning("the ending waits for the queue", run_id=journal.lease.job.id, error=str(error))
            raise Unavailable(str(error)) from error

    try:
        verdict = retrying(finish, FOR_EVER, stop)
    except Stopped:
        return None
    if verdict is Verdict.LOST:
        log.warning("the ending came too late: the run belongs to somebody else", run_id=journal.lease.job.id)
    journal.discard()
    return verdict


def deliver_leftovers(queue: Queue, folder: Path, worker_id: str, lease_seconds: float, stop: StopSignal) -> None:
    """Deliver what processes before us could not: their endings, and for runs without one that they are orphans."""
    for journal in leftovers(folder, worker_id, lease_seconds):
        outcome = journal.ending or Retry(message=ORPHANED)
        log.info("an earlier process left a run behind", run_id=journal.lease.job.id, outcome=outcome.kind)
        if deliver(queue, journal, outcome, stop) is None:
            journal.close()
            return
