"""Renewal of a lease: a thread sends heartbeats while the run is executed, and handles the answers of the queue."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import structlog

from trainer.core.boottime import boottime
from trainer.core.errors import Misconfigured, Unavailable
from trainer.core.job import Beat, JsonObject, Verdict
from trainer.core.stop import StopReason, StopSignal
from trainer.worker.journal import Journal
from trainer.worker.liveness import Liveness

log = structlog.get_logger()

STOP_FOR = {
    Verdict.CANCEL: StopReason.CANCELED,
    Verdict.FINISH: StopReason.FINISH,
    Verdict.LOST: StopReason.LOST,
}


@dataclass(frozen=True, kw_only=True)
class LeaseTimes:
    """Interval of heartbeats, interval of heartbeats with progress, and duration of a lease, in seconds."""

    beat: float
    progress: float
    lease: float


class Heartbeat:
    """Renews one lease and delivers its events.

    While the queue is unavailable, the training continues, because the fencing token rejects late writes. The run stops
    after the answers CANCEL, FINISH and LOST, and after an unexpected error in the heartbeat thread.
    """

    def __init__(
        self,
        beat: Beat,
        journal: Journal,
        stop: StopSignal,
        times: LeaseTimes,
        progress: Callable[[], JsonObject],
        liveness: Liveness,
    ) -> None:
        self._send = beat
        self._lease = journal.lease
        self._journal = journal
        self._stop = stop
        self._times = times
        self._progress = progress
        self._liveness = liveness
        self._trusted_until = journal.lease.trusted_until
        self._next_progress = 0.0
        self._unreachable_since: float | None = None
        self._over = threading.Event()

    def confirm(self, stop: StopSignal) -> None:
        """Wait until the lease is confirmed. Call this method before a write to the bucket. Raises `Stopped`.

        The lease can expire while this process is suspended (a suspended machine, SIGSTOP). This method does not wait
        while the queue is unavailable, because no other attempt writes to the prefix of this attempt.
        """
        while boottime() > self._trusted_until and self._unreachable_since is None and not stop.must_stop:
            stop.wait(0.05)
        stop.raise_if_set()

    def end(self) -> None:
        """Stop the heartbeats."""
        self._over.set()

    def followed(self) -> AbstractContextManager[None]:
        """Expect heartbeats while the block runs."""
        return self._liveness.watching(self._lease.claim_id)

    def run(self) -> None:
        """Send heartbeats until `end` is called or the lease is lost. An unexpected error stops the run."""
        is_complete = False
        try:
            while not self._over.is_set():
                self._liveness.mark(self._lease.claim_id)
                self._beat()
                if self._stop.reason is StopReason.LOST:
                    break
                self._over.wait(0 if self._has_events() else self._times.beat)
            is_complete = True
        finally:
            if not is_complete:
                self._stop.set(StopReason.LOST)

    def _has_events(self) -> bool:
        return self._unreachable_since is None and bool(self._journal.pending(limit=1))

    def _beat(self) -> None:
        asked = boottime()  # before the request, so the lease in the database expires later than `_trusted_until`
        events = self._journal.pending()
        progress = self._progress() if events or asked >= self._next_progress else None
        try:
            verdict = self._send(self._lease, progress, events)
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
            log.warning("queue unavailable, training continues", error=str(error))

    def _note_recovery(self, now: float) -> None:
        if self._unreachable_since is not None:
            log.info("queue available again", after_seconds=round(now - self._unreachable_since, 1))
            self._unreachable_since = None


@contextmanager
def kept_alive(heartbeat: Heartbeat, name: str) -> Iterator[Heartbeat]:
    """Send heartbeats in a thread while the block runs."""
    in_context = contextvars.copy_context().run  # the labels of the log
    thread = threading.Thread(target=in_context, args=(heartbeat.run,), name=f"heartbeat-{name}", daemon=True)
    with heartbeat.followed():
        thread.start()
        try:
            yield heartbeat
        finally:
            heartbeat.end()
            thread.join()
