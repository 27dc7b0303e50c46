"""What is left of a training whose guardian was killed: found by a mark in its environment, and ended.

Every process inherits the mark, whatever session it makes for itself and whoever adopts it; only one that was started
with an empty environment is not found.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import time

TREE = "TRAINER_TREE"  # the environment variable whose value only the processes of one tree have
_SCANS = 2  # in a row that find nothing: a process shows no environment while it turns into another program
_PAUSE = 0.01  # seconds between two scans


def new_mark() -> str:
    """Return a value of TREE that no other tree has."""
    return secrets.token_hex(16)


def end_marked(mark: str) -> None:
    """Kill the processes that carry the mark, and return when none is left."""
    clean = 0
    while clean < _SCANS:
        killed = [end for process in marked(mark) if (end := _kill(process)) is not None]
        for end in killed:
            _wait(end)
        clean = 0 if killed else clean + 1
        time.sleep(_PAUSE)


def marked(mark: str) -> list[int]:
    """Return the processes whose environment holds the mark."""
    wanted = f"{TREE}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        # a process may end before it is looked at, and those of other users are closed to us
        with contextlib.suppress(OSError):
            if name.isdigit() and wanted in _environment(name).split(b"\0"):
                found.append(int(name))
    return found


def _environment(process: str) -> bytes:
    with open(f"/proc/{process}/environ", "rb") as file:  # noqa: PTH123
        return file.read()


def _kill(process: int) -> int | None:
    """Send SIGKILL; return a descriptor that becomes readable at the process's end, None if it has ended."""
    with contextlib.suppress(OSError):
        end = os.pidfd_open(process)
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(end, signal.SIGKILL)
        return end
    return None


def _wait(end: int) -> None:
    """Return when the process has ended, because only then it has given back its GPU; close its descriptor."""
    ended = select.poll()
    ended.register(end, select.POLLIN)
    ended.poll()
    with contextlib.suppress(OSError):  # in a container the service can be the process that adopts orphans
        os.waitid(os.P_PIDFD, end, os.WEXITED | os.WNOHANG)
    os.close(end)
