"""Draws a progress bar like Ultralytics, twenty times in a moment, and completes it."""

import sys

from protocol import finished, order

order()
for percent in range(0, 101, 5):
    sys.stdout.write(f"\r\x1b[K\x1b[34m  1/3 {percent}% \x1b[0m━━━╸")
    sys.stdout.flush()
sys.stdout.write("\n\nEpoch done\r\n")
sys.stdout.flush()
finished()
