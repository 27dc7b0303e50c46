"""A thread that runs during a `with` block."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def thread_running(
    name: str, work: Callable[[], object], end: Callable[[], object], seconds: float | None = None
) -> Iterator[None]:
    """Run `work` in a thread during the block. Then call `end`, and wait at most `seconds` for the thread."""
    in_context = contextvars.copy_context().run  # the thread logs with the labels of its caller
    thread = threading.Thread(target=in_context, args=(work,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end()
        thread.join(seconds)
