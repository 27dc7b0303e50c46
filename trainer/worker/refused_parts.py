"""Delivery of events and outcomes to a queue that refuses a part of them.

A rule of the app, or a value that a column cannot store, makes the queue refuse a whole call. The lease is then renewed
without the events, so that a cancel request still arrives. The refused event is found by sending fewer events each time,
and it is dropped with a warning. All other events and the outcome are delivered.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import structlog

from trainer.core.errors import Refused
from trainer.core.events import Warned
from trainer.core.job import Beat, Completed, Interrupted, JsonObject, Outcome, RunEvent, Status, Verdict
from trainer.core.ports import Queue
from trainer.worker.journal import Journal

log = structlog.get_logger()

MOST_EVENTS = 200  # events of one heartbeat
MOST_BYTES = 256 * 1024  # of these events; a larger heartbeat could exceed the time limit of each try
ALL_EVENTS = 100_000  # maximum number of events that are sent with an outcome
MOST_WARNINGS = 10  # warnings about dropped events in the history of an attempt
MESSAGE_REFUSED = "The run ended, but the database refused the reason: see the worker's log."


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
        lease, events = self._journal.lease, _batch(self._journal.pending(self._most))
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


def finish(queue: Queue, journal: Journal, outcome: Outcome) -> Status | None:
    """Send the outcome with the pending events, without the parts that the queue refuses.

    Return the new status, or None if the lease is lost. Raises the errors of the queue.
    """
    events = EventDelivery(queue.beat, journal)
    while len(_batch(waiting := journal.pending(MOST_EVENTS + 1))) < len(waiting):
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


def _batch(events: list[RunEvent]) -> list[RunEvent]:
    """Return the first events, as many as one heartbeat may contain, but at least one."""
    size = 0
    for number, event in enumerate(events[:MOST_EVENTS]):
        size += len(json.dumps(event.data))
        if number and size > MOST_BYTES:
            return events[:number]
    return events[:MOST_EVENTS]


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
