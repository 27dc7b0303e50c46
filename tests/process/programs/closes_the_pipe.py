"""Closes its event pipe during the training, then its output, and keeps running for a while."""

import os
import time

from protocol import EVENTS, epoch, order, phase

order()
phase("training")
epoch(1)
os.close(EVENTS)
os.close(1)
os.close(2)
time.sleep(0.3)
os._exit(0)
