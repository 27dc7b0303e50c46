"""Standard input, output and error, also for a process that was started without them (`2>&-`)."""

from __future__ import annotations

import os
import sys


def fill_standard_streams() -> None:
    """Open /dev/null in the place of each standard stream that is closed. Call it before anything else is opened.

    Otherwise the next file or socket gets the number of the stream, and what a library prints is written into it.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(null, number)
    # the number may be the stream's own
    if null > 2:
        os.close(null)
    else:
        os.set_inheritable(null, True)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, PTH123 - open for as long as the process
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123
