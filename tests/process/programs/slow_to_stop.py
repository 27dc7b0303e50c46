"""Needs 0.6 s to follow a stop request, and reports its reason."""

import sys
import time

from speaking import order, phase, send

order()
phase("training")
heard = sys.stdin.readline()
time.sleep(0.6)
send(kind="warning", code="heard", message=heard)
send(kind="stopped")
