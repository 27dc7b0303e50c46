"""Sends itself a signal. The argument is the number of the signal."""

import os
import sys

from protocol import epoch, order, phase

order()
phase("training")
epoch(2)
print("epoch 3 was going well", flush=True)
os.kill(os.getpid(), int(sys.argv[1]))
