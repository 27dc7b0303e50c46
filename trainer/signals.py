"""Signals that stop the service: SIGTERM, SIGINT and SIGHUP request a drain."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.core.stop import StopReason, StopSignal


@contextmanager
def signals_set(shutdown: StopSignal) -> Iterator[None]:
    """Set `shutdown` at SIGTERM, SIGINT or SIGHUP. After the block, ignore SIGHUP and restore the other handlers.

    A second SIGTERM or SIGINT exits immediately. A second SIGHUP has no effect: the kernel and the shell both send
    SIGHUP when a terminal closes. Also, systemd can send SIGHUP right after SIGTERM. If SIGHUP is ignored at the
    start (nohup), the service continues to ignore SIGHUP.
    """
    requests = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal requests
        # Python handles pending signals by number, so a later SIGHUP can be handled before an earlier SIGTERM
        requests += number != signal.SIGHUP
        if requests > 1:
            # the kernel kills the children (parent-death signal); the next process recovers the runs from the journal
            os._exit(128 + number)
        shutdown.set(StopReason.SHUTDOWN)

    wanted = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            # a SIGHUP during the exit of the interpreter would change the exit code
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else handler)
