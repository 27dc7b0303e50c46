"""Passes the events and output lines of a training process to a listener without blocking the reading thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from trainer.core.errors import RunFailed
from trainer.core.events import BatchProgress, ChildStopped, Crashed, Event, is_durable
from trainer.core.plan import TrainPlan

MOST_LINES = 2000  # queued lines; further lines are counted and dropped, so that they cannot fill the memory
MOST_OUTPUT = 256 * 2**20  # bytes of output in the log of a training
_LINE_OVERHEAD = 32  # bytes of the timestamp and the line end
_NOT_LOGGED = f"… the log has {MOST_OUTPUT >> 20} MiB of output; further output is not logged …"


@dataclass(frozen=True)
class EventLimits:
    """The maximum number and total bytes of the durable events of one training."""

    events: int = 10_000
    bytes: int = 16 * 2**20

    @classmethod
    def of(cls, plan: TrainPlan) -> EventLimits:
        """Return the limits for a plan. A training sends about five events per epoch, together 1 KiB."""
        # with a time limit, Ultralytics changes the number of epochs
        epochs = max(plan.epochs, 100_000) if plan.args.get("time") else plan.epochs
        return cls(cls.events + 8 * epochs, cls.bytes + 4096 * epochs)


class EventDispatcher:
    """A queue of events and lines. Its thread passes them to `on_event` and `on_line`, the functions of the listener.

    Events keep their order and are delivered before lines. Every durable event is delivered, even to a slow listener. A
    batch event in the queue is replaced by a batch event that directly follows it. After the listener raises an
    exception, nothing more is delivered (`failed`), and `close` raises the exception. An event beyond the limits counts
    as such an exception (`RunFailed`), so that a training process cannot fill the disk, the memory or the database.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[Event | RunFailed] = deque()
        self._lines: deque[str] = deque()
        self._lost_lines = 0
        self._limits = EventLimits()
        self._durable_events = self._durable_bytes = 0
        self._is_flooded = False
        self._output_bytes = 0
        self._closed = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="event-dispatch")
        self._work: Future[None] | None = None

    def start(
        self, on_event: Callable[[Event], None], on_line: Callable[[str], None], limits: EventLimits = EventLimits()
    ) -> None:
        """Start to deliver events and lines, including queued events and lines."""
        self._limits = limits
        self._work = self._pool.submit(self._run, on_event, on_line)

    @property
    def failed(self) -> bool:
        """True if the listener raised an exception."""
        return self._work is not None and self._work.done() and self._work.exception() is not None

    def event(self, event: Event, size: int = 0) -> None:
        """Queue an event that was received as `size` bytes."""
        with self._changed:
            if self._is_flooded:
                return
            if isinstance(event, BatchProgress) and self._events and isinstance(self._events[-1], BatchProgress):
                self._events.pop()
            self._events.append(self._flood(event, size) or event)
            self._changed.notify()

    def line(self, line: str) -> None:
        """Queue a line of output."""
        with self._changed:
            if self._output_bytes >= MOST_OUTPUT:
                return
            if len(self._lines) >= MOST_LINES:
                self._lost_lines += 1
                return
            self._note_lost_lines()
            self._lines.append(line)
            self._output_bytes += len(line.encode()) + _LINE_OVERHEAD
            if self._output_bytes >= MOST_OUTPUT:
                self._lines.append(_NOT_LOGGED)
            self._changed.notify()

    def close(self) -> None:
        """Wait until everything is delivered. Raises the exception of the listener."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._pool.shutdown()
        if self._work:
            self._work.result()

    def _run(self, on_event: Callable[[Event], None], on_line: Callable[[str], None]) -> None:
        while (item := self._next()) is not None:
            if isinstance(item, str):
                on_line(item)
            elif isinstance(item, RunFailed):
                raise item
            else:
                on_event(item)

    def _flood(self, event: Event, size: int) -> RunFailed | None:
        """Count the event. Return an error if there are too many events. The last event of a training is not counted."""
        if not is_durable(event) or isinstance(event, ChildStopped | Crashed):
            return None
        self._durable_events += 1
        self._durable_bytes += size
        limits = self._limits
        self._is_flooded = self._durable_events > limits.events or self._durable_bytes > limits.bytes
        if not self._is_flooded:
            return None
        return RunFailed(
            f"The training sent more events than a training needs ({self._durable_events:,} events, "
            f"{self._durable_bytes / 2**20:.1f} MiB; the limits are {limits.events:,} events and "
            f"{limits.bytes / 2**20:.0f} MiB), so it was stopped."
        )

    def _next(self) -> Event | RunFailed | str | None:
        with self._changed:
            while not (self._events or self._lines or self._closed):
                self._changed.wait()
            if self._events:
                return self._events.popleft()
            if not self._lines:
                self._note_lost_lines()
            return self._lines.popleft() if self._lines else None

    def _note_lost_lines(self) -> None:
        if self._lost_lines:
            self._lines.append(f"… {self._lost_lines} lines were dropped, because the output came too fast …")
            self._lost_lines = 0
