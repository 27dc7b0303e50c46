"""Stops 0.6 s after a stop request, and reports the request as a warning."""

import sys
import time

from protocol import order, phase, send

order()
phase("training")
received = sys.stdin.readline()
time.sleep(0.6)
send(kind="warning", code="received", message=received)
send(kind="stopped")
