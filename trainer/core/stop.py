"""Stop signals with a reason, in a tree: a cancel stops one run, a shutdown stops all runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from trainer.core.threads import thread_running


class StopReason(Enum):
    """The reason for a stop, in order of strength. A stronger reason replaces a weaker reason."""

    FINISH = "finish"  # end the training after the current epoch and complete the run with the existing model
    SHUTDOWN = "shutdown"  # this worker shuts down: save a checkpoint and requeue the run
    CANCELED = "canceled"  # the user canceled the run
    STUCK = "stuck"  # no progress within the time limit of the phase
    LOST = "lost"  # the lease is lost: stop immediately and write nothing

    @property
    def strength(self) -> int:
        return list(StopReason).index(self)


class Stopped(Exception):
    """Work was stopped because its stop signal was set."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(f"stopped: {reason.value}")
        self.reason = reason


class StopSignal:
    """A thread-safe flag with a reason, inherited from its parent.

    FINISH ends only the training, not the run, so `raise_if_set` does not raise for FINISH.
    """

    def __init__(self, parent: StopSignal | None = None) -> None:
        self._parent = parent
        self._own: StopReason | None = None
        self._shutdown_at: float | None = None  # monotonic
        # one condition for the whole tree, so that a stop of any signal wakes every waiting thread
        self._changed: threading.Condition = parent._changed if parent else threading.Condition()  # noqa: SLF001

    def child(self) -> StopSignal:
        """Return a child signal. Setting this signal sets the child; setting the child does not set this signal."""
        return StopSignal(self)

    def set(self, reason: StopReason) -> None:
        """Request a stop. A weaker reason than the current one has no effect."""
        with self._changed:
            if self._own is None or reason.strength > self._own.strength:
                self._own = reason
                if reason is StopReason.SHUTDOWN:
                    self._shutdown_at = time.monotonic()
                self._changed.notify_all()

    @property
    def reason(self) -> StopReason | None:
        """The strongest reason of this signal and its parents, or None."""
        above = self._parent.reason if self._parent else None
        reasons = [r for r in (self._own, above) if r is not None]
        return max(reasons, key=lambda r: r.strength, default=None)

    @property
    def shutdown_at(self) -> float | None:
        """The monotonic time of the shutdown request, or None."""
        return self._shutdown_at or (self._parent.shutdown_at if self._parent else None)

    @property
    def must_stop(self) -> bool:
        """True if the work has to stop, for any reason except FINISH."""
        return self.reason not in (None, StopReason.FINISH)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the work has to stop, but at most `seconds`. Return whether the work has to stop."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while not self.must_stop:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def raise_if_set(self) -> None:
        """Raise `Stopped` if the work has to stop."""
        reason = self.reason
        if reason is not None and reason is not StopReason.FINISH:
            raise Stopped(reason)

    @contextmanager
    def extra_time(self, seconds: float, *, at_most: bool = False) -> Iterator[StopSignal]:
        """Yield a signal that is set `seconds` after this signal, so that the work has time to end.

        LOST sets the new signal immediately. After a shutdown, the seconds count from the shutdown request. If
        `at_most` is set, the new signal is set at most `seconds` after this call.
        """
        later = StopSignal()
        over = threading.Event()
        deadline = time.monotonic() + seconds if at_most else None

        def look() -> None:
            nonlocal deadline
            reason = self.reason
            if reason is StopReason.LOST:
                later.set(reason)
                return
            if self.must_stop:
                stop_at = (self.shutdown_at or time.monotonic()) + seconds
                deadline = min(deadline or stop_at, stop_at)
            if deadline and time.monotonic() > deadline:
                later.set(reason if self.must_stop and reason else StopReason.STUCK)

        def watch() -> None:
            while not over.wait(0.05):
                look()

        look()  # the time limit may have passed before the block
        with thread_running("extra-time", watch, over.set):
            yield later
