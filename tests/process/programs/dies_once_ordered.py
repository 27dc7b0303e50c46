"""Waits as a spare does; with the file that its argument names present it dies on its order, the first time only."""

import os
import sys

from speaking import finished, order

order()
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
    os._exit(9)
finished(pid=os.getpid(), devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
