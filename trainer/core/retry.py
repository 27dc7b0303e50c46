"""Retries: exponential backoff with full jitter, limited by tries, time and a stop signal."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from trainer.core.errors import Unavailable
from trainer.core.stop import StopSignal

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """The limits of retries. The waits in seconds grow as `first_wait`·2ⁿ up to `longest_wait`."""

    tries: int = 5
    first_wait: float = 0.5
    longest_wait: float = 20.0
    total_seconds: float = 60.0

    def wait_before(self, again: int, retry_after: float | None) -> float:
        """Return the wait in seconds before the next try: at least `retry_after`, at most `longest_wait`.

        `again` is the number of earlier retries.
        """
        # full jitter (random between 0 and the limit of this step) spreads the retries of many workers
        step = 2.0 ** min(again, 100)  # a float would overflow after a thousand tries
        wait = random.uniform(0, min(self.longest_wait, self.first_wait * step))  # noqa: S311
        return max(wait, min(retry_after or 0.0, self.longest_wait))


def retrying(call: Callable[[], T], policy: RetryPolicy, stop: StopSignal) -> T:
    """Return `call()`, retrying while it raises `Unavailable`. Raises the last `Unavailable` after the last retry.

    If `stop` is set, raises `Stopped` instead of a retry.
    """
    deadline = time.monotonic() + policy.total_seconds
    for again in range(policy.tries):
        try:
            return call()
        except Unavailable as error:
            wait = policy.wait_before(again, error.retry_after)
            if again + 1 >= policy.tries or time.monotonic() + wait > deadline:
                raise
        if stop.wait(wait):
            stop.raise_if_set()
    raise AssertionError("a policy must have at least one try")
