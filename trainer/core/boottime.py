"""The local clock of leases."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since this host booted, the time in which it was suspended included.

    A lease runs out while a host sleeps. `time.monotonic` stands still meanwhile on Linux: after it, a worker would trust a
    lease that another worker has.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
