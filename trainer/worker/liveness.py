"""Whether the loops of the service still run: each reports every turn, and a loop that hangs is noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Liveness:
    """The time of the last turn of each loop, by its name. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Report a turn of the loop `name`."""
        with self._lock:
            self._turns[name] = time.monotonic()

    @contextmanager
    def watching(self, name: str) -> Iterator[None]:
        """Expect turns of the loop `name` while the block runs."""
        self.mark(name)
        try:
            yield
        finally:
            with self._lock:
                self._turns.pop(name, None)

    def is_alive(self, within: float) -> bool:
        """Return whether every watched loop ran within the last `within` seconds."""
        with self._lock:
            return all(time.monotonic() - turn < within for turn in self._turns.values())
