"""The signals that end the service: SIGTERM, SIGINT and SIGHUP ask for a drain."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.core.stop import StopReason, StopSignal


@contextmanager
def signals_set(shutdown: StopSignal) -> Iterator[None]:
    """Set `shutdown` at SIGTERM, SIGINT or SIGHUP. Afterwards SIGHUP is ignored, and the others have their old handlers.

    A second SIGTERM or SIGINT exits at once. A second SIGHUP does not: when a terminal closes, the kernel and the shell
    both send one, and systemd can send one right after SIGTERM. A SIGHUP that is ignored at the start (nohup) stays so.
    """
    requests = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal requests
        # Python handles pending signals by their number: a SIGHUP that came after SIGTERM can be handled before it
        requests += number != signal.SIGHUP
        if requests > 1:
            # the children die with us (parent-death signal), and the journal tells the next process what was going on
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
            # the interpreter takes a while to end, and a SIGHUP that came then would be the exit code of a clean drain
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else handler)
