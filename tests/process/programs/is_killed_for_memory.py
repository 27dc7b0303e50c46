"""Prints what torch prints when the kernel killed a loader worker, then sends itself SIGKILL."""

import os
import signal

from protocol import order, phase

order()
phase("training")
print("RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed. ", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
