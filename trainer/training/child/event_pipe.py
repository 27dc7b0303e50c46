"""Sends the events of a training process. The training never waits for a slow or missing reader."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable

from trainer.core.events import Event, is_durable
from trainer.training.wire import encode_event


class EventWriter:
    """Writes events in order, in its own thread.

    Durable events stay queued until they are written. A newer event replaces a batch event that is not written yet.
    """

    def __init__(self, fd: int, on_broken: Callable[[], None]) -> None:
        self._fd = fd
        self._on_broken = on_broken  # called when the reader has closed the pipe
        self._waiting: deque[bytes] = deque()
        self._batch_event: bytes | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="events", daemon=True)
        self._thread.start()

    def send(self, event: Event) -> None:
        """Queue an event and return at once."""
        line = encode_event(event)
        with self._changed:
            if is_durable(event):
                self._waiting.append(line)
                self._batch_event = None  # the batch event is older than this event
            else:
                self._batch_event = line
            self._changed.notify()

    def close(self, seconds: float) -> bool:
        """Wait at most `seconds` until the queued events are written. Return whether all of them were written."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _write(self) -> None:
        while (line := self._next()) is not None:
            try:
                while line:
                    line = line[os.write(self._fd, line) :]
            except OSError:
                self._on_broken()
                return

    def _next(self) -> bytes | None:
        with self._changed:
            while not self._waiting and self._batch_event is None:
                if self._closing:
                    return None
                self._changed.wait()
            if self._waiting:
                return self._waiting.popleft()
            newest, self._batch_event = self._batch_event, None
            return newest
