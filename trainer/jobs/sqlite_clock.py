"""The time of a queue in a file: it never goes back, and no setting of the wall clock expires or freezes a lease.

It runs with the time since boot, which nobody can set, and is anchored in the file: which boot, how long after it, and what
time the queue had then. The wall clock is followed in three ways:

- after a reboot the queue has the wall clock's time, unless that is earlier: no worker lived through the reboot;
- while no run is leased, a wall clock that is ahead is followed at once: a host that booted with a wrong clock was corrected;
- otherwise the queue runs up to 10 % faster or slower until both agree, so a lease of a minute lasts at least 54 s.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.core.boottime import boottime

_SLEW = 0.1  # of the elapsed time; a clock that was set by an hour is followed within ten
_AHEAD = 60.0  # seconds
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""  # a reboot is then known by a time since boot that went back


@dataclass(frozen=True)
class HostClock:
    """The clocks of this host: the wall clock, in seconds since 1970, the time since boot, in seconds, and which boot."""

    wall: Callable[[], float] = time.time
    since_boot: Callable[[], float] = boottime
    boot_id: Callable[[], str] = _boot_id


HOST_CLOCK = HostClock()


def queue_time(connection: sqlite3.Connection, clock: HostClock, *, keep: bool) -> float:
    """The queue's time, in seconds since 1970; with `keep` it is the anchor of later calls, inside a write transaction."""
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
