"""A reporter in its own thread: a slow reporter delays neither the run nor the other reporters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count
from typing import TypeAlias

import structlog

from trainer.core.events import BatchProgress, Event, TransferProgress
from trainer.core.job import Job
from trainer.core.ports import AttemptEnd, Reporter

log = structlog.get_logger()

CAPACITY = 1000  # maximum number of queued calls per reporter; the start and the end of a run are always queued
Call: TypeAlias = Callable[[Reporter], None]
TickKey: TypeAlias = tuple[str, str]  # run id and kind of a progress event
OnDropped: TypeAlias = Callable[[str, str], None]  # arguments: name of the reporter, kind of the event


class BackgroundReporter:
    """Calls `reporter` from a thread, in order, with the events of a bounded queue.

    Of the progress events of a run, the queue keeps only the newest event of each kind. While the queue contains
    `capacity` calls, new events are dropped. The start and the end of a run are never dropped. `on_dropped` is called
    for each dropped event.
    """

    def __init__(
        self,
        reporter: Reporter,
        *,
        capacity: int = CAPACITY,
        is_for_one_run: bool = False,
        on_dropped: OnDropped = lambda *_: None,
    ) -> None:
        self.name = type(reporter).__name__
        self._reporter = reporter
        self._capacity = capacity
        self._is_for_one_run = is_for_one_run
        self._on_dropped = on_dropped
        self._changed = threading.Condition()
        self._numbers = count()
        self._waiting: dict[int, Call] = {}  # number → call, oldest first
        self._newest_tick: dict[TickKey, int] = {}
        self._is_busy = False
        self._is_closed = False
        self._is_full = False
        self._thread = threading.Thread(target=self._run, name=f"reporter-{self.name}", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """True if the thread of this reporter is alive."""
        return self._thread.is_alive()

    def started(self, job: Job) -> None:
        self._put(lambda reporter: reporter.started(job))

    def event(self, job: Job, event: Event) -> None:
        """Queue an event, or drop it if the queue is full."""
        tick = (job.id, event.kind) if isinstance(event, BatchProgress | TransferProgress) else None
        self._put(lambda reporter: reporter.event(job, event), kind=event.kind, tick=tick)

    def ended(self, job: Job, end: AttemptEnd) -> None:
        """Queue the end of a run. A reporter for one run closes afterwards."""
        self._put(lambda reporter: reporter.ended(job, end))
        if self._is_for_one_run:
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()

    def close(self, seconds: float) -> int:
        """Wait up to `seconds` until all queued calls are done. Return the number of remaining calls."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            while self._thread.is_alive() and (self._waiting or self._is_busy):
                left = deadline - time.monotonic()
                if left <= 0:
                    return len(self._waiting) + self._is_busy
                self._changed.wait(left)
        return 0

    def _put(self, call: Call, *, kind: str | None = None, tick: TickKey | None = None) -> None:
        """Queue a call. `kind` is the kind of an event that can be dropped; None for the start and the end of a run."""
        is_replaced = False
        with self._changed:
            if tick in self._newest_tick:
                is_replaced = self._waiting.pop(self._newest_tick.pop(tick), None) is not None
            is_dropped = kind is not None and len(self._waiting) >= self._capacity
            if not is_dropped:
                number = next(self._numbers)
                self._waiting[number] = call
                if tick:
                    self._newest_tick[tick] = number
                self._changed.notify_all()
            is_news = is_dropped and not self._is_full
            self._is_full = is_dropped or (self._is_full and kind is None)
        if is_news:
            log.warning("reporter is too slow, dropping events", reporter=self.name, waiting=self._capacity)
        if kind and (is_replaced or is_dropped):
            self._on_dropped(self.name, kind)

    def _run(self) -> None:
        last_error = ""
        while call := self._next():
            try:
                call(self._reporter)
            except BaseException as error:  # SystemExit would end this thread, and the queue would fill up
                text = f"{type(error).__name__}: {error}"
                if text != last_error:
                    log.exception("reporter failed", reporter=self.name)
                last_error = text

    def _next(self) -> Call | None:
        """Wait for the next call. Return None if the reporter is closed and the queue is empty."""
        with self._changed:
            self._is_busy = False
            self._changed.notify_all()
            while not self._waiting:
                if self._is_closed:
                    return None
                self._changed.wait()
            number = next(iter(self._waiting))
            self._is_busy = True
            return self._waiting.pop(number)
