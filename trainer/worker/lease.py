"""Keeping a lease: one thread beats while the run works, and brings back what the queue has to say."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import structlog

from trainer.core.boottime import boottime
from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import JsonObject, Lease, Verdict
from trainer.core.ports import Queue
from trainer.core.stop import StopReason, StopSignal
from trainer.worker.journal import Journal
from trainer.worker.liveness import Pulse

log = structlog.get_logger()

STOP_FOR = {
    Verdict.CANCEL: StopReason.CANCELED,
    Verdict.FINISH: StopReason.FINISH,
    Verdict.LOST: StopReason.LOST,
}


@dataclass(frozen=True, kw_only=True)
class LeaseTimes:
    """All in seconds: how often to beat, how often to send progress along, how long a lease lasts."""

    beat: float
    progress: float
    lease: float


class Heartbeat:
    """The beating of one lease.

    While the queue cannot be reached the training goes on: nobody can tell us that we lost the run, and the claim id
    keeps whatever we send afterwards harmless. Only the queue's word (`LOST`), or the death of this thread, ends it.
    """

    def __init__(
        self,
        queue: Queue,
        lease: Lease,
        journal: Journal,
        stop: StopSignal,
        times: LeaseTimes,
        progress: Callable[[], JsonObject],
        pulse: Pulse,
    ) -> None:
        self._queue = queue
        self._lease = lease
        self._journal = journal
        self._stop = stop
        self._times = times
        self._progress = progress
        self._pulse = pulse
        self._trusted_until = lease.trusted_until
        self._next_progress = 0.0
        self._unreachable_since: float | None = None
        self._over = threading.Event()

    def confirm(self, stop: StopSignal) -> None:
        """Before something is written elsewhere: if the lease may have run out while this process did not run (a
        suspended machine, SIGSTOP), wait for the queue's word on whose run it is. Raises `Stopped` when it is lost.

        With a queue that does not answer there is nothing to wait for, and the attempt's own prefix in the bucket is
        nobody else's.
        """
        while boottime() > self._trusted_until and self._unreachable_since is None and not stop.must_stop:
            stop.wait(0.05)
        stop.raise_if_set()

    def end(self) -> None:
        self._over.set()

    def followed(self) -> AbstractContextManager[None]:
        """Expect beats while the block runs."""
        return self._pulse.following(self._lease.claim_id)

    def run(self) -> None:
        """Beat until `end` is called or the lease is lost. If it ends in any other way, the run is stopped."""
        ended_well = False
        try:
            while not self._over.is_set():
                self._pulse.mark(self._lease.claim_id)
                self._beat()
                if self._stop.reason is StopReason.LOST:
                    break
                self._over.wait(0 if self._behind() else self._times.beat)
            ended_well = True
        finally:
            if not ended_well:
                self._stop.set(StopReason.LOST)

    def _behind(self) -> bool:
        return self._unreachable_since is None and bool(self._journal.pending(limit=1))

    def _beat(self) -> None:
        asked = boottime()  # before the request: the database's lease runs at least as long from here
        events = self._journal.pending()
        progress = self._progress() if events or asked >= self._next_progress else None
        try:
            verdict = self._queue.beat(self._lease, progress, events)
        except (Unavailable, Misconfigured) as error:
            self._note_outage(asked, error)
            return
        self._note_recovery(asked)
        if verdict is not Verdict.LOST:
            self._trusted_until = asked + self._times.lease
            self._journal.delivered(events)
        if progress is not None:
            self._next_progress = asked + self._times.progress
        if verdict in STOP_FOR:
            self._stop.set(STOP_FOR[verdict])

    def _note_outage(self, now: float, error: Exception) -> None:
        if self._unreachable_since is None:
            self._unreachable_since = now
            log.warning("the queue does not answer; the run goes on", error=str(error))

    def _note_recovery(self, now: float) -> None:
        if self._unreachable_since is not None:
            log.info("the queue answers again", after_seconds=round(now - self._unreachable_since, 1))
            self._unreachable_since = None


@contextmanager
def kept_alive(heartbeat: Heartbeat, name: str) -> Iterator[Heartbeat]:
    """Beat in a thread for as long as the block runs."""
    in_context = contextvars.copy_context().run  # the log's labels
    thread = threading.Thread(target=in_context, args=(heartbeat.run,), name=f"beat-{name}", daemon=True)
    with heartbeat.followed():
        thread.start()
        try:
            yield heartbeat
        finally:
            heartbeat.end()
            thread.join()
