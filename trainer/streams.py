"""Replace standard streams that are closed, for example after `2>&-`."""

from __future__ import annotations

import os
import sys


def fill_standard_streams() -> None:
    """Open /dev/null for each closed standard stream. Call this function before any other file is opened.

    Otherwise the next file or socket gets the number of the stream, and output of a library is written into that file.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(null, number)
    # if a standard stream was closed, `null` may have its number
    if null > 2:
        os.close(null)
    else:
        os.set_inheritable(null, True)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115, PTH123 - open until the process ends
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123
