"""Gets a signal (the number is its argument) from nobody in particular."""

import os
import sys

from speaking import epoch, order, phase

order()
phase("training")
epoch(2)
print("epoch 3 was going well", flush=True)
os.kill(os.getpid(), int(sys.argv[1]))
