"""Where an error stops: a loop that serves many runs survives an error that one of them causes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger()


def _nothing() -> None:
    """What there is to do after most errors."""


@contextmanager
def bulkhead(event: str, on_error: Callable[[], object] = _nothing) -> Iterator[None]:
    """Log any exception of the block as `event` with its traceback, then call `on_error` and continue after the block."""
    try:
        yield
    except Exception:
        log.exception(event)
        on_error()
