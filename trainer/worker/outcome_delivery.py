"""Delivery of outcomes to the queue, with retries during an outage, and without the parts that the queue refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import structlog

from trainer.core.errors import Misconfigured, Refused, Unavailable
from trainer.core.job import Completed, Interrupted, Outcome, Status, Verdict
from trainer.core.ports import AttemptEnd, Delivery, Queue
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import Stopped, StopSignal
from trainer.worker.event_delivery import MOST_EVENTS, EventDelivery, first_batch
from trainer.worker.journal import Journal

log = structlog.get_logger()

RETRY_FOREVER = RetryPolicy(tries=1_000_000, first_wait=0.5, longest_wait=30.0, total_seconds=float("inf"))
ALL_EVENTS = 100_000  # maximum number of events that are sent with an outcome
MESSAGE_REFUSED = "The run ended, but the database refused the reason: see the worker's log."


def deliver(
    queue: Queue, journal: Journal, outcome: Outcome, stop: StopSignal, policy: RetryPolicy = RETRY_FOREVER
) -> AttemptEnd:
    """Send the outcome until the queue answers, then remove the journal.

    If `stop` is set first, or after the last retry of `policy`, the journal is kept for the next process.
    """
    logged: set[str] = set()

    def finish() -> Status | None:
        try:
            return send(queue, journal, outcome)
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


def send(queue: Queue, journal: Journal, outcome: Outcome) -> Status | None:
    """Send the outcome with the pending events, without the parts that the queue refuses.

    Return the new status, or None if the lease is lost. Raises the errors of the queue.
    """
    events = EventDelivery(queue.beat, journal)
    while len(first_batch(waiting := journal.pending(MOST_EVENTS + 1))) < len(waiting):
        if events.send() is Verdict.LOST:  # an outcome can still be accepted after the lease has expired
            break
    try:
        return queue.finish(journal.lease, outcome, journal.pending(ALL_EVENTS))
    except Refused as error:
        log.warning("outcome refused by the queue, sending less", run_id=journal.lease.job.id, error=str(error))
        refusal = error
    while journal.pending(limit=1) and events.send() is not Verdict.LOST:
        pass
    for smaller in _reduced(outcome):
        try:
            return queue.finish(journal.lease, smaller, [])
        except Refused as error:
            refusal = error
    raise refusal


def _reduced(outcome: Outcome) -> Iterator[Outcome]:
    """Yield the outcome, then smaller versions of it, the smallest last."""
    yield outcome
    results = outcome.results
    for name in results:
        kept = {key: value for key, value in results.items() if key != name}
        notes = results.get("notes") if name != "notes" else None
        note = f"`{name}` was left out, because the database refused it"
        yield replace(outcome, results={**kept, "notes": [*(notes if isinstance(notes, list) else []), note]})
    yield replace(outcome, results={})
    if isinstance(outcome, Completed):
        yield replace(outcome, trained_model_url=None)
        yield replace(outcome, results={}, trained_model_url=None)
    elif isinstance(outcome, Interrupted):
        yield replace(outcome, results={}, checkpoint=None)
    else:
        yield replace(outcome, message=MESSAGE_REFUSED)
        yield replace(outcome, results={}, message=MESSAGE_REFUSED)
