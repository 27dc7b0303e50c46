"""The clock that measures leases on this host."""

from __future__ import annotations

import time


def boottime() -> float:
    """Return the seconds since this host booted, including the time in which it was suspended.

    A lease also expires while the host is suspended. On Linux `time.monotonic` does not count that time, so a worker would
    trust a lease that another worker holds.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)
