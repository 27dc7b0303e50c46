"""The clock of a queue in a file. It never goes back, and setting the wall clock neither expires nor freezes a lease.

It runs with the time since boot, which cannot be set, and stores an anchor in the file: the boot, the time since that boot
and the queue's time at that moment. It follows the wall clock in three ways:

- After a reboot the queue takes the wall clock's time unless that is earlier. No worker survived the reboot.
- While no run is leased, the queue follows a wall clock that is ahead at once: a wrong clock at boot was corrected.
- Otherwise the queue runs up to 10 % faster or slower until both agree, so a lease of 60 s lasts at least 54 s.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.core.boottime import boottime

_SLEW = 0.1  # share of the elapsed time; a change of one hour is followed within ten hours
_AHEAD = 60.0  # seconds
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""  # then a smaller time since boot reveals a reboot


@dataclass(frozen=True)
class HostClock:
    """The clocks of this host: wall clock (seconds since 1970), time since boot (seconds) and the id of the boot."""

    wall: Callable[[], float] = time.time
    since_boot: Callable[[], float] = boottime
    boot_id: Callable[[], str] = _boot_id


HOST_CLOCK = HostClock()


def queue_time(connection: sqlite3.Connection, clock: HostClock, *, keep: bool) -> float:
    """Return the queue's time in seconds since 1970. `keep` stores it as the anchor of later calls (write transactions)."""
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
