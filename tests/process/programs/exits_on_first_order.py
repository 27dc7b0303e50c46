"""Waits like a prestarted process. If the file in its argument exists, the program exits at its first order."""

import os
import sys

from protocol import finished, order

order()
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
    os._exit(9)
finished(pid=os.getpid(), devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
