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
    """Set `shutdown` at SIGTERM, SIGINT or SIGHUP. Afterwards, ignore SIGHUP and restore the other handlers.

    A second SIGTERM or SIGINT exits at once. A second SIGHUP has no effect: when a terminal closes, the kernel and the
    shell both send one, and systemd can send one right after SIGTERM. If SIGHUP is ignored at the start (nohup), it
    stays ignored.
    """
    requests = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal requests
        # Python handles pending signals by their number: a SIGHUP that was sent after SIGTERM can be handled before it
        requests += number != signal.SIGHUP
        if requests > 1:
            # the children die with this process (parent-death signal), and the journal tells the next process about its runs
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
            # a SIGHUP while the interpreter exits would change the exit code of a clean drain
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else handler)
