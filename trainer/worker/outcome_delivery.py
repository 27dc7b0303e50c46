"""Delivery of outcomes to the queue: now, after an outage, or by the next process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from typing import Protocol

import structlog

from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Outcome, Status
from trainer.core.ports import AttemptEnd, Delivery, Queue
from trainer.core.retry import RetryPolicy, retrying
from trainer.core.stop import Stopped, StopSignal
from trainer.worker.error_boundary import error_boundary
from trainer.worker.journal import Journal
from trainer.worker.orphaned_journals import set_aside

log = structlog.get_logger()

RETRY_FOREVER = RetryPolicy(tries=1_000_000, first_wait=0.5, longest_wait=30.0, total_seconds=float("inf"))
ALL_EVENTS = 100_000  # sent with an outcome


class Recovers(Protocol):
    """Ends the attempt of a crashed process: see recovery.py."""

    def recover(self, journal: Journal, shutdown: StopSignal) -> Outcome: ...

    def report_end(self, journal: Journal, end: AttemptEnd) -> None: ...


def deliver(
    queue: Queue, journal: Journal, outcome: Outcome, stop: StopSignal, policy: RetryPolicy = RETRY_FOREVER
) -> AttemptEnd:
    """Send the outcome until the queue answers, then remove the journal.

    If `stop` is set first or `policy` gives up, the journal stays, and the next process delivers the outcome.
    """
    logged: set[str] = set()

    def finish() -> Status | None:
        try:
            return queue.finish(journal.lease, outcome, journal.pending(ALL_EVENTS))
        except (Unavailable, Misconfigured) as error:
            if str(error) not in logged:
                logged.add(str(error))
                log.warning("outcome not delivered yet, retrying", run_id=journal.lease.job.id, error=str(error))
            raise Unavailable(str(error)) from error

    try:
        status = retrying(finish, policy, stop)
    except (Stopped, Unavailable):
        return AttemptEnd(outcome=outcome, delivery=Delivery.PENDING)
    return _delivered(journal, outcome, status)


class OrphanDelivery:
    """Delivers the outcomes that earlier processes could not deliver, and recovers the runs that have none.

    `orphans` yields the journals that no process holds, and locks them.
    """

    def __init__(self, queue: Queue, orphans: Callable[[], Iterator[Journal]], recovery: Recovers) -> None:
        self._queue = queue
        self._orphans = orphans
        self._recovery = recovery
        self._logged: set[str] = set()
        self._undelivered: list[str] = []

    def run(self, stop: StopSignal) -> None:
        """Return when every outcome is delivered, or soon after `stop` is set.

        An outcome that the queue rejects does not delay the others. Recoveries run at the same time, because each takes
        a while and their leases expire soon.
        """
        recoveries: list[threading.Thread] = []
        for again in count():
            self._undelivered.clear()
            # a journal that a recovery has locked is not an orphan now
            for journal in sorted(self._orphans(), key=_needs_recovery):
                if stop.must_stop:
                    journal.close()
                elif _needs_recovery(journal):
                    thread = threading.Thread(target=self._attend, args=(journal, stop), name="recovery", daemon=True)
                    recoveries.append(thread)
                    thread.start()
                else:
                    self._attend(journal, stop)
            if not self._undelivered:
                _join(recoveries)
            if not self._undelivered or stop.wait(RETRY_FOREVER.wait_before(again, None)):
                break
        _join(recoveries)

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
        elif not failed:  # noted after the journal is closed, so that the next round can lock it
            self._undelivered.append(journal.path.name)

    def _deliver(self, journal: Journal, stop: StopSignal) -> AttemptEnd | None:
        """Send the outcome once. Return None if the queue does not answer."""
        name, run_id, known = journal.path.name, journal.lease.job.id, journal.outcome
        if name not in self._logged:
            log.info("recovering run of a crashed process", run_id=run_id, outcome=known and known.kind)
        try:
            outcome = known or self._recovery.recover(journal, stop)
            status = self._queue.finish(journal.lease, outcome, journal.pending(ALL_EVENTS))
        except (Unavailable, Misconfigured) as error:
            if name not in self._logged:
                log.warning("outcome not delivered yet, retrying", run_id=run_id, error=str(error))
            self._logged.add(name)
            return None
        return _delivered(journal, outcome, status)


def _join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()


def _needs_recovery(journal: Journal) -> bool:
    return journal.outcome is None


def _delivered(journal: Journal, outcome: Outcome, status: Status | None) -> AttemptEnd:
    if status is None:
        log.warning("outcome rejected: lease lost", run_id=journal.lease.job.id)
    journal.discard()
    return AttemptEnd(outcome=outcome, delivery=Delivery.ACCEPTED if status else Delivery.LOST, status=status)
