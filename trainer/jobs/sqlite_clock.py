"""The clock of a SQLite queue. It never goes backwards. A change of the wall clock does not expire or extend a lease.

The clock advances with the time since boot, which cannot be set. The file stores an anchor: the id of the boot, the
time since that boot, and the queue's time at that moment. The clock follows the wall clock in three ways:

- After a reboot, the queue's time becomes the time of the wall clock, but never an earlier time.
- While no run has a lease, the queue's time jumps to the wall clock if the wall clock is more than a minute ahead.
- Otherwise the clock runs up to 10 % faster or slower until both clocks agree. A lease of 60 s lasts at least 54 s.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.core.boottime import boottime

_SLEW = 0.1  # share of the elapsed time; a difference of one hour is corrected within ten hours
_AHEAD = 60.0  # seconds; if the wall clock is further ahead, the queue's time can jump
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""  # a reboot is then detected by a smaller time since boot


@dataclass(frozen=True)
class HostClock:
    """The clocks of this host: wall clock (seconds since 1970), time since boot (seconds) and the id of the boot."""

    wall: Callable[[], float] = time.time
    since_boot: Callable[[], float] = boottime
    boot_id: Callable[[], str] = _boot_id


HOST_CLOCK = HostClock()


def queue_time(connection: sqlite3.Connection, clock: HostClock, *, keep: bool) -> float:
    """Return the queue's time in seconds since 1970. If `keep` is True, store this time as the anchor."""
    boot, since_boot, wall = clock.boot_id(), clock.since_boot(), clock.wall()
    anchor = connection.execute("select boot_id, since_boot, now from queue_clock").fetchone()
    if anchor is None:
        now = wall
    elif anchor[0] != boot or anchor[1] > since_boot:
        now = max(anchor[2], wall)
    else:
        now = _followed(connection, anchor[2], since_boot - anchor[1], wall)
    if keep:
        connection.execute("insert or replace into queue_clock values (1, ?, ?, ?)", (boot, since_boot, now))
    return float(now)


def _followed(connection: sqlite3.Connection, before: float, elapsed: float, wall: float) -> float:
    drift = wall - before - elapsed
    if (
        drift > _AHEAD
        and not connection.execute(
            "select 1 from training_runs where status in ('running', 'canceling') limit 1",
        ).fetchone()
    ):
        return wall
    return before + elapsed + min(max(drift, -_SLEW * elapsed), _SLEW * elapsed)
