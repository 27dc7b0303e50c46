"""Reports one epoch, prints a line, and then sends no more events."""

import time

from protocol import epoch, order, phase

order()
phase("training")
epoch(1)
print("still printing, which is no progress", flush=True)
time.sleep(60)
