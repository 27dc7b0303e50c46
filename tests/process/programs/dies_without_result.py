"""Ends with an exit code and no last word."""

import sys

from speaking import epoch, order, phase

order()
phase("training")
epoch(1)
print("something went wrong in a way that nobody expected")
sys.exit(3)
