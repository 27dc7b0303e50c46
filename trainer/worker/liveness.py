"""Detection of hanging loops: each loop of the service reports every iteration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Liveness:
    """The time of the last iteration of each loop, by the name of the loop. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Report an iteration of the loop `name`."""
        with self._lock:
            self._turns[name] = time.monotonic()

    @contextmanager
    def watching(self, name: str) -> Iterator[None]:
        """Expect iterations of the loop `name` while the block runs."""
        self.mark(name)
        try:
            yield
        finally:
            with self._lock:
                self._turns.pop(name, None)

    def is_alive(self, within: float) -> bool:
        """Return whether every watched loop reported an iteration in the last `within` seconds."""
        with self._lock:
            return all(time.monotonic() - turn < within for turn in self._turns.values())
