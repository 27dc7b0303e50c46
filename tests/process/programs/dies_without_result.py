"""Exits with a code and without a final event."""

import sys

from protocol import epoch, order, phase

order()
phase("training")
epoch(1)
print("something went wrong in an unexpected way")
sys.exit(3)
