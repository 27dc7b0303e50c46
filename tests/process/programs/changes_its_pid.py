"""Starts processes that repeatedly fork, start a new session and exit, so that each process exists only for a moment.

The processes hold a lock on the file that the argument names. This program exits 0.2 s after it has started them.
"""

import fcntl
import os
import sys
import time

from protocol import finished, order, phase

PROCESSES = 16
LIMIT = 20  # seconds; a failed test must not leave processes running forever

order()
phase("training")
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
end = time.monotonic() + LIMIT
for _ in range(PROCESSES):
    if os.fork() == 0:
        while time.monotonic() < end:
            if os.fork():
                os._exit(0)
            os.setsid()
        os._exit(0)
time.sleep(0.2)
finished()
os._exit(0)
