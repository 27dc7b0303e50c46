"""Passes the events and output lines of a training process to a listener without blocking the reading thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from trainer.core.events import BatchProgress, Event

MOST_LINES = 2000  # queued lines; further lines are counted and dropped, so that they cannot fill the memory


class EventDispatcher:
    """A queue of events and lines. Its thread passes them to `on_event` and `on_line`, the functions of the listener.

    Events keep their order and are delivered before lines. Every durable event is delivered, even to a slow listener. A
    batch event in the queue is replaced by a batch event that directly follows it. After the listener raises an
    exception, nothing more is delivered (`failed`), and `close` raises the exception.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._lines: deque[str] = deque()
        self._lost_lines = 0
        self._closed = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="event-dispatch")
        self._work: Future[None] | None = None

    def start(self, on_event: Callable[[Event], None], on_line: Callable[[str], None]) -> None:
        """Start to deliver events and lines, including queued events and lines."""
        self._work = self._pool.submit(self._run, on_event, on_line)

    @property
    def failed(self) -> bool:
        """True if the listener raised an exception."""
        return self._work is not None and self._work.done() and self._work.exception() is not None

    def event(self, event: Event) -> None:
        """Queue an event."""
        with self._changed:
            if isinstance(event, BatchProgress) and self._events and isinstance(self._events[-1], BatchProgress):
                self._events.pop()
            self._events.append(event)
            self._changed.notify()

    def line(self, line: str) -> None:
        """Queue a line of output."""
        with self._changed:
            if len(self._lines) >= MOST_LINES:
                self._lost_lines += 1
                return
            self._note_lost_lines()
            self._lines.append(line)
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
            else:
                on_event(item)

    def _next(self) -> Event | str | None:
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
