"""Delivery of events to the queue, with heartbeats. The queue can refuse a part of them.

A rule of the app, or a value that a column cannot store, makes the queue refuse a whole call. The lease is then renewed
without the events, so that a cancel request still arrives. The refused event is found by sending fewer events each time,
and it is dropped with a warning. All other events are delivered.
"""

from __future__ import annotations

import json

import structlog

from trainer.core.errors import Refused
from trainer.core.events import Warned
from trainer.core.job import Beat, JsonObject, RunEvent, Verdict
from trainer.worker.journal import Journal

log = structlog.get_logger()

MOST_EVENTS = 200  # events of one heartbeat
MOST_BYTES = 256 * 1024  # of these events; a larger heartbeat could exceed the time limit of each try
MOST_WARNINGS = 10  # warnings about dropped events in the history of an attempt


class EventDelivery:
    """Sends heartbeats with the pending events of a journal.

    `was_refused` is True if the queue refused the last heartbeat. The next heartbeat should then be sent soon and
    without progress.
    """

    def __init__(self, beat: Beat, journal: Journal) -> None:
        self._beat = beat
        self._journal = journal
        self._most = MOST_EVENTS
        self._warnings = 0
        self.was_refused = False

    def send(self, progress: JsonObject | None = None) -> Verdict:
        """Send one heartbeat; if it is refused, renew the lease without its content. Raises the errors of the queue."""
        lease, events = self._journal.lease, first_batch(self._journal.pending(self._most))
        try:
            verdict = self._beat(lease, progress, events)
        except Refused as error:
            if not events and progress is None:
                raise
            verdict = self._beat(lease, None, [])
            # the events are sent again without the progress before one of them is dropped
            if progress is None:
                self._send_less(events, error)
            elif not self.was_refused:
                log.warning("heartbeat refused by the queue, sending less", run_id=lease.job.id, error=str(error))
            self.was_refused = True
            return verdict
        self.was_refused = False
        self._most = min(MOST_EVENTS, 2 * self._most)
        if verdict is not Verdict.LOST:
            self._journal.delivered(events)
        return verdict

    def _send_less(self, events: list[RunEvent], error: Refused) -> None:
        self._most = max(1, len(events) // 2)
        if len(events) > 1 or not self._journal.drop(events[0]):
            return
        event, run_id = events[0], self._journal.lease.job.id
        log.warning(
            "event refused by the queue, dropped", run_id=run_id, kind=event.kind, seq=event.seq, error=str(error)
        )
        message = f"The database refused event {event.seq} ({event.kind}) of this run, so it is missing: {error}"
        warning = Warned(code="event_refused", message=message)
        if event.data.get("code") != warning.code and self._warnings < MOST_WARNINGS:
            self._warnings += 1
            self._journal.record(warning.kind, {"code": warning.code, "message": warning.message})


def first_batch(events: list[RunEvent]) -> list[RunEvent]:
    """Return the first events, as many as one heartbeat may contain, but at least one."""
    size = 0
    for number, event in enumerate(events[:MOST_EVENTS]):
        size += len(json.dumps(event.data))
        if number and size > MOST_BYTES:
            return events[:number]
    return events[:MOST_EVENTS]
