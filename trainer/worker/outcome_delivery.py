"""Delivery of outcomes to the queue, with retries during an outage."""

from __future__ import annotations

import structlog

from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Outcome, Status
from trainer.core.ports import AttemptEnd, Delivery, Queue
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import Stopped, StopSignal
from trainer.worker import refused_parts
from trainer.worker.journal import Journal

log = structlog.get_logger()

RETRY_FOREVER = RetryPolicy(tries=1_000_000, first_wait=0.5, longest_wait=30.0, total_seconds=float("inf"))


def deliver(
    queue: Queue, journal: Journal, outcome: Outcome, stop: StopSignal, policy: RetryPolicy = RETRY_FOREVER
) -> AttemptEnd:
    """Send the outcome until the queue answers, then remove the journal.

    If `stop` is set first, or after the last retry of `policy`, the journal is kept for the next process.
    """
    logged: set[str] = set()

    def finish() -> Status | None:
        try:
            return refused_parts.finish(queue, journal, outcome)
        except (Unavailable, Misconfigured) as error:
            if str(error) not in logged:
                logged.add(str(error))
                log.warning("outcome not delivered yet, retrying", run_id=journal.lease.job.id, error=str(error))
            raise Unavailable(str(error)) from error

    try:
        status = retrying(finish, policy, stop)
    except (Stopped, Unavailable):
        return AttemptEnd(outcome=outcome, delivery=Delivery.PENDING)
    return delivered(journal, outcome, status)


def delivered(journal: Journal, outcome: Outcome, status: Status | None) -> AttemptEnd:
    """Remove the journal after the answer of the queue. `status` is None if the lease is lost."""
    if status is None:
        log.warning("outcome rejected: lease lost", run_id=journal.lease.job.id)
    journal.discard()
    return AttemptEnd(outcome=outcome, delivery=Delivery.ACCEPTED if status else Delivery.LOST, status=status)
