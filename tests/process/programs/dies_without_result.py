"""Exits with a code and without a final event."""

import sys

from speaking import epoch, order, phase

order()
phase("training")
epoch(1)
print("something went wrong in a way that nobody expected")
sys.exit(3)
