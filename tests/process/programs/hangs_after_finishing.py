"""Sends its result and does not exit."""

import time

from protocol import finished, order, phase

order()
phase("training")
finished(fine=True)
time.sleep(60)
