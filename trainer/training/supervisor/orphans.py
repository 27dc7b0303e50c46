"""Processes of trainings that outlived their subreapers: the service adopts them, and ends them after each training.

All processes of a training have a mark: a lower hard limit for message queues, which they do not need (subreaper.py sets
it). A process inherits the limit and cannot raise it. The service adopts the processes, because it is a subreaper, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
from pathlib import Path

from trainer.core.errors import HostSuspected

_PR_SET_CHILD_SUBREAPER = 36
_SECONDS = 5.0  # time for SIGKILL to take effect
_PAUSE = 0.01  # seconds


def adopt_orphans() -> None:
    """From now on, this process becomes the parent of each descendant whose parent has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans() -> int:
    """Kill and reap all adopted processes of trainings. Return their number.

    Raises HostSuspected if one cannot be killed.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + _SECONDS
    while orphans := [pid for pid in _children() if _is_of_training(pid)]:
        if time.monotonic() > deadline:
            raise HostSuspected(
                f"{len(orphans)} processes of a training cannot be killed; "
                "the driver probably hangs: look at dmesg and restart the host."
            )
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # another thread has reaped the process
                if os.waitpid(pid, os.WNOHANG)[0]:
                    ended.add(pid)
        time.sleep(_PAUSE)
    return len(ended)


def _children() -> list[int]:
    """Return the direct children of this process: those of every thread. The list includes hidden processes."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended, or the kernel does not have this file
            found.extend(map(int, (task / "children").read_bytes().split()))
    return found


def _is_child(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return True
    return False


def _is_of_training(pid: int) -> bool:
    try:
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return _is_child(pid)  # the process hides itself (`hidepid`), which the service's own programs do not
    hard = next((line.split()[-2] for line in limits if line.startswith("Max msgqueue size")), "unlimited")
    own = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[1]
    return hard != "unlimited" and (own == resource.RLIM_INFINITY or int(hard) < own)
