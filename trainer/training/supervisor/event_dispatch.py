"""Hands a child's events and output lines to whoever listens, without ever waiting for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from trainer.core.events import BatchProgress, Event

MOST_LINES = 2000  # waiting; more are counted and left out, so that a flood cannot fill the memory


class Delivery:
    """A queue with a thread of its own that empties it.

    Events go in order and before lines. Durable events all arrive, however slow the listener is; of the batch ticks
    that wait behind one another only the newest does. A listener that raises gets nothing more (`failed`), and
    `close` raises what it raised.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._lines: deque[str] = deque()
        self._lost_lines = 0
        self._closed = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="delivery")
        self._work: Future[None] | None = None

    def start(self, on_event: Callable[[Event], None], on_line: Callable[[str], None]) -> None:
        """Begin to hand over, what has waited until now first."""
        self._work = self._pool.submit(self._run, on_event, on_line)

    @property
    def failed(self) -> bool:
        """Whether the listener raised."""
        return self._work is not None and self._work.done() and self._work.exception() is not None

    def event(self, event: Event) -> None:
        with self._changed:
            ticks = self._events and isinstance(event, BatchProgress) and isinstance(self._events[-1], BatchProgress)
            if ticks:
                self._events.pop()
            self._events.append(event)
            self._changed.notify()

    def line(self, line: str) -> None:
        with self._changed:
            if len(self._lines) >= MOST_LINES:
                self._lost_lines += 1
                return
            self._note_lost_lines()
            self._lines.append(line)
            self._changed.notify()

    def close(self) -> None:
        """Wait until everything was handed over; raises what the listener raised."""
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
            self._lines.append(f"… {self._lost_lines} lines came too fast and are not in this log …")
            self._lost_lines = 0
