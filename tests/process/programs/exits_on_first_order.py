"""Waits for a training order. If the file that the argument names exists, removes the file and exits without a result.

Otherwise, sends a result.
"""

import os
import sys

from protocol import finished, order

order()
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
    os._exit(9)
finished(pid=os.getpid(), devices=os.environ.get("CUDA_VISIBLE_DEVICES"))
