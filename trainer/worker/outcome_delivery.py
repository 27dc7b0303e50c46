"""An ending reaches the queue, however long it takes: now, after an outage, or from the next process's start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeAlias

import structlog

from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Outcome, Status
from trainer.core.ports import AttemptEnd, Delivery, Queue
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import Stopped, StopSignal
from trainer.worker.bulkhead import bulkhead
from trainer.worker.journal import Journal
from trainer.worker.leftovers import leftovers, set_aside

log = structlog.get_logger()

FOR_EVER = RetryPolicy(tries=1_000_000, first_wait=0.5, longest_wait=30.0, total_seconds=float("inf"))

# ends the attempt of a process that died without writing its outcome, and writes it; raises what the queue raises
Recover: TypeAlias = Callable[[Journal, StopSignal], Outcome]


def deliver(
    queue: Queue,
    journal: Journal,
    outcome: Outcome,
    stop: StopSignal,
    policy: RetryPolicy = FOR_EVER,
) -> AttemptEnd:
    """Send the outcome until the queue answers, then remove the journal.

    If `stop` is set first or `policy` gives up, the journal stays, and the next process delivers the outcome.
    """
    told: set[str] = set()

    def finish() -> Status | None:
        try:
            return queue.finish(journal.lease, outcome, journal.pending(limit=100_000))
        except (Unavailable, Misconfigured) as error:
            if str(error) not in told:
                told.add(str(error))
                log.warning("outcome not delivered yet, retrying", run_id=journal.lease.job.id, error=str(error))
            raise Unavailable(str(error)) from error

    try:
        status = retrying(finish, policy, stop)
    except (Stopped, Unavailable):
        return AttemptEnd(outcome=outcome, delivery=Delivery.PENDING)
    _end(journal, status)
    return AttemptEnd(outcome=outcome, delivery=Delivery.ACCEPTED if status else Delivery.LOST, status=status)


def deliver_leftovers(
    queue: Queue,
    folder: Path,
    worker_id: str,
    lease_seconds: float,
    recover: Recover,
    stop: StopSignal,
) -> None:
    """Deliver what processes before us could not: their endings, and those that `recover` decides for the others.

    Returns when all are delivered, or soon after `stop` is set. One that the queue refuses holds up none of the others,
    and neither does a recovery: it takes a while, and the leases of all of them end soon.
    """
    told: set[str] = set()
    undelivered: list[str] = []
    recoveries: list[threading.Thread] = []

    def attend(journal: Journal) -> None:
        is_over = True
        with (
            closing(journal),
            bulkhead("leftover journal cannot be delivered", partial(set_aside, journal.path, "see above")),
        ):
            is_over = _delivered(queue, journal, recover, stop, told)
        if not is_over:  # noted when it is closed, so that the next round finds it
            undelivered.append(journal.path.name)

    for again in count():
        undelivered.clear()
        # without those that a recovery has locked
        for journal in sorted(leftovers(folder, worker_id, lease_seconds), key=_needs_recovery):
            if stop.must_stop:
                journal.close()
            elif _needs_recovery(journal):
                recoveries.append(threading.Thread(target=attend, args=(journal,), name="recovery", daemon=True))
                recoveries[-1].start()
            else:
                attend(journal)
        if not undelivered:
            _join(recoveries)
        if not undelivered or stop.wait(FOR_EVER.wait_before(again, None)):
            break
    _join(recoveries)


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def _needs_recovery(journal: Journal) -> bool:
    return journal.ending is None


def _delivered(queue: Queue, journal: Journal, recover: Recover, stop: StopSignal, told: set[str]) -> bool:
    run_id, decided = journal.lease.job.id, journal.ending
    if journal.path.name not in told:
        log.info("recovering run of a crashed process", run_id=run_id, outcome=decided and decided.kind)
    try:
        outcome = decided or recover(journal, stop)
        status = queue.finish(journal.lease, outcome, journal.pending(limit=100_000))
    except (Unavailable, Misconfigured) as error:
        if journal.path.name not in told:
            log.warning("outcome not delivered yet, retrying", run_id=run_id, error=str(error))
        told.add(journal.path.name)
        return False
    _end(journal, status)
    return True


def _end(journal: Journal, status: Status | None) -> None:
    if status is None:
        log.warning("outcome rejected: lease lost", run_id=journal.lease.job.id)
    journal.discard()
