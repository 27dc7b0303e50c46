"""Renewal of a lease: a thread sends heartbeats while the run is executed, and handles the answers of the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import structlog

from trainer.core.boottime import boottime
from trainer.core.errors import Misconfigured, Refused, Unavailable
from trainer.core.job import Beat, JsonObject, Verdict
from trainer.core.stop import StopReason, StopSignal
from trainer.core.threads import thread_running
from trainer.worker.event_delivery import EventDelivery
from trainer.worker.journal import Journal
from trainer.worker.liveness import Liveness

log = structlog.get_logger()

AFTER_REFUSAL = 0.2  # seconds between heartbeats while the refused event is not yet found

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


@dataclass(eq=False)
class Heartbeat:
    """Renews one lease and delivers its events.

    While the queue is unavailable, the training continues, because the fencing token rejects late writes. The run stops
    after the answer CANCEL, FINISH or LOST, and after an unexpected error in the heartbeat thread.
    """

    beat: Beat
    journal: Journal
    stop: StopSignal
    times: LeaseTimes
    progress: Callable[[], JsonObject]
    liveness: Liveness
    _next_progress: float = field(default=0.0, init=False)
    _unreachable_since: float | None = field(default=None, init=False)
    _over: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._trusted_until = self.journal.lease.trusted_until
        self._delivery = EventDelivery(self.beat, self.journal)

    def confirm(self, stop: StopSignal) -> None:
        """If the lease may have expired, wait until a heartbeat renews it. Raises `Stopped`.

        Call this method before a write to the bucket.

        The lease can expire while this process is suspended (a suspended host, SIGSTOP). This method does not wait
        while the queue is unavailable, because no other attempt writes to the prefix of this attempt.
        """
        while boottime() > self._trusted_until and self._unreachable_since is None and not stop.must_stop:
            stop.wait(0.05)
        stop.raise_if_set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send heartbeats in a thread while the block runs."""
        lease = self.journal.lease
        thread = thread_running(f"heartbeat-{lease.job.id}", self._run, self._over.set)
        with self.liveness.watching(lease.claim_id), thread:
            yield

    def _run(self) -> None:
        """Send heartbeats until the block ends or the lease is lost. An unexpected error stops the run."""
        is_complete = False
        try:
            while not self._over.is_set():
                self.liveness.mark(self.journal.lease.claim_id)
                self._beat()
                if self.stop.reason is StopReason.LOST:
                    break
                has_events = self._unreachable_since is None and self.journal.pending(limit=1)
                pause = AFTER_REFUSAL if self._delivery.was_refused else 0.0
                self._over.wait(min(pause, self.times.beat) if has_events else self.times.beat)
            is_complete = True
        finally:
            if not is_complete:
                self.stop.set(StopReason.LOST)

    def _beat(self) -> None:
        asked = boottime()  # read before the request, so that `_trusted_until` ends before the lease in the database
        is_due = asked >= self._next_progress or self.journal.pending(limit=1)
        progress = self.progress() if is_due and not self._delivery.was_refused else None
        try:
            verdict = self._delivery.send(progress)
        except (Unavailable, Misconfigured) as error:
            if self._unreachable_since is None:
                self._unreachable_since = asked
                log.warning("queue unavailable, training continues", error=str(error))
            if not isinstance(error, Misconfigured) or isinstance(error, Refused):
                return
            # a rule of the app can fail with the code of a wrong key: renew the lease, so that a cancel request arrives
            with suppress(Unavailable, Misconfigured):
                self._follow(self.beat(self.journal.lease, None, []), asked)
            return
        if self._unreachable_since is not None:
            log.info("queue available again", after_seconds=round(asked - self._unreachable_since, 1))
            self._unreachable_since = None
        if progress is not None:
            self._next_progress = asked + self.times.progress
        self._follow(verdict, asked)

    def _follow(self, verdict: Verdict, asked: float) -> None:
        if verdict is not Verdict.LOST:
            self._trusted_until = asked + self.times.lease
        if verdict in STOP_FOR:
            self.stop.set(STOP_FOR[verdict])
