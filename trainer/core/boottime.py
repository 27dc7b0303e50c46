"""The clock for leases on this host."""

from __future__ import annotations

import time


def boottime() -> float:
    """Return the seconds since the boot of this host, including the time of suspension.

    A lease also expires while the host is suspended. On Linux, `time.monotonic` does not count the suspension, so with
    `time.monotonic` a worker would trust an expired lease.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
