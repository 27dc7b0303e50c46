"""Prints the message of torch for a loader worker that the kernel killed, then sends itself SIGKILL."""

import os
import signal

from protocol import order, phase

order()
phase("training")
print("RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed. ", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
