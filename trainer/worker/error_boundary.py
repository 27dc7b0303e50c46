"""Error boundaries: an unexpected error in one run does not stop the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger()


@contextmanager
def error_boundary(event: str, on_error: Callable[[], object] | None = None) -> Iterator[None]:
    """Log any exception of the block as `event` with its traceback, call `on_error`, and continue after the block."""
    try:
        yield
    except Exception:
        log.exception(event)
        if on_error:
            on_error()


def call_or(call: Callable[[], T], event: str, on_error: Callable[[], T]) -> T:
    """Return `call()`. If it raises an exception, log `event` with the traceback and return `on_error()`."""
    try:
        return call()
    except Exception:
        log.exception(event)
        return on_error()
