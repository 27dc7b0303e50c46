"""Whether the daemon's loops still turn: each marks every turn, and one that stopped turning is noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pulse:
    """The last turn of each loop by name. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """The loop `name` turned."""
        with self._lock:
            self._turns[name] = time.monotonic()

    @contextmanager
    def following(self, name: str) -> Iterator[None]:
        """Expect turns of the loop `name` while the block runs."""
        self.mark(name)
        try:
            yield
        finally:
            with self._lock:
                self._turns.pop(name, None)

    def is_alive(self, within: float) -> bool:
        """Whether every loop turned within the last `within` seconds."""
        with self._lock:
            return all(time.monotonic() - turn < within for turn in self._turns.values())
