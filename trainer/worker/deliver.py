"""An ending reaches the queue, however long it takes: now, after an outage, or from the next process's start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeAlias

import structlog

from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Outcome, Verdict
from trainer.core.ports import Queue
from trainer.core.stop import Stopped, StopSignal
from trainer.remote.retry import RetryPolicy, retrying
from trainer.worker.bulkhead import bulkhead
from trainer.worker.journal import Journal
from trainer.worker.leftovers import leftovers, set_aside

log = structlog.get_logger()

FOR_EVER = RetryPolicy(tries=1_000_000, first_wait=0.5, longest_wait=30.0, total_seconds=float("inf"))

# ends the attempt of a process that died without writing its outcome, and writes it; raises what the queue raises
Recover: TypeAlias = Callable[[Journal, StopSignal], Outcome]


def deliver(
    queue: Queue, journal: Journal, outcome: Outcome, stop: StopSignal, policy: RetryPolicy = FOR_EVER,
) -> Verdict | None:
    """Tell the queue until it answers; then the journal is gone.

    None if `stop` came first, or the tries of `policy` were used up: the journal stays.
    """
    told: set[str] = set()

    def finish() -> Verdict:
        try:
            return queue.finish(journal.lease, outcome, journal.pending(limit=100_000))
        except (Unavailable, Misconfigured) as error:
            if str(error) not in told:
                told.add(str(error))
                log.warning("outcome not delivered yet, retrying", run_id=journal.lease.job.id, error=str(error))
            raise Unavailable(str(error)) from error

    try:
        verdict = retrying(finish, policy, stop)
    except (Stopped, Unavailable):
        return None
    _end(journal, verdict)
    return verdict


def deliver_leftovers(
    queue: Queue, folder: Path, worker_id: str, lease_seconds: float, recover: Recover, stop: StopSignal,
) -> None:
    """Deliver what processes before us could not: their endings, and those that `recover` decides for the others.

    Returns when all are delivered or `stop` is set. One that the queue refuses holds up none of the others.
    """
    told: set[str] = set()
    for again in count():
        with ExitStack() as opened:
            journals = [opened.enter_context(closing(journal)) for journal in leftovers(folder, worker_id, lease_seconds)]
            left = False
            for journal in sorted(journals, key=_needs_recovery):  # which takes a while
                with bulkhead("leftover journal cannot be delivered", partial(set_aside, journal.path, "see above")):
                    left |= not _delivered(queue, journal, recover, stop, told)
                if stop.must_stop:
                    return
        if not left or stop.wait(FOR_EVER.wait_before(again, None)):
            return


def _needs_recovery(journal: Journal) -> bool:
    return journal.ending is None


def _delivered(queue: Queue, journal: Journal, recover: Recover, stop: StopSignal, told: set[str]) -> bool:
    run_id, decided = journal.lease.job.id, journal.ending
    if journal.path.name not in told:
        log.info("recovering run of a crashed process", run_id=run_id, outcome=decided and decided.kind)
    try:
        outcome = decided or recover(journal, stop)
        verdict = queue.finish(journal.lease, outcome, journal.pending(limit=100_000))
    except (Unavailable, Misconfigured) as error:
        if journal.path.name not in told:
            log.warning("outcome not delivered yet, retrying", run_id=run_id, error=str(error))
        told.add(journal.path.name)
        return False
    _end(journal, verdict)
    return True


def _end(journal: Journal, verdict: Verdict) -> None:
    if verdict is Verdict.LOST:
        log.warning("outcome rejected: lease lost", run_id=journal.lease.job.id)
    journal.discard()
