"""Replace standard streams that are closed, for example after `2>&-`."""

from __future__ import annotations

import os
import sys


def fill_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed. Call this before any other file is opened.

    Otherwise the next file or socket gets the number of the stream, and the output of a library is written into it.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(null, number)
    # /dev/null itself can have got the number of a stream
    if null > 2:
        os.close(null)
    else:
        os.set_inheritable(null, True)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, PTH123 - open until the process ends
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123
